"""Memory of a rank under FSDP: torchtitan (FSDP2, sequence-parallel tensor axis) and llm-foundry (FSDP1).

Shards are fp32: weights 4 bytes, gradients 4, moments 8 (arXiv:2304.11277). Beside them are, at the peak,
units that are there whole in bf16: the root's (embedding, final norm and head, from its forward pass to the
end of the step), the block that computes and the one that is fetched; and in the backward pass a block's
gradients, in bf16 and once more in fp32 as they are scattered. Kept from the forward pass (ZeRO-2: FSDP2's
reshard_after_forward=False, FSDP1's SHARD_GRAD_OP) all units are there whole in bf16, and only then: what a
rank holds are shards all the same. In a pipeline a stage is there whole until the step's end, with fp32
gradients that are added up over micro-batches.

The loss is fused or compiled, and holds logits and their gradient in bf16. `eager_fsdp_parts` has torch's
own, as torchtitan had it until 2025: beside bf16 logits their log-softmax, the gradient of that and of the
logits in fp32; one more where the vocabulary is split (loss_parallel's backward pass).
Recompute "selective" is torchtitan's: outputs of attention and of every second matmul are kept.
Error: tests/planner/cost/test_fsdp_memory.py, against what torchtitan published.
"""

from dataclasses import dataclass

import numpy as np

from bessemer.formulas.parameters import ffn_matrices
from bessemer.formulas.shape import ModelShape
from bessemer.hardware import GIB
from bessemer.planner.cost.candidates import PRECISIONS, RECOMPUTE, Candidates, Floats
from bessemer.planner.cost.memory_layers import layer_weights
from bessemer.planner.cost.memory_parts import Bools, Parts, RankLayers, fullest, over_ranks

_EAGER_LOSS_BYTES, _SPLIT_LOSS_BYTES = 14.0, 4.0  # of a logit
_FUSED_LOSS_BYTES = 4.0
_WORKSPACES = 0.1 * GIB
_FULL, _SELECTIVE = RECOMPUTE.index("full"), RECOMPUTE.index("selective")


def fsdp_parts(shape: ModelShape, context: int, candidates: Candidates, stage: int | None) -> Parts:
    loss_bytes = np.full(len(candidates), _FUSED_LOSS_BYTES)
    columns = _columns(shape, context, candidates, loss_bytes)
    return over_ranks(shape, candidates, stage, lambda layers: _rank(columns, layers))


def eager_fsdp_parts(shape: ModelShape, context: int, candidates: Candidates, stage: int | None) -> Parts:
    split = np.where(candidates.tensor > 1, _SPLIT_LOSS_BYTES, 0.0)
    columns = _columns(shape, context, candidates, _EAGER_LOSS_BYTES + split)
    return over_ranks(shape, candidates, stage, lambda layers: _rank(columns, layers))


@dataclass(frozen=True)
class _Columns:
    """What all pipeline ranks of a candidate share."""

    shape: ModelShape
    candidates: Candidates
    tensor: Floats
    tokens: Floats  # of a micro-batch on a context rank
    size: Floats  # bytes of an activation
    kept: dict[bool, Floats]  # bytes of a layer and token, by whether it is routed
    whole: dict[bool, Floats]  # the same, nothing recomputed
    split: dict[bool, Floats]  # parameters of a layer but for experts, on a tensor rank
    experts: Floats  # of a routed layer
    table: Floats  # of the embedding, or the head
    loss_bytes: Floats  # of a logit


def _columns(shape: ModelShape, context: int, candidates: Candidates, loss_bytes: Floats) -> _Columns:
    tensor = candidates.tensor.astype(float)
    size = np.where(np.array(PRECISIONS)[candidates.precision] == "fp32", 4.0, 2.0)
    kinds = (False, True) if shape.experts else (False,)
    whole = {routed: _layer_bytes(shape, size, tensor, routed) for routed in kinds}
    selective = {routed: _selective_bytes(shape, size, tensor, routed) for routed in kinds}
    full = size * shape.hidden / tensor
    kept = {
        routed: np.select([candidates.recompute == _FULL, candidates.recompute == _SELECTIVE],
                          [full, selective[routed]], whole[routed])
        for routed in kinds
    }  # fmt: skip
    weights = {
        routed: layer_weights(shape, candidates.tensor, candidates.expert, routed=routed) for routed in kinds
    }
    return _Columns(
        shape=shape,
        candidates=candidates,
        tensor=tensor,
        tokens=candidates.micro_batch * context / candidates.context,
        size=size,
        kept=kept,
        whole=whole,
        split={routed: weights[routed].split + weights[routed].repeated for routed in kinds},
        experts=weights[True].experts if shape.experts else 0.0 * tensor,
        table=np.ceil(shape.vocab / tensor) * shape.hidden,
        loss_bytes=loss_bytes,
    )


def _rank(columns: _Columns, layers: RankLayers) -> Parts:
    static, gathered = _static(columns, layers)
    kept, one = _activations(columns, layers)
    block = _block(columns, layers)
    root = columns.size * columns.table * (layers.has_first * 1.0 + layers.has_last)
    alone = _sharded(columns.candidates) & (columns.candidates.pipeline == 1)
    fetches = alone & (columns.candidates.zero >= 3)
    fetched = np.where(fetches, root + 2 * columns.size * block, gathered) + _WORKSPACES
    # In bf16 as autograd makes them, and in fp32 on their way.
    leaving = np.where(alone, (columns.size + 4.0) * block + root, 0.0)
    none = 0.0 * kept
    in_layer = Parts(*static, kept + one, none, fetched + leaving)
    hidden = columns.size * columns.shape.hidden * columns.tokens * layers.has_last
    split = 2.0 / columns.tensor + 1.0 + (columns.tensor > 1)  # norm's ends; whole input and its gradient
    logits = columns.loss_bytes * columns.tokens * columns.table / columns.shape.hidden * layers.has_last
    logits = logits * (1 + columns.shape.mtp_layers)
    in_loss = Parts(*static, kept + hidden * split, logits, fetched)
    return fullest(in_layer, in_loss)


def _sharded(candidates: Candidates) -> Bools:
    """Whether weights and gradients are shards, but where they are used."""
    return (candidates.zero >= 2) & (candidates.shard * candidates.context > 1)


def _static(columns: _Columns, layers: RankLayers) -> tuple[tuple[Floats, Floats, Floats], Floats]:
    """((weights, gradients, optimizer), what is whole beside them in a pipeline or without shards)."""
    candidates, shape = columns.candidates, columns.shape
    tied_alone = shape.tie_embeddings * (layers.has_first & layers.has_last)
    ends = columns.table * (layers.has_first * 1.0 + layers.has_last - tied_alone)
    plain = layers.dense * columns.split[False] + ends + layers.has_first * shape.positions * shape.hidden
    experts = 0.0 * plain
    if shape.experts:
        routed = layers.routed + layers.has_last * shape.mtp_layers
        plain, experts = plain + routed * columns.split[True], routed * columns.experts
    shards = (candidates.shard * candidates.context).astype(float)
    # Experts lie apart on the expert axis, and the rest of the shard group divides them.
    rest = np.maximum(1.0, shards / np.maximum(candidates.expert, 1))
    held = []
    for each, level in ((4.0, 2), (4.0, 2), (8.0, 1)):
        divided = candidates.zero >= level
        held.append(each * (plain / np.where(divided, shards, 1.0) + experts / np.where(divided, rest, 1.0)))
    whole = plain + experts
    waiting = _sharded(candidates) & (candidates.pipeline > 1)
    # Gathered and kept, or whole fp32 weights that are cast for use, each once; gradients that wait.
    is_kept = waiting | ~_sharded(candidates) | (candidates.zero < 3)
    kept = np.where(is_kept, columns.size * whole, 0.0)
    return (held[0], held[1], held[2]), kept + np.where(waiting, 4.0 * whole, 0.0)


def _activations(columns: _Columns, layers: RankLayers) -> tuple[Floats, Floats]:
    """Bytes (kept from forward to backward, of the layer that is taken back)."""
    kept = layers.dense_held * columns.kept[False]
    one = np.where(layers.dense > 0, columns.whole[False], 0.0)
    if columns.shape.experts:
        deeper = layers.has_last * columns.shape.mtp_layers * layers.last_held
        kept = kept + (layers.routed_held + deeper) * columns.kept[True]
        one = np.maximum(one, np.where(layers.routed > 0, columns.whole[True], 0.0))
    again = np.where(columns.candidates.recompute > 0, one, 0.0)
    # The gradients of what a layer keeps come as that goes; a third of it is in both.
    return kept * columns.tokens, (again + one / 3) * columns.tokens


def _block(columns: _Columns, layers: RankLayers) -> Floats:
    """Parameters of the largest unit."""
    block = np.where(layers.dense > 0, columns.split[False], 0.0)
    if columns.shape.experts:
        block = np.maximum(block, np.where(layers.routed > 0, columns.split[True] + columns.experts, 0.0))
    return block


def _layer_bytes(shape: ModelShape, size: Floats, tensor: Floats, routed: bool) -> Floats:
    """Norms, attention (queries, keys, values, output) and feed-forward, of one token. What enters matmuls is
    kept whole, as it was gathered."""
    attention = size * (_projections(shape) + _output(shape)) + 4.0 * shape.heads
    inner = size * _inner_width(shape, routed, ffn_matrices(shape))
    return (2 * size * shape.hidden + attention + inner) / tensor + 2 * size * shape.hidden


def _selective_bytes(shape: ModelShape, size: Floats, tensor: Floats, routed: bool) -> Floats:
    """The layer's input, attention's output, and every second matmul's."""
    if shape.mla_kv_rank:
        projected = _projections(shape) / 2
    else:
        projected = (shape.heads + shape.kv_heads) * shape.head_dim
    attention = size * (projected + _output(shape)) + 4.0 * shape.heads
    return (2 * size * shape.hidden + attention + size * _inner_width(shape, routed, 1)) / tensor


def _projections(shape: ModelShape) -> int:
    if not shape.mla_kv_rank:
        return (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    keys = shape.mla_nope_dim + shape.mla_rope_dim
    low = 2 * (shape.mla_q_rank + shape.mla_kv_rank) + shape.mla_rope_dim
    return shape.heads * (2 * keys + shape.mla_v_dim) + low


def _output(shape: ModelShape) -> int:
    return shape.heads * (shape.mla_v_dim if shape.mla_kv_rank else shape.head_dim)


def _inner_width(shape: ModelShape, routed: bool, widths: int) -> int:
    """Elements of a feed-forward block, of which so many of its width are kept."""
    if not routed:
        return widths * shape.ffn
    chosen = shape.experts_per_token * (shape.hidden + widths * shape.expert_ffn)
    return chosen + widths * shape.shared_ffn + 4 * shape.experts
