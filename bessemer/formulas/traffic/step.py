"""Every exchange that one rank makes in one optimizer step, in closed form from shape and layout.

What is counted is what parallel/ does, exchange by exchange: tests hold counts and bytes equal to those of
real processes (parallel/traffic.py, which also says what the bytes of a kind are), for every axis and for
compositions. Only the experts' rows are a mean: routing is taken to be even.

    weights   gathered per block and micro-batch in the compute type, forwards and (with reshard) backwards
              again; gradients scattered in fp32 per micro-batch, summed over replicas once a step. In a
              pipeline once a step, all.
    tensor    4 gathers and 4 scatters of a layer's activations, the ends, 2 sums a chunk of the loss
    context   keys and values gathered, their gradients scattered; or 8 exchanges of tokens for heads
    experts   counts, rows and results there and back, forwards and backwards: 5 exchanges
    pipeline  hidden states on, their gradients back
    all       how many targets; loss, norm and requests to stop

Recomputed blocks repeat what their forward pass exchanged, but for the last exchange, which nothing needs.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import ceil

from bessemer.formulas.adapters import matrices
from bessemer.formulas.layout import Layout, split_evenly
from bessemer.formulas.memory.parts import Workload, loss_rows
from bessemer.formulas.shape import ModelShape
from bessemer.formulas.traffic.sizes import (
    FP32,
    WIDE,
    Exchange,
    Step,
    block_specs,
    cut,
    embedding,
    own,
    place_of,
)
from bessemer.formulas.traffic.weights import weight_exchanges

KINDS = ("all_gather", "reduce_scatter", "all_reduce", "all_to_all", "send")


@dataclass(frozen=True)
class Collective:
    """Exchanges of one kind. bytes: what they are about; sent_bytes: what a rank of a ring really sends."""

    count: int
    bytes: int
    sent_bytes: int

    @staticmethod
    def of(kind: str, payload: int, ranks: int, count: int = 1) -> "Collective":
        """`count` exchanges of `payload` bytes between `ranks` ranks."""
        turns = {"send": ranks, "all_reduce": 2 * (ranks - 1)}.get(kind, ranks - 1)
        return Collective(count, count * payload, count * (payload * turns // ranks))


def add(by_kind: dict[str, Collective], kind: str, more: Collective) -> None:
    had = by_kind.get(kind, Collective(0, 0, 0))
    by_kind[kind] = Collective(
        had.count + more.count, had.bytes + more.bytes, had.sent_bytes + more.sent_bytes
    )


def step_traffic(
    shape: ModelShape, work: Workload, layout: Layout, rank: int = 0, *, context: int
) -> dict[str, Collective]:
    """By kind. work.tokens: of a micro-batch of whole rows, each `context` tokens long."""
    found: dict[str, Collective] = {}
    for each in step_exchanges(shape, work, layout, rank, context=context):
        add(found, each.kind, Collective.of(each.kind, each.payload, each.ranks, each.count))
    return found


def step_exchanges(
    shape: ModelShape, work: Workload, layout: Layout, rank: int = 0, *, context: int
) -> Iterator[Exchange]:
    """Of `rank`, forward_backward to after_update of parallel/engine.py."""
    step = Step(shape, work, layout, place_of(layout, rank), work.tokens // context, context)
    parts = (weight_exchanges, _tensor, _context, _experts, _pipeline, _agreement)
    for part in parts:
        yield from (each for each in part(step) if each.ranks > 1 and each.count and each.payload)


def _tensor(step: Step) -> Iterator[Exchange]:
    ranks, turns = step.layout.tensor, step.work.micro_batches
    if ranks == 1:
        return
    hidden = step.rows * ceil(step.tokens / ranks) * ranks * step.shape.hidden * step.work.size
    for layer in step.layers:
        again = step.is_repeated(layer)
        yield Exchange("tensor", "all_gather", hidden, ranks, turns * (4 + 2 * again))
        yield Exchange("tensor", "reduce_scatter", hidden, ranks, turns * (4 + again))
        norms = _split_row_norms(step, layer)
        yield Exchange("tensor", "all_reduce", FP32 * step.shape.hidden, ranks, turns * norms * (1 + again))
    # The embedding's sum goes forwards and its gradient back. Frozen, it has none, nor has the first layer's
    # input, whose reduction in the layers above is taken off here.
    ends = turns * (step.has_first * (step.shape.adapter is None) + step.has_last)
    yield Exchange("tensor", "all_gather", hidden, ranks, ends)
    yield Exchange("tensor", "reduce_scatter", hidden, ranks, ends)
    if step.has_last and not step.shape.labels:  # a head of classes is whole on every rank
        for tokens in _loss_chunks(step):
            yield Exchange("tensor", "all_reduce", FP32 * tokens, ranks, turns)
            yield Exchange("tensor", "all_reduce", 2 * FP32 * tokens, ranks, turns)
    yield Exchange("tensor", "all_reduce", FP32 * _copied(step), ranks, 1)


def _split_row_norms(step: Step, layer: int) -> int:
    """DoRA's matrices whose rows lie on several ranks: model/frozen.py."""
    adapter = step.shape.adapter
    if adapter is None or not adapter.dora:
        return 0
    here = matrices(step.shape, routed=step.is_routed(layer))
    return sum(name in here and name in adapter.targets for name in ("o_proj", "down_proj"))


def _loss_chunks(step: Step) -> Iterator[int]:
    """Tokens of each chunk of the loss, sized by the largest share of the vocabulary."""
    vocab, tokens = ceil(step.shape.vocab / step.layout.tensor), step.rows * step.tokens
    size = loss_rows(vocab)
    for begin in range(0, tokens, size):
        yield min(size, tokens - begin)


def _copied(step: Step) -> int:
    """Elements of this rank's shards of weights that every rank of the tensor axis has."""
    all_learn = step.shape.adapter is None
    sizes = [[step.shape.hidden]] if step.has_last and all_learn else []
    sizes += [[step.shape.labels, step.shape.hidden]] if step.has_last and step.shape.labels else []
    for layer in step.layers:
        sizes += [
            list(spec.shape)
            for spec in block_specs(step.shape, step.is_routed(layer))
            if spec.tensor_dim is None and (all_learn or spec.trained)
        ]
    return sum(own(size, step.fsdp, step.place.fsdp) for size in sizes)


def _context(step: Step) -> Iterator[Exchange]:
    shape, layout, ranks, turns = step.shape, step.layout, step.layout.context, step.work.micro_batches
    per_head = step.rows * step.tokens * shape.head_dim * step.work.size
    heads, kv_heads = shape.heads // layout.tensor, shape.kv_heads // layout.tensor
    for layer in step.layers:
        again = step.is_repeated(layer)
        if layout.context_kind == "gather":
            both = per_head * 2 * kv_heads * ranks
            yield Exchange("context", "all_gather", both, ranks, turns * (1 + again))
            yield Exchange("context", "reduce_scatter", both, ranks, turns)
        else:
            for each in (heads, heads, kv_heads, kv_heads):  # queries, results, keys, values
                yield Exchange("context", "all_to_all", per_head * each, ranks, turns * (2 + again))
        if step.is_routed(layer) and shape.router == "softmax":
            statistics = step.rows * shape.experts * FP32
            yield Exchange("context", "all_reduce", statistics, ranks, 2 * turns * (1 + again))


def _experts(step: Step) -> Iterator[Exchange]:
    shape, ranks, turns = step.shape, step.layout.expert, step.work.micro_batches
    rows = step.rows * step.tokens * shape.experts_per_token * shape.hidden * step.work.size
    routed = list(filter(step.is_routed, step.layers))
    for layer in routed:
        again = step.is_repeated(layer)
        yield Exchange("expert", "all_to_all", WIDE * shape.experts, ranks, turns * (1 + again))
        yield Exchange("expert", "all_to_all", rows, ranks, turns * (4 + 2 * again))
    if shape.router == "sigmoid_bias":
        chosen = WIDE * shape.experts * len(routed)
        yield Exchange("replicate", "all_reduce", chosen, step.layout.replicate, 1)
        yield Exchange("fsdp", "all_reduce", chosen, step.fsdp, 1)


def _pipeline(step: Step) -> Iterator[Exchange]:
    layout, place = step.layout, step.place
    tokens = len(split_evenly(step.tokens, layout.tensor)[place.tensor])
    hidden = step.rows * tokens * step.shape.hidden * step.work.size
    neighbours = [other for stage in step.stages for other in (stage - 1, stage + 1)]
    away = _elsewhere(layout, place.pipeline, neighbours)
    yield Exchange("pipeline", "send", hidden, layout.pipeline, away * step.work.micro_batches)
    last = layout.rank_of_stage(layout.num_stages - 1)
    learns = step.shape.adapter is None
    if step.shape.tie_embeddings and learns and last > 0 and place.pipeline in (0, last):
        elements = own(cut(embedding(step.shape), step), step.fsdp, place.fsdp)
        yield Exchange("ends", "all_reduce", FP32 * elements, 2, 1)


def _elsewhere(layout: Layout, pipeline_rank: int, stages: Iterable[int]) -> int:
    """How many of these stages there are, on other ranks."""
    return sum(
        0 <= stage < layout.num_stages and layout.rank_of_stage(stage) != pipeline_rank for stage in stages
    )


def _agreement(step: Step) -> Iterator[Exchange]:
    yield Exchange("all", "all_reduce", WIDE, step.layout.world, 1)
    yield Exchange("all", "all_reduce", 3 * WIDE, step.layout.world, 1)
