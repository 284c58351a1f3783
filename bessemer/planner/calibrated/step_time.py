"""The time of a training step on a device that was calibrated: from the measured times of its parts.

Every matmul, attention, norm and exchange of one rank's step is counted from shape and layout, and looked up
in the tables of `planner/calibrated/tables.py`; the steps of small models that were timed whole (anchors)
correct what the parts leave out. A pipeline's stages are played through in the order in which they will be
run. Then the steps that runs on this machine really took correct the rest (`planner/calibrated/taught.py`).

Compiled code was not calibrated, as compiling takes longer than all of it: its vector work is taken to cost a
fixed share of the eager one's (planner/calibrated/rank_parts.py), and the band is wider until a run has told.
Left out: reading the data and writing rows (under 1 %), validation and checkpoints. Overlap of exchanges and
computing: on a CPU both want the cores, so none is taken to be hidden. Symbols: N tokens of a micro-batch on
a rank, D hidden.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

from bessemer.formulas.layout import Layout
from bessemer.formulas.memory.parts import Workload
from bessemer.formulas.passes import backward_and_weight, pass_lengths
from bessemer.formulas.shape import ModelShape
from bessemer.formulas.traffic.sizes import Exchange
from bessemer.formulas.traffic.step import step_exchanges
from bessemer.planner.calibrated.rank_parts import Rank, StageTimes, stage_times, update_seconds
from bessemer.planner.calibrated.tables import ANCHOR_LAYOUTS, Anchor, Calibration, Speeds
from bessemer.planner.calibrated.taught import step_key
from bessemer.planner.cost.pipeline import simulate
from bessemer.planner.layout import parse_layout
from bessemer.planner.machine.facts import Facts
from bessemer.planner.plan import UNKNOWN, Estimate, StagePlan

_BAND, _COMPILED_BAND = 0.12, 0.25
_RATIOS = (0.7, 2.5)  # of anchors: 1.05 to 1.85 were seen; beyond, something else ran when it was timed
# Parts are timed by the best of several; what counts of a run is its median step. Two quiet AMX cores, nine
# runs of benchmarks/planner_cpu.py: 1.018 to 1.044.
_MEDIAN_OVER_BEST = 1.03
_COMPUTE = ("matmul_s", "attention_s", "vector_s", "recompute_s", "optimizer_s")
_AXIS_PART = {"fsdp": "data_s", "inner": "data_s", "replicate": "data_s", "outer": "data_s",
              "tensor": "tensor_s", "context": "context_s", "expert": "expert_s",
              "pipeline": "pipeline_s", "ends": "pipeline_s", "all": "overhead_s"}  # fmt: skip
# Which exchanges an anchor's layout tells of: those of weights first, as context has them too.
_ANCHOR_AXES = ("fsdp", "tensor", "context", "expert")
_SAME_AXES = {"fsdp": ("fsdp", "inner"), "tensor": ("tensor",), "context": ("context",),
              "expert": ("expert",)}  # fmt: skip
PARTS = (*_COMPUTE, "tensor_s", "context_s", "expert_s", "pipeline_s", "bubble_s", "data_s", "overhead_s")


@dataclass(frozen=True)
class StepSeconds:
    """Of one optimizer step. parts: seconds by name, as in PARTS; together `value`."""

    value: float
    low: float
    high: float
    basis: str
    parts: dict[str, float]

    @property
    def estimate(self) -> Estimate:
        return Estimate(self.value, self.low, self.high, self.basis)

    def times(self, factor: float) -> "StepSeconds":
        parts = {name: value * factor for name, value in self.parts.items()}
        return StepSeconds(self.value * factor, self.low * factor, self.high * factor, self.basis, parts)


@dataclass(frozen=True)
class StepTime:
    """What is known of the time of a step. modelled: without what runs here have taught."""

    best: Estimate
    modelled: Estimate
    basis: str  # which calibration `modelled` stands on
    calibrated: bool


def step_time(shape: ModelShape, stage: StagePlan, facts: Facts, otherwise: Estimate = UNKNOWN) -> StepTime:
    """Of this stage on this machine.

    otherwise: of the formulas that know no calibration, for a machine that has none, or a model that the
    parts do not cover. What runs here have taught corrects either.
    """
    found = step_seconds(shape, stage, facts)
    modelled, basis = otherwise if found is None else found.estimate, modelled_basis(found, facts)
    known = StepTime(modelled, modelled, basis, found is not None)
    if facts.taught is None or facts.ceilings is None:  # a machine that is only planned for
        return known
    threads = threads_of(stage.layout, facts)
    # Whether "auto" will mean compiled, training decides; a run that has been made tells.
    ways = [True, False] if stage.compile == "auto" else [bool(stage.compile)]
    keys = [step_key(shape, replace(stage, compile=way), facts.kind, threads) for way in ways]
    key = next((key for key in keys if facts.taught.knows(key)), keys[0])
    return replace(known, best=facts.taught.corrected(key, modelled, basis))


def modelled_basis(found: StepSeconds | None, facts: Facts) -> str:
    """Which calibration a prediction stands on: ratios to another one do not hold for it."""
    if found is None or facts.calibration is None:
        return "no calibration"
    return f"{facts.calibration.date} {facts.calibration.took_s}"


def step_seconds(shape: ModelShape, stage: StagePlan, facts: Facts) -> StepSeconds | None:
    """From the calibration alone. None: there is none for this, or the model has parts that it lacks."""
    calibration = facts.calibration
    if calibration is None or shape.mla_kv_rank or not shape.gated or shape.norm != "rms":
        return None
    threads, processes = threads_of(stage.layout, facts), stage.layout.world if facts.kind == "cpu" else 1
    found = [
        (speeds, _parts(shape, stage, speeds, calibration))
        for speeds in _nearest(calibration, processes, threads, stage.dtype)
    ]
    if not found:
        return None
    parts = found[0][1] if len(found) == 1 else _between(found, threads)
    # More ranks than cores take turns on them.
    turns = max(1.0, processes * threads / calibration.cores) if processes > 1 else 1.0
    parts = {name: seconds * turns * _MEDIAN_OVER_BEST for name, seconds in parts.items()}
    value = sum(parts.values())
    band = _COMPILED_BAND if stage.compile else _BAND
    return StepSeconds(value, value / (1 + band), value * (1 + band), "modelled", parts)


def threads_of(layout: Layout, facts: Facts) -> int:
    """Of each rank: launch/local.py shares the cores out; one process has what torch was measured with."""
    if facts.kind != "cpu":
        return 1
    if facts.threads is not None:
        return facts.threads
    given = facts.ceilings.threads if facts.ceilings else facts.cores
    return given if layout.world == 1 else max(1, facts.cores // layout.world)


def _nearest(calibration: Calibration, processes: int, threads: int, dtype: str) -> list[Speeds]:
    """The way of computing that is meant, or the two next to it in threads."""
    rows = [row for row in calibration.speeds if row.dtype == dtype]
    together = [row for row in rows if (row.processes > 1) == (processes > 1)] or rows
    exact = [row for row in together if row.threads == threads]
    if exact:
        return exact[:1]
    below = [row for row in rows if row.threads <= threads]  # as many, but alone or together otherwise
    above = [row for row in rows if row.threads > threads]
    sides = [max(below, key=lambda row: row.threads)] if below else []
    return sides + ([min(above, key=lambda row: row.threads)] if above else [])


def _between(found: list[tuple[Speeds, dict[str, float]]], threads: int) -> dict[str, float]:
    (low, one), (high, other) = found
    share = math.log(threads / low.threads) / math.log(high.threads / low.threads)
    return {name: max(one[name], 1e-12) ** (1 - share) * max(other[name], 1e-12) ** share for name in one}


def _parts(
    shape: ModelShape, stage: StagePlan, speeds: Speeds, calibration: Calibration, *, extra: bool = True
) -> dict[str, float]:
    """Seconds by name: of the pipeline rank that computes longest, and what it waits for.

    extra: with what exchanging costs beyond the exchanges, which is found without it.
    """
    ratio = _anchored(speeds, shape.hidden)
    work = workload_of(stage, calibration.kind)
    ranks = [Rank(shape, stage.layout, work, place, stage.context) for place in range(stage.layout.pipeline)]
    stages: dict[int, StageTimes] = {}
    for rank in ranks:
        stages |= {number: times.times(ratio) for number, times in stage_times(rank, speeds).items()}
    beyond = _beyond(calibration, speeds, shape.hidden) if extra else {}
    exchanged = [dict(_exchanged(rank, calibration, stage.layout, beyond)) for rank in ranks]
    slowest = max(ranks, key=lambda rank: sum(stages[number].total for number in rank.stages))
    parts = dict.fromkeys(PARTS, 0.0) | exchanged[slowest.place]
    for number in slowest.stages:
        for name, seconds in stages[number].parts.items():
            parts[name] += seconds * stage.micro_batches
    parts["optimizer_s"] += max(update_seconds(rank, speeds) for rank in ranks) * ratio
    parts["overhead_s"] += speeds.tables["call"].at() * 20
    if stage.layout.pipeline > 1:
        sent = calibration.exchanges["send"].at(slowest.sent_bytes) if calibration.exchanges else 0.0
        at_once, whole = (_played(shape, stage, stages, send_s) for send_s in (0.0, sent))
        busy = sum(stages[number].total for number in slowest.stages) * stage.micro_batches
        parts["bubble_s"] += max(0.0, at_once - busy)
        parts["pipeline_s"] += whole - at_once
    return parts


def _played(shape: ModelShape, stage: StagePlan, stages: dict[int, StageTimes], send_s: float) -> float:
    """Seconds from the first forward pass to the last backward pass; the share of that which is for weights,
    and may wait in a zero-bubble pipeline, is as of FLOPs and bytes."""
    times = [stages[number] for number in range(stage.layout.num_stages)]
    backward, weight = backward_and_weight(shape, stage.context, stage.recompute)
    share = weight / (backward + weight)
    return simulate(
        stage.layout,
        stage.micro_batches,
        [each.forward_s for each in times],
        [each.backward_s * (1.0 - share) for each in times],
        [each.backward_s * share for each in times],
        send_s,
        pass_lengths(shape, stage.context, stage.recompute),
    )


def _exchanged(
    rank: Rank, calibration: Calibration, layout: Layout, beyond: dict[str, float]
) -> Iterator[tuple[str, float]]:
    """Seconds of exchanges, summed by part. beyond: seconds more of each exchange, by axis."""
    totals: dict[str, float] = {}
    for each in _exchanges(rank, layout):
        # Between ranks of the sequence sums are in the compute type, of gradients always in fp32.
        is_bf16 = rank.work.dtype == "bf16" and each.axis in ("tensor", "context")
        table = calibration.exchanges.get(f"{each.kind} bf16") if is_bf16 else None
        table = table or calibration.exchanges.get(each.kind)
        if table is None or each.kind == "send":  # sends that are waited for show in the pipeline's play
            continue
        # Measured between two: a ring of r sends (r - 1) / r of the bytes, in as many turns.
        turns = 2.0 * (each.ranks - 1) / each.ranks
        name, more = _AXIS_PART[each.axis], beyond.get(each.axis, 0.0)
        totals[name] = totals.get(name, 0.0) + each.count * (turns * table.at(each.payload) + more)
    yield from totals.items()


def _exchanges(rank: Rank, layout: Layout) -> Iterator[Exchange]:
    """Of the first rank at this place of the pipeline."""
    first = rank.place * (layout.world // layout.pipeline)
    return step_exchanges(rank.shape, rank.work, layout, first, context=rank.context)


@lru_cache(maxsize=64)
def _beyond(calibration: Calibration, speeds: Speeds, hidden: int) -> dict[str, float]:
    """Seconds of an exchange beyond itself, by axis: what is done around it (copies, hooks, Python)."""
    found: dict[str, float] = {}
    for layout, axis in zip(ANCHOR_LAYOUTS, _ANCHOR_AXES, strict=True):
        anchors = sorted((each for each in speeds.anchors if each.layout == layout), key=_width)
        points = [(each.hidden, _more(each, axis, speeds, calibration, found)) for each in anchors]
        if points:
            found |= dict.fromkeys(_SAME_AXES[axis], between_widths(points, hidden))
    return found


def _more(
    anchor: Anchor, axis: str, speeds: Speeds, calibration: Calibration, known: dict[str, float]
) -> float:
    """What the anchor's step took longer than counted, shared out over its exchanges of `axis`."""
    layout = parse_layout(anchor.layout)
    stage = StagePlan(
        1, anchor.context, anchor.rows, anchor.rows // layout.data, 1.0, dtype=speeds.dtype, layout=layout
    )
    shape = anchor_shape(anchor)
    counted = sum(_parts(shape, stage, speeds, calibration, extra=False).values())
    exchanges = list(_exchanges(Rank(shape, layout, workload_of(stage, "cpu"), 0, anchor.context), layout))
    counted += sum(each.count * known.get(each.axis, 0.0) for each in exchanges)
    count = sum(each.count for each in exchanges if each.axis == axis)
    return max(0.0, anchor.seconds - counted) / max(1, count)


def _width(anchor: Anchor) -> int:
    return anchor.hidden


@lru_cache(maxsize=64)
def _anchored(speeds: Speeds, hidden: int) -> float:
    """Measured over counted steps of the small models, between their widths."""
    alone = sorted((anchor for anchor in speeds.anchors if not anchor.layout), key=_width)
    return between_widths([(each.hidden, _ratio(each, speeds)) for each in alone], hidden) if alone else 1.0


def between_widths(points: Sequence[tuple[int, float]], hidden: int) -> float:
    """Between the points of a curve in the logarithm of the width; flat outside."""
    if hidden <= points[0][0]:
        return points[0][1]
    for (left, low), (right, high) in pairwise(points):
        if hidden <= right:
            return low + (high - low) * math.log(hidden / left) / math.log(right / left)
    return points[-1][1]


def _ratio(anchor: Anchor, speeds: Speeds) -> float:
    shape = anchor_shape(anchor)
    work = Workload(anchor.rows * anchor.context, speeds.dtype, "none", False, micro_batches=1)
    rank = Rank(shape, Layout(), work, 0, anchor.context)
    counted = sum(times.total for times in stage_times(rank, speeds).values())
    ratio = anchor.seconds / (counted + update_seconds(rank, speeds))
    return min(max(ratio, _RATIOS[0]), _RATIOS[1])


def anchor_shape(anchor: Anchor) -> ModelShape:
    """The model that was timed."""
    return ModelShape(
        family="qwen3-moe" if anchor.experts else "llama",
        layers=anchor.layers,
        hidden=anchor.hidden,
        heads=anchor.heads,
        kv_heads=anchor.heads,
        head_dim=anchor.hidden // anchor.heads,
        ffn=anchor.ffn,
        vocab=anchor.vocab,
        context=anchor.context,
        tie_embeddings=False,
        qk_norm=False,
        experts=anchor.experts,
        experts_per_token=anchor.experts_per_token,
        expert_ffn=anchor.expert_ffn,
    )


def workload_of(stage: StagePlan, kind: str) -> Workload:
    return Workload(
        stage.micro_batch * stage.context,
        stage.dtype,
        stage.recompute,
        bool(stage.compile),
        kind,
        stage.recompute_layers,
        stage.micro_batches,
    )
