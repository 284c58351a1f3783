"""Memory of one rank of a layout: the parts of formulas/memory.py, as the axes divide them.

- shard and context divide weights, gradients and optimizer (ZeRO-3, arXiv:1910.02054); experts lie apart
  on the expert axis and the rest. While they compute, ranks hold blocks whole: two in turn, gathered in
  fp32 since the model casts a weight where it is used. `reshard=no` keeps them (ZeRO-2).
- tensor divides matrices, and with sequence parallelism all activations (arXiv:2205.05198); context
  divides tokens.
- A pipeline rank has its stages' layers; the first stage the embedding, the last the head and the loss
  (both where they are tied). It holds the activations, and the cast copies, of every micro-batch that the
  schedule keeps on its way. Gradient reduction and freeing of gathered weights wait for a stage's last
  backward pass (parallel/shard.py), so that a sharded stage is there whole, weights and gradients.
Counted, not yet measured.
"""

from dataclasses import dataclass, replace
from functools import cache
from math import ceil

from bessemer.formulas.layout import Layout, layers_of_stages
from bessemer.formulas.memory import (
    Memory,
    Workload,
    activation_bytes,
    all_matrices,
    base_bytes,
    device_memory,
    ends_per_token,
    joined_matrices,
    kept_per_token,
    loss_bytes,
    made_again_per_token,
    working_bytes,
)
from bessemer.formulas.parameters import num_dense_layers
from bessemer.formulas.schedule import pipeline_order
from bessemer.formulas.shape import ModelShape
from bessemer.formulas.tensors import TensorSpec, tensor_table

_MOST_MICRO_BATCHES = 256  # whose order is made


@dataclass(frozen=True)
class _Held:
    """Parameters that a rank computes with, before they are sharded."""

    ordinary: int
    experts: int
    largest_block: int
    ends: int  # embedding, head, final norm: part of ordinary


def rank_memory(shape: ModelShape, work: Workload, layout: Layout, pipeline_rank: int = 0) -> Memory:
    """Bytes at the peak of a step on each rank of that place in the pipeline.

    work.tokens: of whole rows, before the context axis cuts them.
    """
    if layout.world == 1:
        return device_memory(shape, work)
    shards = layout.shard * layout.context
    held = _held(shape, layout, pipeline_rank)
    local = ceil(held.ordinary / shards) + ceil(held.experts / _ranks_of_experts(layout))
    spread = layout.tensor * layout.context
    has_loss = layout.num_stages - 1 in layout.stages_of(pipeline_rank)
    return Memory(
        weights=4 * local,
        gradients=4 * local,
        optimizer=8 * local,
        casts=_casts(shape, work, layout, pipeline_rank),
        activations=_activations(shape, work, layout, pipeline_rank),
        working=ceil(working_bytes(shape, work) / spread),
        loss=_loss(shape, work, layout) if has_loss else 0,
        base=base_bytes(work.kind),
        gathered=_gathered(held, layout),
    )


def layout_memory(shape: ModelShape, work: Workload, layout: Layout) -> list[Memory]:
    """By pipeline rank."""
    return [rank_memory(shape, work, layout, rank) for rank in range(layout.pipeline)]


def rank_activation_bytes(shape: ModelShape, work: Workload, layout: Layout) -> int:
    """Activations on the rank that holds most of them."""
    if layout.world == 1:
        return activation_bytes(shape, work)
    return max(_activations(shape, work, layout, rank) for rank in range(layout.pipeline))


def _held(shape: ModelShape, layout: Layout, pipeline_rank: int) -> _Held:
    stages = layout.stages_of(pipeline_rank)
    table = layers_of_stages(shape, layout)
    layers = [layer for stage in stages for layer in table[stage]]
    routed = sum(layer >= num_dense_layers(shape) for layer in layers)
    counts = {False: len(layers) - routed, True: routed}
    ordinary = experts = block = 0
    for is_routed, count in counts.items():
        if count:
            specs = _block_specs(shape, is_routed)
            plain = sum(_split(spec, layout.tensor) for spec in specs if spec.expert is None)
            of_experts = sum(_split(spec, layout.tensor) for spec in specs if spec.expert is not None)
            of_experts = ceil(of_experts / layout.expert)
            ordinary, experts = ordinary + count * plain, experts + count * of_experts
            block = max(block, plain + of_experts)
    matrix = ceil(shape.vocab / layout.tensor) * shape.hidden
    first, last = 0 in stages, layout.num_stages - 1 in stages
    one = shape.tie_embeddings and first and last
    ends = matrix * (1 if one else first + last) + (shape.hidden if last else 0)
    return _Held(ordinary + ends, experts, block, ends)


def _ranks_of_experts(layout: Layout) -> int:
    """How many ranks shard the same experts between them: `inner` of parallel/mesh.py."""
    shards = layout.shard * layout.context
    return (shards if shards % layout.expert == 0 else layout.replicate * shards) // layout.expert


def _block_specs(shape: ModelShape, routed: bool) -> list[TensorSpec]:
    one = replace(shape, layers=1, dense_layers=0 if routed or not shape.experts else 1)
    return [spec for spec in tensor_table(one) if spec.trained and ".layers." in spec.name]


def _split(spec: TensorSpec, tensor: int) -> int:
    """Elements on the rank with the largest part."""
    if spec.tensor_dim is None:
        return spec.numel
    size = spec.shape[spec.tensor_dim]
    return spec.numel // size * ceil(size / tensor)


def _gathered(held: _Held, layout: Layout) -> int:
    """fp32 weights and gradients that are whole for a while, beside the rank's own shards."""
    if layout.shard * layout.context == 1:
        return 0
    whole = held.ordinary + held.experts
    two_blocks = min(whole, 2 * held.largest_block + held.ends)
    if layout.pipeline > 1:
        return 8 * whole
    return 4 * (two_blocks if layout.reshard else whole) + 4 * two_blocks


def _activations(shape: ModelShape, work: Workload, layout: Layout, pipeline_rank: int) -> int:
    table, held, any_full = layers_of_stages(shape, layout), 0, False
    for stage, count in _in_flight(layout, pipeline_rank, work.micro_batches):
        layers, full = table[stage], work.recomputed_of(table[stage])
        kept = kept_per_token(shape, work, layers)
        kept += (len(layers) - full) * _received(shape, work, layout)
        ends = ends_per_token(shape) if stage == layout.num_stages - 1 else work.size * shape.hidden
        held, any_full = held + count * (kept + ends), any_full or full > 0
    held += made_again_per_token(shape, work, any_full=any_full)
    return ceil(work.tokens * held / (layout.tensor * layout.context))


def _in_flight(layout: Layout, pipeline_rank: int, micro_batches: int) -> list[tuple[int, int]]:
    """(stage, micro-batches whose activations it holds) when the rank holds most of them."""
    return list(
        zip(layout.stages_of(pipeline_rank), _most(layout, pipeline_rank, micro_batches), strict=True)
    )


def _most(layout: Layout, pipeline_rank: int, micro_batches: int) -> tuple[int, ...]:
    if layout.pipeline == 1:
        return (1,)
    # More would repeat the same, and an order of thousands takes a second to make.
    return _peaks(layout, min(micro_batches, _MOST_MICRO_BATCHES))[pipeline_rank]


@cache
def _peaks(layout: Layout, micro_batches: int) -> list[tuple[int, ...]]:
    """By rank of the pipeline: micro-batches held of each of its stages at the peak.

    Held until its weights have their gradient: a backward pass that leaves them for later keeps what
    they need, the inputs and output gradients of its matmuls, about as much.
    """
    peaks = []
    for rank, order in enumerate(pipeline_order(layout, micro_batches)):
        held = dict.fromkeys(layout.stages_of(rank), 0)
        most = tuple(held.values())
        for action in order:
            held[action.stage] += (action.kind == "F") - (action.kind == "W")
            most = max(most, tuple(held.values()), key=sum)
        peaks.append(most)
    return peaks


def _received(shape: ModelShape, work: Workload, layout: Layout) -> int:
    """Of one layer and own token: what other ranks sent and autograd keeps. With tensor the inputs of
    attention and feed-forward, whole along the sequence; with context keys and values of all tokens."""
    kept = 2 * (layout.tensor - 1) * work.size * shape.hidden
    if layout.context_kind != "gather":
        return kept
    width = 2 * shape.kv_heads * shape.head_dim
    if shape.mla_kv_rank:
        width = shape.heads * (shape.mla_nope_dim + shape.mla_rope_dim + shape.mla_v_dim)
    return kept + (layout.context - 1) * work.size * width


def _casts(shape: ModelShape, work: Workload, layout: Layout, pipeline_rank: int) -> int:
    """Copies of matrices: autograd keeps those of each micro-batch on its way, but for recomputed blocks."""
    table, head = layers_of_stages(shape, layout), shape.vocab * shape.hidden
    bytes_each = 2 if work.dtype == "bf16" else 4
    copied = all_matrices(shape) - head if work.dtype == "bf16" else joined_matrices(shape)
    routed = shape.layers - num_dense_layers(shape)
    experts = routed * shape.experts * 3 * shape.hidden * shape.expert_ffn if work.dtype == "bf16" else 0
    per_model = (copied - experts) + experts / layout.expert
    layers = 0
    for stage, count in _in_flight(layout, pipeline_rank, work.micro_batches):
        layers += len(table[stage]) * (1 if work.recompute == "full" else count)
    has_head = layout.num_stages - 1 in layout.stages_of(pipeline_rank) and work.dtype == "bf16"
    elements = per_model * layers / shape.layers + (head if has_head else 0)
    return ceil(bytes_each * elements / layout.tensor)


def _loss(shape: ModelShape, work: Workload, layout: Layout) -> int:
    """On the rank's tokens, with its part of the vocabulary."""
    part = replace(shape, vocab=ceil(shape.vocab / layout.tensor))
    return loss_bytes(part, replace(work, tokens=ceil(work.tokens / layout.context)))
