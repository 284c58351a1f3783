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
from dataclasses import dataclass, replace
from math import ceil, prod

from bessemer.formulas.layout import Layout, layers_of_stages, split_evenly
from bessemer.formulas.memory import Workload
from bessemer.formulas.schedule import splits_backward
from bessemer.formulas.shape import ModelShape
from bessemer.formulas.tensors import TensorSpec, tensor_table

KINDS = ("all_gather", "reduce_scatter", "all_reduce", "all_to_all", "send")
_CHUNK_ELEMENTS = 8 * 2**20  # of logits: model/loss.py
_FP32, _WIDE = 4, 8  # bytes; the wide ones are fp64 and int64


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


@dataclass(frozen=True)
class Exchange:
    """`count` exchanges alike, between the `ranks` ranks of an axis. payload: bytes of each."""

    axis: str  # of parallel/mesh.py; "all": every rank; "ends": first and last pipeline rank
    kind: str
    payload: int
    ranks: int
    count: int


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
    step = _Step(shape, work, layout, _place(layout, rank), work.tokens // context, context)
    parts = (_weights, _tensor, _context, _experts, _pipeline, _agreement)
    for part in parts:
        yield from (each for each in part(step) if each.ranks > 1 and each.count and each.payload)


@dataclass(frozen=True)
class _Place:
    pipeline: int
    fsdp: int
    tensor: int


@dataclass(frozen=True)
class _Step:
    """A step on a rank, and sizes that several axes need."""

    shape: ModelShape
    work: Workload
    layout: Layout
    place: _Place
    rows: int  # of a micro-batch
    context: int

    @property
    def stages(self) -> list[int]:
        return self.layout.stages_of(self.place.pipeline)

    @property
    def has_first(self) -> bool:
        return 0 in self.stages

    @property
    def has_last(self) -> bool:
        return self.layout.num_stages - 1 in self.stages

    @property
    def layers(self) -> list[int]:
        table = layers_of_stages(self.shape, self.layout)
        return [layer for stage in self.stages for layer in table[stage]]

    def is_routed(self, layer: int) -> bool:
        return self.shape.experts > 0 and layer >= self.shape.dense_layers

    def is_repeated(self, layer: int) -> bool:
        """Whether the forward pass of the layer is run again in the backward pass."""
        return self.work.recomputed_of(range(layer, layer + 1)) == 1

    @property
    def tokens(self) -> int:
        """Of a row, on this rank; between the layers they are shared out over the tensor axis."""
        return self.context // self.layout.context

    @property
    def fsdp(self) -> int:
        return self.layout.shard * self.layout.context

    @property
    def expert_ranks(self) -> tuple[int, int]:
        """(outer, inner) ranks that repeat and shard the same experts: parallel/mesh.py."""
        data = self.layout.replicate * self.fsdp
        inner = (self.fsdp if self.fsdp % self.layout.expert == 0 else data) // self.layout.expert
        return data // self.layout.expert // inner, inner


def _place(layout: Layout, rank: int) -> _Place:
    rest, tensor = divmod(rank, layout.tensor)
    fsdp = layout.shard * layout.context
    return _Place(rest // (fsdp * layout.replicate), rest % fsdp, tensor)


def _weights(step: _Step) -> Iterator[Exchange]:
    """FSDP's units: each block, its experts where they lie elsewhere, the embedding, and the rest."""
    both = (step.layout.replicate, step.fsdp)
    for layer in step.layers:
        for sizes, over, size in _block_units(step, step.is_routed(layer)):
            yield from _unit(step, sizes, over, size=size)
    embedding = _cut(_embedding(step.shape), step)
    if step.has_first and not step.shape.tie_embeddings:
        yield from _unit(step, [embedding], both)
    # What is left of a stage. Tied, the embedding is part of it, and both ends of a pipeline have their own.
    if step.has_last:
        yield from _unit(step, [[step.shape.hidden], embedding], both, twice=False)
    if step.has_first and step.shape.tie_embeddings and step.layout.num_stages > 1:
        yield from _unit(step, [embedding], both, twice=False)


_Sizes = list[list[int]]


def _block_units(step: _Step, routed: bool) -> Iterator[tuple[_Sizes, tuple[int, int], int]]:
    """(sizes of the weights before sharding, (repeating, sharding) ranks, bytes of a gathered element)."""
    layout, specs, both = step.layout, _block_specs(step.shape, routed), (step.layout.replicate, step.fsdp)
    here = step.shape.experts // layout.expert
    stacks = [[here, *_cut(spec, step)] for spec in specs if spec.expert is not None]
    plain = [spec for spec in specs if spec.expert is None]
    # Matrices are cast before they travel; norms and routers, which compute in fp32, travel apart.
    cast = step.work.dtype != "fp32" and not splits_backward(layout)
    size = step.work.size if cast else _FP32
    if cast:
        yield [_cut(spec, step) for spec in plain if _is_fp32(spec)], both, _FP32
    matrices = [_cut(spec, step) for spec in plain if not (cast and _is_fp32(spec))]
    if layout.expert > 1 and stacks:
        yield stacks, step.expert_ranks, size
    yield (matrices if layout.expert > 1 else matrices + stacks), both, size


def _unit(
    step: _Step, sizes: _Sizes, over: tuple[int, int], *, size: int = _FP32, twice: bool = True
) -> Iterator[Exchange]:
    """twice: gathered again for the backward pass where the layout reshards."""
    replicas, ranks = over
    layout, turns = step.layout, step.work.micro_batches
    elements = sum(_padded(each, ranks) for each in sizes)
    gathers = 1 if layout.pipeline > 1 else turns * (2 if twice and layout.reshard else 1)
    # Where dense weights are not sharded, all gradients wait for the last micro-batch.
    scatters = 1 if layout.pipeline > 1 or step.fsdp == 1 else turns
    is_dense = over == (layout.replicate, step.fsdp)
    yield Exchange("fsdp" if is_dense else "inner", "all_gather", size * elements, ranks, gathers)
    yield Exchange("fsdp" if is_dense else "inner", "reduce_scatter", _FP32 * elements, ranks, scatters)
    axis = "replicate" if is_dense else "outer"
    yield Exchange(axis, "all_reduce", _FP32 * elements // ranks, replicas, 1)


def _embedding(shape: ModelShape) -> TensorSpec:
    return tensor_table(replace(shape, layers=0))[0]


def _block_specs(shape: ModelShape, routed: bool) -> list[TensorSpec]:
    """Of one layer, and of its experts only the first."""
    one = replace(shape, layers=1, dense_layers=0 if routed or not shape.experts else 1)
    table = [spec for spec in tensor_table(one) if spec.trained and ".layers." in spec.name]
    return [spec for spec in table if spec.expert in (None, 0)]


def _is_fp32(spec: TensorSpec) -> bool:
    return len(spec.shape) == 1 or spec.name.endswith(".gate.weight")


def _cut(spec: TensorSpec, step: _Step) -> list[int]:
    """Sizes of this rank's part on the tensor axis."""
    size = list(spec.shape)
    if spec.tensor_dim is not None:
        size[spec.tensor_dim] = len(
            split_evenly(size[spec.tensor_dim], step.layout.tensor)[step.place.tensor]
        )
    return size


def _padded(size: list[int], ranks: int) -> int:
    """Elements of a weight that FSDP pads to equal shards: parallel/shard.py says along which dim."""
    if len(size) == 3 and size[0] % ranks and size[1] % ranks == 0:
        return prod(size)
    return ceil(size[0] / ranks) * ranks * prod(size[1:])


def _own(size: list[int], ranks: int, place: int) -> int:
    """Elements of the shard at `place`, without padding."""
    longest = ceil(size[0] / ranks)
    return max(0, min(longest, size[0] - place * longest)) * prod(size[1:])


def _tensor(step: _Step) -> Iterator[Exchange]:
    ranks, turns = step.layout.tensor, step.work.micro_batches
    if ranks == 1:
        return
    hidden = step.rows * ceil(step.tokens / ranks) * ranks * step.shape.hidden * step.work.size
    for layer in step.layers:
        again = step.is_repeated(layer)
        yield Exchange("tensor", "all_gather", hidden, ranks, turns * (4 + 2 * again))
        yield Exchange("tensor", "reduce_scatter", hidden, ranks, turns * (4 + again))
    ends = turns * (step.has_first + step.has_last)
    yield Exchange("tensor", "all_gather", hidden, ranks, ends)
    yield Exchange("tensor", "reduce_scatter", hidden, ranks, ends)
    if step.has_last:
        for tokens in _loss_chunks(step):
            yield Exchange("tensor", "all_reduce", _FP32 * tokens, ranks, turns)
            yield Exchange("tensor", "all_reduce", 2 * _FP32 * tokens, ranks, turns)
    yield Exchange("tensor", "all_reduce", _FP32 * _copied(step), ranks, 1)


def _loss_chunks(step: _Step) -> Iterator[int]:
    """Tokens of each chunk of the loss, sized by the largest share of the vocabulary: model/loss.py."""
    vocab, tokens = ceil(step.shape.vocab / step.layout.tensor), step.rows * step.tokens
    size = max(128, 1 << max(0, (_CHUNK_ELEMENTS // vocab).bit_length() - 1))
    for begin in range(0, tokens, size):
        yield min(size, tokens - begin)


def _copied(step: _Step) -> int:
    """Elements of this rank's shards of weights that every rank of the tensor axis has."""
    sizes = [[step.shape.hidden]] if step.has_last else []
    for layer in step.layers:
        sizes += [
            list(spec.shape)
            for spec in _block_specs(step.shape, step.is_routed(layer))
            if spec.tensor_dim is None
        ]
    return sum(_own(size, step.fsdp, step.place.fsdp) for size in sizes)


def _context(step: _Step) -> Iterator[Exchange]:
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
            statistics = step.rows * shape.experts * _FP32
            yield Exchange("context", "all_reduce", statistics, ranks, 2 * turns * (1 + again))


def _experts(step: _Step) -> Iterator[Exchange]:
    shape, ranks, turns = step.shape, step.layout.expert, step.work.micro_batches
    rows = step.rows * step.tokens * shape.experts_per_token * shape.hidden * step.work.size
    for layer in filter(step.is_routed, step.layers):
        again = step.is_repeated(layer)
        yield Exchange("expert", "all_to_all", _WIDE * shape.experts, ranks, turns * (1 + again))
        yield Exchange("expert", "all_to_all", rows, ranks, turns * (4 + 2 * again))
        if shape.router == "sigmoid_bias":
            yield Exchange("replicate", "all_reduce", _WIDE * shape.experts, step.layout.replicate, 1)
            yield Exchange("fsdp", "all_reduce", _WIDE * shape.experts, step.fsdp, 1)


def _pipeline(step: _Step) -> Iterator[Exchange]:
    layout, place = step.layout, step.place
    tokens = len(split_evenly(step.tokens, layout.tensor)[place.tensor])
    hidden = step.rows * tokens * step.shape.hidden * step.work.size
    neighbours = [other for stage in step.stages for other in (stage - 1, stage + 1)]
    away = _elsewhere(layout, place.pipeline, neighbours)
    yield Exchange("pipeline", "send", hidden, layout.pipeline, away * step.work.micro_batches)
    last = layout.rank_of_stage(layout.num_stages - 1)
    if step.shape.tie_embeddings and last > 0 and place.pipeline in (0, last):
        own = _own(_cut(_embedding(step.shape), step), step.fsdp, place.fsdp)
        yield Exchange("ends", "all_reduce", _FP32 * own, 2, 1)


def _elsewhere(layout: Layout, pipeline_rank: int, stages: Iterable[int]) -> int:
    """How many of these stages there are, on other ranks."""
    return sum(
        0 <= stage < layout.num_stages and layout.rank_of_stage(stage) != pipeline_rank for stage in stages
    )


def _agreement(step: _Step) -> Iterator[Exchange]:
    yield Exchange("all", "all_reduce", _WIDE, step.layout.world, 1)
    yield Exchange("all", "all_reduce", 3 * _WIDE, step.layout.world, 1)
