"""Memory of a rank of our own trainer: formulas/memory/rank.py as columns, for a search.

What does not depend on the layout (bytes of a layer and token, elements of a layer on a tensor rank, layers
of stages: cost/memory_lookups.py) is taken from there, once for each value that is met; the rest is its
arithmetic again. Of an interleaved pipeline one of several equally full moments is taken, of a V-shaped one
two. Finalists of a search use rank_memory itself. Cost: 100,000 candidates in about a second.
A test compares it with rank_memory on random layouts. Not counted: the copy that an asynchronous save takes,
and, with fewer micro-batches than two a rank, that some gradients are not there at the fullest moment.
"""

from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np

from bessemer.formulas.memory.parts import (
    Memory,
    Workload,
    all_matrices,
    back_bytes_per_token,
    base_bytes,
    device_memory,
    ends_per_token,
    joined_matrices,
    kept_per_token,
    made_again_per_token,
    whole_rows_bytes,
    working_bytes,
)
from bessemer.formulas.parameters import ffn_matrices, head_rows, num_dense_layers
from bessemer.formulas.shape import ModelShape
from bessemer.planner.cost.candidates import PRECISIONS, RECOMPUTE, Candidates, Floats
from bessemer.planner.cost.memory_adapters import Added
from bessemer.planner.cost.memory_lookups import balanced_layers, by_kind, by_tensor, loss_column
from bessemer.planner.cost.memory_parts import Bools, Parts, RankLayers, fullest, is_v_shaped, over_ranks

_FP32, _NONE = PRECISIONS.index("fp32"), RECOMPUTE.index("none")


def bessemer_parts(shape: ModelShape, context: int, candidates: Candidates, stage: int | None) -> Parts:
    """Compiled, on an accelerator."""
    return _parts(shape, context, candidates, stage, Workload(1, "bf16", "none", True, "gpu"))


def bessemer_cpu_parts(shape: ModelShape, context: int, candidates: Candidates, stage: int | None) -> Parts:
    """Not compiled; the resident set of one process."""
    return _parts(shape, context, candidates, stage, Workload(1, "bf16", "none", False, "cpu"))


def _parts(
    shape: ModelShape, context: int, candidates: Candidates, stage: int | None, work: Workload
) -> Parts:
    columns = _columns(shape, context, candidates, work)
    split = partial(balanced_layers, shape)
    of_rank = _rank if shape.adapter is None else _adapted_rank
    parts = over_ranks(shape, candidates, stage, partial(of_rank, columns), split)
    return _with_single(parts, shape, context, candidates, work)


@dataclass(frozen=True)
class _Columns:
    """What all pipeline ranks of a candidate share."""

    shape: ModelShape
    candidates: Candidates
    tokens: Floats  # of a micro-batch of whole rows
    spread: Floats  # ranks that its tokens lie on
    size: Floats  # bytes of an activation
    dense: Floats  # bytes kept of a dense layer and token
    routed: Floats
    again: Floats  # made again for one block
    back: Floats  # gradients in the block that is taken back
    working: Floats  # of memory.working_bytes, per token
    plain: dict[bool, Floats]  # elements of a layer but for experts, by whether it is routed
    experts: Floats  # of a routed layer on an expert rank
    table: Floats  # of the embedding
    head: Floats  # of words as large, of classes a few rows
    loss: Floats  # bytes in the loss
    shards: Floats  # ranks that share dense weights
    of_experts: Floats  # ranks that share the same experts
    sharded: Bools
    rejoins: Bools
    base: float


def _columns(shape: ModelShape, context: int, candidates: Candidates, work: Workload) -> _Columns:
    tokens = (candidates.micro_batch * context).astype(float)
    size = np.where(candidates.precision == _FP32, 4.0, 2.0)
    of_kind = partial(by_kind, candidates, work)
    limit = num_dense_layers(shape)
    kinds = [routed for routed, count in ((False, limit), (True, shape.layers - limit)) if count]
    shards = candidates.shard * candidates.context
    data = candidates.replicate * shards
    repeats = (candidates.replicate > 1) & (shards * candidates.expert * candidates.pipeline == 1)
    sharded = (data > 1) & ~repeats
    inner = np.where(shards % candidates.expert == 0, shards, data) // candidates.expert
    plain = {routed: by_tensor(candidates, shape, routed)[0] for routed in kinds}
    experts = by_tensor(candidates, shape, True)[1] if True in kinds else 0.0 * tokens
    received = _received(shape, candidates, size)
    zero = 0.0 * size
    table = np.ceil(shape.vocab / candidates.tensor) * shape.hidden
    return _Columns(
        shape=shape,
        candidates=candidates,
        tokens=tokens,
        spread=(candidates.tensor * candidates.context).astype(float),
        size=size,
        dense=received + _layer_kept(shape, candidates, work, 0) if False in kinds else zero,
        routed=received + _layer_kept(shape, candidates, work, limit) if True in kinds else zero,
        again=of_kind(lambda kind: made_again_per_token(shape, kind, any_full=kind.recompute == "full")),
        back=of_kind(lambda kind: max(back_bytes_per_token(shape, kind.size, routed=it) for it in kinds)),
        working=of_kind(lambda kind: working_bytes(shape, kind)),
        plain=plain,
        experts=np.ceil(experts / candidates.expert),
        table=table,
        head=_head(shape, table),
        loss=loss_column(shape, tokens, candidates),
        shards=shards.astype(float),
        of_experts=np.maximum(inner, 1).astype(float),
        sharded=sharded,
        rejoins=sharded | (candidates.pipeline > 1),
        base=float(base_bytes(work.kind)),
    )


def _layer_kept(shape: ModelShape, candidates: Candidates, work: Workload, layer: int) -> Floats:
    """Bytes of a token in this layer; what `_received` counts comes on top."""
    routed = layer >= num_dense_layers(shape)
    kept = by_kind(candidates, work, lambda kind: kept_per_token(shape, kind, range(layer, layer + 1)))
    whole = by_kind(
        candidates,
        work,
        lambda kind: 0 if kind.recompute == "full" else whole_rows_bytes(shape, kind, routed=routed),
    )
    return kept + (candidates.tensor - 1) * whole


def _head(shape: ModelShape, table: Floats) -> Floats:
    """One of classes is whole on every rank; beside adapters it learns, and counts with them."""
    if not shape.labels:
        return table
    return np.full_like(table, shape.labels * shape.hidden if shape.adapter is None else 0)


def _rank(columns: _Columns, layers: RankLayers) -> Parts:
    """The fuller of its two moments, in the loss and in a block that is taken back."""
    local, whole, ends, block = _params(columns, layers)
    pipeline, shards = columns.candidates.pipeline, columns.shards
    late = 4 * local / whole * (whole - ends) * layers.late / np.maximum(layers.dense + layers.routed, 1)
    kept = _kept(columns, layers) * columns.tokens / columns.spread
    working = columns.back * columns.tokens / columns.spread
    gathered = _gathered(columns, layers, (local, whole, ends))
    copies = _copies(columns, layers.dense_held + layers.routed_held) * (
        columns.candidates.recompute == _NONE
    )
    base = columns.base + np.maximum(0.0, columns.working * columns.tokens / columns.spread - working)
    static = (4 * local, 4 * local - late, 8 * local)
    head = columns.head * layers.has_last
    # The last gradients of the micro-batch before, on their way.
    left = (shards > 1) & (pipeline == 1) & (columns.candidates.micro_batches > 1)
    in_loss = Parts(
        *static,
        kept + 4 * columns.table * left * layers.has_last,
        columns.loss * layers.has_last,
        gathered + copies + np.where(columns.size == 2, 2 * head, 0.0),
        base,
    )
    gathers = (shards > 1) & (pipeline == 1) & columns.sharded
    reshards = columns.candidates.zero != 2
    bytes_of = columns.size + np.where(reshards, np.maximum(2 * columns.size, columns.size + 4), 4.0)
    in_block = Parts(
        *static,
        kept + columns.again * columns.tokens / columns.spread + working,
        4 * head,
        gathered + copies + _one_copy(columns) + bytes_of * block * gathers,
        base,
    )
    if not layers.late.any():
        return fullest(in_loss, in_block)
    # On its first stage, when that has gradients: in a block, with none of the head's on their way.
    logits = np.where(layers.late > 0, 0.0, in_block.logits)
    in_first = replace(in_block, gradients=4 * local, logits=logits)
    return fullest(fullest(in_loss, in_block), in_first)


def _adapted_rank(columns: _Columns, layers: RankLayers) -> Parts:
    """The same beside adapters: memory_adapters.py."""
    local, whole, ends, block = _params(columns, layers)
    candidates, added = columns.candidates, Added.of(columns.shape, columns.candidates, layers)
    tokens, shards = columns.tokens / columns.spread, columns.shards
    kept, working = _kept(columns, layers) * tokens, columns.back * tokens
    learned = np.ceil(added.elements / shards)
    late = 4 * learned * layers.late / np.maximum(layers.dense + layers.routed, 1)
    reshards = (candidates.zero != 2) & (candidates.pipeline == 1) & (shards > 1)
    others = candidates.replicate * shards > candidates.expert
    blocks = whole - ends - np.where(others, 0.0, layers.routed * columns.experts)
    travels = np.where(is_v_shaped(candidates), 4.0, columns.size) * added.elements
    root = columns.size * (columns.head + columns.shape.hidden) * layers.has_last
    gathered = np.where(reshards, root, added.frozen(ends + blocks, columns.size) + travels)
    waits = (candidates.pipeline > 1) | (shards == 1)
    gathered = columns.sharded * (gathered + np.where(waits, 4 * (added.elements - learned), 0.0))
    weights = added.frozen(local, columns.size, shards) + 4 * learned
    static = (weights, 4 * learned - late, 8 * learned)
    base = columns.base + np.maximum(0.0, columns.working * tokens - working)
    left = 4 * added.block * ((shards > 1) & (candidates.pipeline == 1) & (candidates.micro_batches > 1))
    classes: Floats = np.where(layers.has_last, float(columns.shape.labels * columns.shape.hidden), 0.0)
    cast = np.where(columns.size == 2, 2.0 * classes, 0.0)
    kept_in_loss, loss = kept + left * layers.has_last, columns.loss * layers.has_last
    in_loss = Parts(*static, kept_in_loss, loss, gathered + cast, base)
    gathers = (shards > 1) & (candidates.pipeline == 1) & columns.sharded
    of_block = np.where(reshards, 2.0, 0.0) * added.frozen_block(block, columns.size) + 12 * added.block
    kept = kept + columns.again * tokens + working
    buffers = gathered + added.unpacked * columns.size + of_block * gathers
    in_block = Parts(*static, kept, 4.0 * classes, buffers, base)
    return fullest(in_loss, in_block)


def _params(columns: _Columns, layers: RankLayers) -> tuple[Floats, Floats, Floats, Floats]:
    """(the rank's own, before they are sharded, of them the ends, of the largest block)."""
    ordinary, experts, block = 0.0 * columns.tokens, layers.routed * columns.experts, 0.0 * columns.tokens
    for routed, plain in columns.plain.items():
        count = layers.routed if routed else layers.dense
        ordinary = ordinary + count * plain
        whole = plain + (columns.experts if routed else 0.0)
        block = np.maximum(block, np.where(count > 0, whole, 0.0))
    both = layers.has_first & layers.has_last & columns.shape.tie_embeddings
    positions = columns.shape.positions * columns.shape.hidden
    ends = columns.table * (layers.has_first * 1.0 - both) + positions * layers.has_first
    ends = ends + (columns.head + columns.shape.hidden) * layers.has_last
    ordinary = ordinary + ends
    local = np.ceil(ordinary / columns.shards) + np.ceil(experts / columns.of_experts)
    return local, ordinary + experts, ends, block


def _gathered(columns: _Columns, layers: RankLayers, params: tuple[Floats, Floats, Floats]) -> Floats:
    """Beside the rank's own shards during a step, and whole gradients that wait for its end."""
    local, whole, ends = params
    candidates = columns.candidates
    pipeline, data = candidates.pipeline, candidates.replicate * columns.shards
    root = (columns.head + columns.shape.hidden) * layers.has_last
    others = data > candidates.expert  # who have parts of the same experts
    blocks = whole - ends - np.where(others, 0.0, layers.routed * columns.experts)
    size = np.where(is_v_shaped(candidates), 4.0, columns.size)
    reshards = (candidates.zero != 2) & (pipeline == 1) & (columns.shards > 1)
    gathered = np.where(reshards, 4 * root, 4 * ends + size * blocks)
    waits = (pipeline > 1) | (columns.shards == 1)
    return columns.sharded * (gathered + np.where(waits, 4 * (whole - local), 0.0))


def _kept(columns: _Columns, layers: RankLayers) -> Floats:
    """Bytes of a token, of all micro-batches on their way."""
    hidden = columns.shape.hidden
    kept = layers.dense_held * columns.dense + layers.routed_held * columns.routed
    inner = layers.held - layers.last_held
    return kept + inner * columns.size * hidden + layers.last_held * ends_per_token(columns.shape)


def _copies(columns: _Columns, layers: Floats) -> Floats:
    """Copies of matrices that autograd keeps, of so many layers."""
    shape, candidates = columns.shape, columns.candidates
    bf16 = columns.size == 2
    routed = shape.layers - num_dense_layers(shape)
    one = ffn_matrices(shape) * shape.hidden * shape.expert_ffn
    experts = routed * shape.experts * one / candidates.expert
    data = candidates.replicate * columns.shards
    cast_before = columns.sharded & (data > candidates.expert) & ~is_v_shaped(candidates)
    kept = np.where(bf16 & ~cast_before, experts, 0.0)
    ordinary = all_matrices(shape) - head_rows(shape) * shape.hidden - experts * candidates.expert
    others = np.where(columns.rejoins, 0.0, np.where(bf16, ordinary, joined_matrices(shape)))
    return columns.size * (kept + others) * layers / shape.layers / candidates.tensor


def _one_copy(columns: _Columns) -> Floats:
    """Of the block that is taken back: its largest cast or joined matrix; all where they were not kept."""
    shape, candidates = columns.shape, columns.candidates
    queries = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    ffn = shape.shared_ffn if shape.experts and not num_dense_layers(shape) else shape.ffn
    widest = max(queries, (ffn_matrices(shape) - 1) * ffn)
    largest = columns.size * shape.hidden * widest / candidates.tensor
    again = np.where(candidates.recompute == _NONE, 0.0, _copies(columns, np.ones(len(candidates))))
    return np.where(columns.rejoins, largest, again)


def _received(shape: ModelShape, candidates: Candidates, size: Floats) -> Floats:
    """Of a layer and token that keeps anything: what other ranks sent (formulas/memory/rank.py)."""
    kept = 2 * (candidates.tensor - 1) * size * shape.hidden
    width, own = 2 * shape.kv_heads * shape.head_dim, (shape.heads + 3 * shape.kv_heads) * shape.head_dim
    if shape.mla_kv_rank:
        width = shape.heads * (shape.mla_nope_dim + shape.mla_rope_dim + shape.mla_v_dim)
        own = 0
    instead = np.where(candidates.recompute == RECOMPUTE.index("selective"), 0, own)
    gathered = size * (candidates.context * width - instead)
    kept = kept + np.where(candidates.context > 1, gathered, 0.0)
    return np.where(candidates.recompute == RECOMPUTE.index("full"), 0.0, kept)


def _with_single(
    parts: Parts, shape: ModelShape, context: int, candidates: Candidates, work: Workload
) -> Parts:
    """In place of layouts of one process what formulas/memory/parts.py says of that."""
    columns = {field.name: getattr(parts, field.name) for field in fields(parts)}
    for index in np.flatnonzero(candidates.world == 1):
        tokens = int(candidates.micro_batch[index]) * context
        dtype = "fp32" if candidates.precision[index] == _FP32 else "bf16"
        recompute = RECOMPUTE[candidates.recompute[index]]
        memory = device_memory(shape, replace(work, tokens=tokens, dtype=dtype, recompute=recompute))
        for name, value in _as_parts(memory).items():
            columns[name][index] = value
    return Parts(**columns)


def _as_parts(memory: Memory) -> dict[str, int]:
    return {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "activations": memory.activations + memory.working,
        "logits": memory.loss,
        "buffers": memory.casts + memory.gathered,
        "base": memory.base,
    }
