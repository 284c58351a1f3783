"""Memory of one rank of a layout: the parts of formulas/memory.py, as the axes divide them.

- shard and context divide weights, gradients and optimizer (ZeRO-3, arXiv:1910.02054); experts lie apart
  on the expert axis and the rest. While they compute, ranks hold blocks whole: formulas/rank_weights.py.
  `reshard=no` keeps them (ZeRO-2), and so do replicas of experts or of a pipeline, whose gathered weights are
  copies. Replicas of whole weights hold what one process holds: the gradients that travel are copied unit
  by unit, when more than that is free again.
- tensor divides matrices, and with sequence parallelism all activations (arXiv:2205.05198); context
  divides tokens.
- A pipeline rank has its stages' layers; the first stage the embedding, the last the head and the loss
  (both where they are tied). It holds the activations of every micro-batch that the schedule keeps on its
  way. Gradient reduction and freeing of gathered weights wait for a stage's last backward pass
  (parallel/shard.py), so that a sharded stage is there whole, weights and gradients.
The peak is at one of two moments: in the loss, or in the block that is taken back first.
A test compares the sum without `base` with rehearsed ranks (measure/rehearse.py), for fp32 and bf16, whose
numbers are in docs/planner.md.
"""

from dataclasses import replace
from functools import cache
from math import ceil

from bessemer.formulas.layout import Layout, layers_of_stages
from bessemer.formulas.memory import (
    STATE_BYTES,
    Memory,
    Workload,
    activation_bytes,
    base_bytes,
    device_memory,
    ends_per_token,
    kept_per_token,
    loss_bytes,
    made_again_per_token,
    working_bytes,
)
from bessemer.formulas.rank_weights import (
    block_bytes,
    gathered_bytes,
    held_weights,
    kept_copies,
    one_copy,
    rejoins,
    whole_gradients,
)
from bessemer.formulas.schedule import pipeline_order
from bessemer.formulas.shape import ModelShape

_MOST_MICRO_BATCHES = 256  # whose order is made
# Of memory.working_bytes, which is fitted to resident sets: what tensors take. As a block is taken back its
# activations go while their gradients come; the rest is what allocators keep, and counts with the base.
_TENSORS_SHARE = 1 / 3


def rank_memory(shape: ModelShape, work: Workload, layout: Layout, pipeline_rank: int = 0) -> Memory:
    """Bytes at the peak of a step on each rank of that place in the pipeline.

    work.tokens: of whole rows, before the context axis cuts them.
    """
    if layout.world == 1:
        return device_memory(shape, work)
    held = held_weights(shape, layout, pipeline_rank)
    local = held.local(layout)
    spread = layout.tensor * layout.context
    kept, again = _activations(shape, work, layout, pipeline_rank)
    working = ceil(working_bytes(shape, work) / spread)
    tensors = ceil(_TENSORS_SHARE * working)
    saved = local - _second_table(shape, layout, pipeline_rank)
    in_block = Memory(
        weights=4 * local,
        gradients=4 * local,
        optimizer=8 * local,
        casts=_casts(shape, work, layout, pipeline_rank),
        activations=kept + again,
        working=tensors,
        loss=0,
        base=base_bytes(work.kind) + working - tensors,
        gathered=gathered_bytes(held, work, layout) + whole_gradients(held, layout),
        saving=STATE_BYTES * saved if work.saves_async else 0,
    )
    in_loss = in_block
    if layout.num_stages - 1 in layout.stages_of(pipeline_rank):
        loss, head = _loss(shape, work, layout)
        in_loss = replace(in_block, loss=loss, activations=kept, working=0)
        in_block = replace(in_block, loss=head)
    one = one_copy(shape, work, layout) if rejoins(layout) else 0
    gathered = in_block.gathered + block_bytes(held, work, layout)
    in_block = replace(in_block, casts=in_block.casts + one, gathered=gathered)
    return max(in_block, in_loss, key=lambda moment: moment.total)


def layout_memory(shape: ModelShape, work: Workload, layout: Layout) -> list[Memory]:
    """By pipeline rank."""
    return [rank_memory(shape, work, layout, rank) for rank in range(layout.pipeline)]


def rank_activation_bytes(shape: ModelShape, work: Workload, layout: Layout) -> int:
    """Activations on the rank that holds most of them."""
    if layout.world == 1:
        return activation_bytes(shape, work)
    return max(sum(_activations(shape, work, layout, rank)) for rank in range(layout.pipeline))


def _activations(shape: ModelShape, work: Workload, layout: Layout, pipeline_rank: int) -> tuple[int, int]:
    """Bytes (kept from forward to backward, made again for one block)."""
    table, held, any_full = layers_of_stages(shape, layout), 0, False
    for stage, count in _in_flight(layout, pipeline_rank, work.micro_batches):
        layers, full = table[stage], work.recomputed_of(table[stage])
        kept = kept_per_token(shape, work, layers)
        kept += (len(layers) - full) * _received(shape, work, layout)
        ends = ends_per_token(shape) if stage == layout.num_stages - 1 else work.size * shape.hidden
        held, any_full = held + count * (kept + ends), any_full or full > 0
    again = made_again_per_token(shape, work, any_full=any_full)
    tokens = work.tokens / (layout.tensor * layout.context)
    return ceil(tokens * held), ceil(tokens * again)


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
    table, layers = layers_of_stages(shape, layout), 0
    for stage, count in _in_flight(layout, pipeline_rank, work.micro_batches):
        layers += len(table[stage]) * (1 if work.recompute == "full" else count)
    return kept_copies(shape, work, layout, layers)


def _second_table(shape: ModelShape, layout: Layout, pipeline_rank: int) -> int:
    """Parameters of a tied embedding that the last stage holds too; the first one saves it."""
    stages = layout.stages_of(pipeline_rank)
    if not shape.tie_embeddings or layout.num_stages - 1 not in stages or 0 in stages:
        return 0
    return ceil(shape.vocab / layout.tensor) * shape.hidden // (layout.shard * layout.context)


def _loss(shape: ModelShape, work: Workload, layout: Layout) -> tuple[int, int]:
    """Bytes (in the loss, of the head's gradient after it) for the rank's tokens and part of the head."""
    part = replace(shape, vocab=ceil(shape.vocab / layout.tensor))
    tokens = ceil(work.tokens / layout.context)
    return loss_bytes(part, replace(work, tokens=tokens)), 4 * part.vocab * shape.hidden
