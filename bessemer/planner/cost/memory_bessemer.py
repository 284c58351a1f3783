"""Memory of a rank of our own trainer: formulas/memory/rank.py as columns, for a search.

What does not depend on the layout (bytes of a layer and token, elements of a layer on a tensor rank, layers
of stages: cost/memory_shared.py) is taken from there, once for each value that is met; the rest is its
arithmetic again. Of an interleaved pipeline one of several equally full moments is taken, of a V-shaped one
two. Finalists of a search use rank_memory itself. Cost: 100,000 candidates in about a second.
A test compares it with rank_memory on random layouts. Not counted: the copy that an asynchronous save takes,
and, with fewer micro-batches than two a rank, that some gradients are not there at the fullest moment.
"""

from dataclasses import fields, replace
from functools import partial

import numpy as np

from bessemer.formulas.memory.copies import copied_elements, largest_copy
from bessemer.formulas.memory.parts import Memory, Workload, device_memory, ends_per_token
from bessemer.formulas.shape import ModelShape
from bessemer.planner.cost.candidates import RECOMPUTE, Candidates, Floats
from bessemer.planner.cost.memory_adapters import Added
from bessemer.planner.cost.memory_lookups import FP32, balanced_layers
from bessemer.planner.cost.memory_parts import Parts, RankLayers, fullest, is_v_shaped, of_largest, over_ranks
from bessemer.planner.cost.memory_shared import Shared, shared_columns

_NONE = RECOMPUTE.index("none")


def bessemer_parts(shape: ModelShape, context: int, candidates: Candidates, stage: int | None) -> Parts:
    """Compiled, on an accelerator."""
    return _parts(shape, context, candidates, stage, Workload(1, "bf16", "none", True, "gpu"))


def bessemer_cpu_parts(shape: ModelShape, context: int, candidates: Candidates, stage: int | None) -> Parts:
    """Not compiled; the resident set of one process."""
    return _parts(shape, context, candidates, stage, Workload(1, "bf16", "none", False, "cpu"))


def _parts(
    shape: ModelShape, context: int, candidates: Candidates, stage: int | None, work: Workload
) -> Parts:
    columns = shared_columns(shape, context, candidates, work)
    split = partial(balanced_layers, shape)
    of_rank = _rank if shape.adapter is None else _adapted_rank
    parts = over_ranks(shape, candidates, stage, partial(of_rank, columns), split)
    return _with_single(parts, shape, context, candidates, work)


def _rank(columns: Shared, layers: RankLayers) -> Parts:
    """The fuller of its two moments, in the loss and in a block that is taken back."""
    local, whole, ends, block = _params(columns, layers)
    pipeline, shards = columns.candidates.pipeline, columns.shards
    late, tokens = 4 * _late(columns, layers), columns.tokens / columns.spread
    kept = _kept(columns, layers) * tokens
    working = of_largest(columns.back, layers) * tokens
    gathered = _gathered(columns, layers, (local, whole, ends))
    copies = _copies(columns, layers.dense_held, layers.routed_held) * (columns.candidates.recompute == _NONE)
    base = columns.base + np.maximum(0.0, of_largest(columns.working, layers) * tokens - working)
    static = (4 * local, 4 * local - late, 8 * local)
    head = columns.head * layers.has_last
    # The last gradients of the micro-batch before, on their way.
    left = (shards > 1) & (pipeline == 1) & (columns.candidates.micro_batches > 1)
    in_loss = Parts(
        *static,
        kept + 4 * columns.table * left * layers.has_last,
        columns.loss * layers.has_last,
        gathered + copies + np.where(columns.bf16, 2 * head, 0.0),
        base,
    )
    gathers = (shards > 1) & (pipeline == 1) & columns.sharded
    reshards = columns.candidates.zero != 2
    bytes_of = columns.size + np.where(reshards, np.maximum(2 * columns.size, columns.size + 4), 4.0)
    in_block = Parts(
        *static,
        kept + of_largest(columns.again, layers) * tokens + working,
        4 * head,
        gathered + copies + _one_copy(columns, layers) + bytes_of * block * gathers,
        base,
    )
    if not late.any():
        return fullest(in_loss, in_block)
    # On its first stage, when that has gradients: in a block, with none of the head's on their way.
    logits = np.where(late > 0, 0.0, in_block.logits)
    in_first = replace(in_block, gradients=4 * local, logits=logits)
    return fullest(fullest(in_loss, in_block), in_first)


def _adapted_rank(columns: Shared, layers: RankLayers) -> Parts:
    """The same beside adapters: memory_adapters.py."""
    local, whole, ends, block = _params(columns, layers)
    candidates, added = columns.candidates, Added.of(columns.shape, columns.candidates, layers)
    tokens, shards = columns.tokens / columns.spread, columns.shards
    kept, working = _kept(columns, layers) * tokens, of_largest(columns.back, layers) * tokens
    learned = np.ceil(added.elements / shards)
    late = 4 * added.late / shards
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
    base = columns.base + np.maximum(0.0, of_largest(columns.working, layers) * tokens - working)
    left = 4 * added.block * ((shards > 1) & (candidates.pipeline == 1) & (candidates.micro_batches > 1))
    classes: Floats = np.where(layers.has_last, float(columns.shape.labels * columns.shape.hidden), 0.0)
    cast = np.where(columns.bf16, 2.0 * classes, 0.0)
    kept_in_loss, loss = kept + left * layers.has_last, columns.loss * layers.has_last
    in_loss = Parts(*static, kept_in_loss, loss, gathered + cast, base)
    gathers = (shards > 1) & (candidates.pipeline == 1) & columns.sharded
    of_block = np.where(reshards, 2.0, 0.0) * added.frozen_block(block, columns.size) + 12 * added.block
    kept = kept + of_largest(columns.again, layers) * tokens + working
    buffers = gathered + added.unpacked * columns.size + of_block * gathers
    in_block = Parts(*static, kept, 4.0 * classes, buffers, base)
    return fullest(in_loss, in_block)


def _params(columns: Shared, layers: RankLayers) -> tuple[Floats, Floats, Floats, Floats]:
    """(the rank's own, before they are sharded, of them the ends, of the largest block)."""
    ordinary, experts, block = 0.0 * columns.tokens, layers.routed * columns.experts, 0.0 * columns.tokens
    for routed, plain in columns.plain.items():
        count = layers.routed if routed else layers.dense
        ordinary = ordinary + count * plain
        whole = plain + (columns.experts if routed else 0.0)
        block = np.maximum(block, np.where(count > 0, whole, 0.0))
    both = (columns.candidates.pipeline == 1) & columns.shape.tie_embeddings  # two stages have two tables
    positions = columns.shape.positions * columns.shape.hidden
    ends = columns.table * (layers.has_first * 1.0 - both) + positions * layers.has_first
    ends = ends + (columns.head + columns.shape.hidden) * layers.has_last
    ordinary = ordinary + ends
    local = np.ceil(ordinary / columns.shards) + np.ceil(experts / columns.of_experts)
    return local, ordinary + experts, ends, block


def _gathered(columns: Shared, layers: RankLayers, params: tuple[Floats, Floats, Floats]) -> Floats:
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


def _kept(columns: Shared, layers: RankLayers) -> Floats:
    """Bytes of a token, of all micro-batches on their way."""
    hidden = columns.shape.hidden
    kept = layers.dense_held * columns.dense + layers.routed_held * columns.routed
    for routed, longer in columns.longer.items():
        held = layers.routed_held if routed else layers.dense_held
        kept = kept + held * longer * layers.waiting / layers.held
    inner = layers.held - layers.last_held
    kept = kept + (layers.held - layers.first_held) * columns.given
    done = np.where(columns.candidates.recompute == _NONE, 0.0, np.maximum(layers.waiting - 1, 0.0))
    kept = kept + (layers.held - done) * columns.angles - done * columns.size * hidden
    return kept + inner * columns.size * hidden + layers.last_held * ends_per_token(columns.shape)


def _copies(columns: Shared, dense: Floats, routed: Floats) -> Floats:
    """Copies of matrices that autograd keeps, of so many layers."""
    shape, candidates = columns.shape, columns.candidates
    data = candidates.replicate * columns.shards
    cast_before = columns.sharded & (data > candidates.expert) & ~is_v_shaped(candidates)
    elements = 0.0 * columns.size
    for is_routed, count in ((False, dense), (True, routed)):
        cast, experts = copied_elements(shape, 2, routed=is_routed)
        joined, _ = copied_elements(shape, 4, routed=is_routed)
        others = np.where(columns.rejoins, 0.0, np.where(columns.bf16, cast, joined))
        kept = np.where(columns.bf16 & ~cast_before, experts / candidates.expert, 0.0)
        elements = elements + count * (others + kept)
    return columns.size * elements / candidates.tensor


def _one_copy(columns: Shared, layers: RankLayers) -> Floats:
    """Of the block that is taken back: its largest cast or joined matrix, where none is kept, and what would
    have been kept of it, where it is made again."""
    shape, candidates = columns.shape, columns.candidates
    one, none = np.ones_like(columns.size), np.zeros_like(columns.size)
    copies = {routed: _copies(columns, *((none, one) if routed else (one, none))) for routed in columns.plain}
    widths = {
        routed: np.where(
            columns.bf16, largest_copy(shape, 2, routed=routed), largest_copy(shape, 4, routed=routed)
        )
        for routed in columns.plain
    }
    largest = columns.size * of_largest(widths, layers) / candidates.tensor
    again = np.where(candidates.recompute == _NONE, 0.0, of_largest(copies, layers))
    return np.where(columns.rejoins, largest, 0.0) + again


def _late(columns: Shared, layers: RankLayers) -> Floats:
    """Parameters of the rank, once they are sharded, of layers without gradients yet."""
    late = layers.late_routed * columns.experts / columns.of_experts
    for routed, plain in columns.plain.items():
        late = late + (layers.late_routed if routed else layers.late_dense) * plain / columns.shards
    return np.asarray(late)


def _with_single(
    parts: Parts, shape: ModelShape, context: int, candidates: Candidates, work: Workload
) -> Parts:
    """In place of layouts of one process what formulas/memory/parts.py says of that."""
    columns = {field.name: getattr(parts, field.name) for field in fields(parts)}
    for index in np.flatnonzero(candidates.world == 1):
        tokens = int(candidates.micro_batch[index]) * context
        dtype = "fp32" if candidates.precision[index] == FP32 else "bf16"
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
