"""What all pipeline ranks of a layout share of our trainer's memory: columns that cost/memory_bessemer.py
makes each rank of.

Sizes of a token, of a layer and of the ends, from the scalar formulas (formulas/memory), once for each value
that is met: cost/memory_lookups.py.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from bessemer.formulas.memory.parts import (
    Workload,
    back_bytes_per_token,
    base_bytes,
    exchanged_rows_bytes,
    kept_per_token,
    kinds_of,
    made_again_per_token,
    received_by_tensor,
    whole_rows_bytes,
    working_bytes,
)
from bessemer.formulas.memory.stage_ends import angle_bytes, given_bytes
from bessemer.formulas.memory.waiting import kept_longer
from bessemer.formulas.parameters import num_dense_layers
from bessemer.formulas.shape import ModelShape
from bessemer.planner.cost.candidates import RECOMPUTE, Candidates, Floats
from bessemer.planner.cost.memory_lookups import FP32, by_kind, by_kind_and_degree, by_tensor, loss_column
from bessemer.planner.cost.memory_parts import Bools


@dataclass(frozen=True)
class Shared:
    """What all pipeline ranks of a candidate share."""

    shape: ModelShape
    candidates: Candidates
    tokens: Floats  # of a micro-batch of whole rows
    spread: Floats  # ranks that its tokens lie on
    size: Floats  # bytes of an activation
    dense: Floats  # bytes kept of a dense layer and token
    routed: Floats
    # By whether layers are routed, of the kinds that the model has:
    again: dict[bool, Floats]  # bytes made again for one block and token
    back: dict[bool, Floats]  # gradients in the block that is taken back
    given: Floats  # bytes of a token from the stage before that its layers do not keep
    angles: Floats  # of a token and stage
    longer: dict[bool, Floats]  # more that a recomputed layer and token keeps while its weights wait
    working: dict[bool, Floats]  # of memory.working_bytes, per token
    plain: dict[bool, Floats]  # elements of a layer but for experts
    experts: Floats  # of a routed layer on an expert rank
    table: Floats  # of the embedding
    head: Floats  # of words as large, of classes a few rows
    loss: Floats  # bytes in the loss
    shards: Floats  # ranks that share dense weights
    of_experts: Floats  # ranks that share the same experts
    sharded: Bools
    rejoins: Bools
    base: float

    @property
    def bf16(self) -> Bools:
        return self.size == 2


def shared_columns(shape: ModelShape, context: int, candidates: Candidates, work: Workload) -> Shared:
    tokens = (candidates.micro_batch * context).astype(float)
    size = np.where(candidates.precision == FP32, 4.0, 2.0)
    of_kind, of_both = (partial(each, candidates, work) for each in (by_kind, by_kind_and_degree))
    limit, kinds = num_dense_layers(shape), kinds_of(shape)
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
    return Shared(
        shape=shape,
        candidates=candidates,
        tokens=tokens,
        spread=(candidates.tensor * candidates.context).astype(float),
        size=size,
        dense=received + _layer_kept(shape, candidates, work, 0) if False in kinds else zero,
        routed=received + _layer_kept(shape, candidates, work, limit) if True in kinds else zero,
        again={routed: of_kind(partial(_made_again, shape, routed)) for routed in kinds},
        back={routed: of_kind(partial(_back, shape, routed)) for routed in kinds},
        given=of_kind(partial(given_bytes, shape)),
        angles=np.asarray(candidates.tensor * (candidates.pipeline > 1) * angle_bytes(shape), float),
        longer={routed: of_both(partial(kept_longer, shape, routed=routed)) for routed in kinds},
        working={routed: of_kind(partial(_working, shape, routed)) for routed in kinds},
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


def _made_again(shape: ModelShape, routed: bool, kind: Workload) -> int:
    return made_again_per_token(shape, kind, [routed], any_full=kind.recompute == "full")


def _back(shape: ModelShape, routed: bool, kind: Workload) -> int:
    return back_bytes_per_token(shape, kind.size, routed=routed)


def _working(shape: ModelShape, routed: bool, kind: Workload) -> int:
    return working_bytes(shape, kind, [routed])


def _layer_kept(shape: ModelShape, candidates: Candidates, work: Workload, layer: int) -> Floats:
    """Bytes of a token in this layer; what `_received` counts comes on top."""
    routed = layer >= num_dense_layers(shape)
    kept = by_kind(candidates, work, lambda kind: kept_per_token(shape, kind, range(layer, layer + 1)))
    whole = by_kind(
        candidates,
        work,
        lambda kind: 0 if kind.recompute == "full" else whole_rows_bytes(shape, kind, routed=routed),
    )
    received = by_kind_and_degree(candidates, work, partial(received_by_tensor, shape, routed=routed))
    kept = kept + np.where(candidates.recompute == RECOMPUTE.index("full"), 0.0, received)
    kept = kept + (candidates.tensor - 1) * whole
    if not routed:
        return kept
    rows = by_kind(candidates, work, partial(exchanged_rows_bytes, shape))
    return kept + candidates.tensor * np.where(candidates.expert > 1, rows, 0.0)


def _head(shape: ModelShape, table: Floats) -> Floats:
    """One of classes is whole on every rank; beside adapters it learns, and counts with them."""
    if not shape.labels:
        return table
    return np.full_like(table, shape.labels * shape.hidden if shape.adapter is None else 0)


def _received(shape: ModelShape, candidates: Candidates, size: Floats) -> Floats:
    """Of a layer and token that keeps anything: what other context ranks sent (formulas/memory/rank.py)."""
    width, own = 2 * shape.kv_heads * shape.head_dim, (shape.heads + 3 * shape.kv_heads) * shape.head_dim
    if shape.mla_kv_rank:
        width = shape.heads * (shape.mla_nope_dim + shape.mla_rope_dim + shape.mla_v_dim)
        own = 0
    instead = np.where(candidates.recompute == RECOMPUTE.index("selective"), 0, own)
    gathered = size * (candidates.context * width - instead)
    kept = np.where(candidates.context > 1, gathered, 0.0)
    return np.where(candidates.recompute == RECOMPUTE.index("full"), 0.0, kept)
