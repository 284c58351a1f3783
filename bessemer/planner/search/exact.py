"""The best candidates gone over again: memory rank by rank, and the pipeline played through.

Columns round what a pipeline does: they know the mean stage, and a bubble in closed form. Here each stage has
the layers that the trainer gives it, and every rank's work runs in its order (formulas/schedule.py); memory
is formulas/memory/rank.py, which rehearsals of the trainer hold to.
Cost: 10 to 100 ms a candidate, so only the finalists. Long steps repeat themselves: of many micro-batches
only the first are played, the rest go on at their pace.
"""

from dataclasses import dataclass, replace

import numpy as np

from bessemer.formulas.layout import Layout, layers_of_stages
from bessemer.formulas.memory.parts import Memory, Workload
from bessemer.formulas.memory.rank import rank_memory
from bessemer.formulas.memory.rollout import with_rounds
from bessemer.formulas.parameters import num_dense_layers
from bessemer.formulas.passes import pass_lengths
from bessemer.formulas.schedule import EQUAL, Lengths, splits_backward
from bessemer.formulas.shape import ModelShape
from bessemer.planner.cost.candidates import RECOMPUTE, Candidates
from bessemer.planner.cost.pipeline import Passes, simulate
from bessemer.planner.cost.time import StepTimes
from bessemer.planner.cost.work import dims_of
from bessemer.planner.rules.stage import eager_only
from bessemer.planner.search.costed import Field, Room, eager, own_times, run_hours, run_kwh
from bessemer.planner.search.question import Question
from bessemer.planner.search.space import layout_of


@dataclass(frozen=True)
class Exact:
    """One candidate, gone over. Seconds, bytes, and what the run takes."""

    layout: Layout
    micro_batch: int
    micro_batches: int
    recompute: str
    parts: dict[str, float]  # seconds of the step; together step_s
    hidden_s: float  # exchanges behind compute, not in the step
    step_s: float
    memories: tuple[Memory, ...]  # of the pipeline ranks that were looked at
    room: Room
    pipeline_ranks: tuple[int, ...]
    hours: float
    kwh: float | None
    usd: float | None
    devices: int

    @property
    def fullest(self) -> int:
        """Place in `memories`."""
        return max(range(len(self.memories)), key=lambda place: self.memories[place].total)

    @property
    def needed_bytes(self) -> float:
        return max(map(self.room.needed, self.memories))


def exact(field: Field, place: int) -> Exact:
    """Of one candidate."""
    if place not in field.gone_over:
        field.gone_over[place] = gone_over(field.question, field.candidates, place, field.room(place))
    found: Exact = field.gone_over[place]
    return found


def gone_over(question: Question, candidates: Candidates, place: int, room: Room) -> Exact:
    one = candidates.take(np.array([place]))
    layout = layout_of(question, one, 0)
    micro_batch, recompute = int(one.micro_batch[0]), RECOMPUTE[int(one.recompute[0])]
    ranks = ranks_that_may_be_fullest(question.shape, layout)
    memories = memories_of(question, layout, micro_batch, int(one.micro_batches[0]), recompute, ranks)
    again = played(question, one, layout)
    kwh = run_kwh(question, again)
    hours = float(run_hours(question, again.total_s)[0])
    drawn = None if kwh is None else float(kwh[0])
    return Exact(
        layout,
        micro_batch,
        int(one.micro_batches[0]),
        recompute,
        again.parts(0),
        float(again.hidden_s[0]),
        float(again.total_s[0]),
        memories,
        room,
        ranks,
        hours,
        drawn,
        question.usd(hours, drawn),
        question.cluster.devices,
    )


def ranks_that_may_be_fullest(shape: ModelShape, layout: Layout) -> tuple[int, ...]:
    """The first two pipeline ranks, the last, and each that has more dense or more routed layers than any
    before it: who has no more of either holds no more, as later ranks hold no more micro-batches. Of more of
    them weights may wait (formulas/memory/waiting.py): there also each that has more than any after it."""
    dense, last = num_dense_layers(shape), layout.pipeline - 1
    stages = layers_of_stages(shape, layout)
    ranks, ways = {0, min(1, last), last}, [range(last)]
    if splits_backward(layout):
        ways.append(range(last, -1, -1))
    for way in ways:
        held = [(-1, -1)]
        for rank in way:
            layers = [layer for stage in layout.stages_of(rank) for layer in stages[stage]]
            num_dense = sum(layer < dense for layer in layers)
            num_routed = len(layers) - num_dense
            if not any(num_dense <= before and num_routed <= more for before, more in held):
                ranks.add(rank)
                held.append((num_dense, num_routed))
    return tuple(sorted(ranks))


def memories_of(
    question: Question,
    layout: Layout,
    micro_batch: int,
    micro_batches: int,
    recompute: str,
    ranks: tuple[int, ...],
) -> tuple[Memory, ...]:
    """Of these pipeline ranks. Later micro-batches repeat what the first ones held."""
    work = Workload(
        micro_batch * question.context,
        question.dtype,
        recompute,
        question.compiles and eager_only(layout, recompute) is None,
        question.cluster.device.kind,
        None,
        min(micro_batches, 4 * layout.pipeline),
        row_tokens=question.context,
    )
    shape, objective = question.shape, question.objective
    return tuple(
        with_rounds(rank_memory(shape, work, layout, rank), shape, work, layout, objective, question.context)
        for rank in ranks
    )


def played(question: Question, one: Candidates, layout: Layout) -> StepTimes:
    """The times of one candidate with its stages as they are: the work of the busiest rank, and as
    `bubble_s` how much longer than that the schedule takes."""
    sends_heads = np.array([layout.context_kind == "ulysses"])
    times = own_times(question, one, sends_heads)
    if layout.pipeline == 1:
        return times
    parts, count = times.parts(0), int(one.micro_batches[0])
    layer_s, head_s, matmul_share = _layer_and_head(question, one, sends_heads)
    # One of the two, forwards and backwards, as far as they show.
    send_s = parts["pipeline_s"] / (2 * count * layout.stages_per_rank)
    stage_s = [len(layers) * layer_s for layers in layers_of_stages(question.shape, layout)]
    stage_s[-1] += head_s
    busiest_s = max(
        sum(stage_s[stage] for stage in layout.stages_of(rank)) for rank in range(layout.pipeline)
    )
    again = parts["recompute_s"] / sum(parts[name] for name in _COMPUTE)
    lengths = pass_lengths(question.shape, question.context, RECOMPUTE[int(one.recompute[0])])
    dims = dims_of(question.shape, question.context)
    passes = Passes.of(matmul_share, again, dims.products, dims.waiting, lengths == EQUAL)
    shares = float(passes.forward), float(passes.weight)
    whole_s = played_s(layout, count, stage_s, busiest_s, shares, send_s, head_s, lengths)
    # What is waited for is the bubble, and what sends add: with rows in flight most of them hide.
    waits_s = max(0.0, whole_s - count * busiest_s)
    scale = busiest_s / float(times.busiest_s[0])
    bubble_s = min(scale * float(times.bubble_s[0]), waits_s)
    columns = {name: np.array([parts[name] * scale]) for name in (*_COMPUTE, *_EXCHANGES)}
    return replace(times, **columns, pipeline_s=np.array([waits_s - bubble_s]), bubble_s=np.array([bubble_s]))


_COMPUTE = ("matmul_s", "attention_s", "vector_s", "recompute_s")
_EXCHANGES = ("tensor_s", "context_s", "expert_s")


def _layer_and_head(
    question: Question, one: Candidates, sends_heads: np.ndarray
) -> tuple[float, float, float]:
    """(seconds of a layer, of the head, both for one micro-batch forward and back; share of a layer's
    backward work that weight gradients may be). From the same model with its layers and with twice as many,
    on one pipeline rank."""
    shape, single = question.shape, np.ones(1, np.int64)
    alone = replace(one, pipeline=single, interleave=single, schedule=0 * single, micro_batches=single)
    dense = num_dense_layers(shape) if shape.experts else 0
    double = replace(shape, layers=2 * shape.layers, dense_layers=2 * dense)
    # What its schedule keeps from being compiled is not compiled on one rank either.
    question = replace(question, compiles=not eager(question, one)[0])
    usual = own_times(question, alone, sends_heads)
    more = own_times(replace(question, shape=double), alone, sends_heads)
    layer_s = float(more.busiest_s[0] - usual.busiest_s[0]) / shape.layers
    head_s = float(usual.busiest_s[0]) - shape.layers * layer_s
    return layer_s, max(0.0, head_s), float(usual.matmul_s[0] / usual.compute_s[0])


def played_s(
    layout: Layout,
    count: int,
    stage_s: list[float],
    busiest_s: float,
    shares: tuple[float, float],
    send_s: float,
    head_s: float = 0.0,
    lengths: Lengths = EQUAL,
) -> float:
    """Seconds of the schedule. The first micro-batches are played, in whole groups of as many as there are
    ranks; the rest go on at the pace of the last group. shares: of a stage's time, forward and weights.
    head_s: of the last stage's, all of it forward, as the loss makes its gradients there (model/loss.py).
    """
    ranks = layout.pipeline
    # Without degrees that do not matter here, orders are made once for many layouts.
    plain = Layout(pipeline=ranks, schedule=layout.schedule, interleave=layout.interleave)
    layers_s = [*stage_s[:-1], stage_s[-1] - head_s]
    forward_s, weight_s = ([share * each for each in layers_s] for share in shares)
    forward_s[-1] += head_s
    backward_s = [each - one - last for each, one, last in zip(stage_s, forward_s, weight_s, strict=True)]

    def seconds(first: int) -> float:
        return simulate(plain, first, forward_s, backward_s, weight_s, send_s, lengths)

    plain_pace = layout.schedule == "1f1b" and not send_s
    first = min(count, (2 if plain_pace else 4) * ranks + count % ranks)
    if first == count:
        return seconds(count)
    if plain_pace:
        return seconds(first) + (count - first) * busiest_s
    # In other schedules ranks wait for each other in every group where stages are uneven.
    begun_s = seconds(first - ranks)
    return begun_s + (seconds(first) - begun_s) / ranks * (count - first + ranks)
