"""Memory of a device that trains a model, whole or as one rank of a layout: bytes, part by part.

Weights, gradients and AdamW's two moments are fp32: 16 bytes per parameter. With bf16 compute each
matrix is cast when it is used and the copy is kept for the backward pass: 2 bytes more (in fp32 only
the matrices that are joined for use are copied). Beside adapters all other weights are frozen: kept in the
compute type, or packed, without gradients, moments or copies. Activations are those of our layer, counted
from the tensors that autograd keeps (a test counts them again in the real model); the loss never holds the
full logits (model/loss.py).
Source: arXiv:2205.05198 for the method; AdamW and casts: model/decoder.py; MoE and latent attention as
in Megatron-Core's layers. What a layout does to each part: formulas/memory/rank.py.
Symbols: h hidden, a query heads, k key-value heads, d head size, f feed-forward width, e bytes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from bessemer.formulas.adapters import trained_params
from bessemer.formulas.families import traits_of
from bessemer.formulas.memory.adapters import (
    adapter_bytes_per_token,
    inner_elements_per_token,
    whole_results_per_token,
)
from bessemer.formulas.memory.copies import joined_matrices
from bessemer.formulas.parameters import (
    ffn_matrices,
    head_rows,
    matmul_params,
    num_dense_layers,
    total_params,
)
from bessemer.formulas.quantized import packed_model, unpacked_bytes
from bessemer.formulas.shape import ModelShape

_GIB = 2**30
# Logits of one chunk in the loss: 8 Mi elements, not compiled four times in fp32 (logits,
# their exponentials, the targets and what is between) and once as a mask.
_LOSS_CHUNK_ELEMENTS = 8 * 2**20
_LOSS_BYTES_PER_ELEMENT = 17
_LEAST_LOSS_ROWS = 128
STATE_BYTES = 12  # of a parameter in a checkpoint: fp32 weight and AdamW's two moments
# Of one block's activations. Fitted to peak resident sets of four models (docs/planner.md), within 7 %
# but for the smallest.
_WORKING_SHARE = 1.5
# Python and torch themselves: resident on a CPU, the context on an accelerator.
_BASE_BYTES = {"cpu": round(0.5 * _GIB)}
_BASE_BYTES_ACCELERATOR = round(1.0 * _GIB)

Kinds = Sequence[bool]  # of layers: False without a router, True with one


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the peak of a step."""

    weights: int
    gradients: int
    optimizer: int
    casts: int  # bf16 copies of the matrices; in fp32 those of the matrices that are joined; a packed one's
    activations: int
    working: int  # gradients inside the block that is being taken back
    loss: int
    base: int
    gathered: int = 0  # weights and gradients of other shards, while they are here whole
    saving: int = 0  # copy of what this rank saves, while a thread writes it: checkpoint/saver.py
    # formulas/memory/rollout.py:
    asked: int = 0  # a whole model that is asked about answers: a reference, a teacher
    sampling: int = 0  # a whole model to sample with, keys and values

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Workload:
    """What one forward and backward pass is given."""

    tokens: int  # of one micro-batch
    dtype: str  # "bf16" or "fp32"
    recompute: str  # "none", "selective", "full"
    compiled: bool
    kind: str = "cpu"  # of the device
    recompute_layers: int | None = None  # of "full": the first so many of the model; None: all
    micro_batches: int = 1  # of a step; only a pipeline holds several at once
    row_tokens: int = 0  # of a row; 0: the shape's context
    saves_async: bool = False  # and the copy lies in the device's own memory, as on a CPU

    @property
    def size(self) -> int:
        """Bytes of an activation."""
        return 2 if self.dtype == "bf16" else 4

    def recomputed_of(self, layers: range) -> int:
        """How many of these layers, the first ones, are recomputed fully."""
        if self.recompute != "full":
            return 0
        limit = layers.stop if self.recompute_layers is None else self.recompute_layers
        return max(0, min(layers.stop, limit) - layers.start)


def device_memory(shape: ModelShape, work: Workload) -> Memory:
    """Everything on one device, not sharded."""
    params = total_params(shape)
    learned = trained_params(shape, params)
    casts = 2 * all_matrices(shape) if work.dtype == "bf16" else 4 * joined_matrices(shape)
    if shape.adapter is not None:
        casts = unpacked_bytes(shape, work.size)
    return Memory(
        weights=weight_bytes(shape, work.size),
        gradients=4 * learned,
        optimizer=8 * learned,
        casts=casts,
        activations=activation_bytes(shape, work),
        working=working_bytes(shape, work, kinds_of(shape)),
        loss=loss_bytes(shape, work),
        base=base_bytes(work.kind),
        saving=STATE_BYTES * learned if work.saves_async else 0,
    )


def weight_bytes(shape: ModelShape, size: int) -> int:
    """Of all weights as a process holds them. size: of the compute type, in which frozen ones are kept."""
    params = total_params(shape)
    if shape.adapter is None:
        return 4 * params
    return packed_model(shape).frozen_bytes(params, size) + 4 * trained_params(shape, params)


def activation_bytes(shape: ModelShape, work: Workload) -> int:
    """Kept from forward to backward for one micro-batch, all layers and the embedding's output."""
    layers = range(shape.layers)
    kept = kept_per_token(shape, work, layers)
    again = made_again_per_token(shape, work, kinds_of(shape), any_full=work.recomputed_of(layers) > 0)
    return work.tokens * (kept + again + ends_per_token(shape))


def kept_per_token(shape: ModelShape, work: Workload, layers: range) -> int:
    """Bytes that these layers keep; those that are recomputed fully only their input."""
    rest = range(layers.start + work.recomputed_of(layers), layers.stop)
    routed = len([layer for layer in rest if layer >= num_dense_layers(shape)])
    kept = (len(layers) - len(rest)) * work.size * shape.hidden
    for count, is_routed in ((len(rest) - routed, False), (routed, True)):
        kept += count * _layer_kept(shape, work, routed=is_routed) if count else 0
    return kept


def made_again_per_token(shape: ModelShape, work: Workload, kinds: Kinds, *, any_full: bool) -> int:
    """Bytes that are made again in the backward pass, one block at a time."""
    if any_full:
        return _largest_layer_bytes(shape, work, kinds)
    if work.recompute != "selective":
        return 0
    again = [
        layer_bytes_per_token(shape, work.size, work.compiled, routed=routed)
        - selective_bytes_per_token(shape, work.size, routed=routed)
        for routed in kinds
    ]
    return max(0, *again)


def ends_per_token(shape: ModelShape) -> int:
    """Embedding's output, final norm: fp32 inside; what its weight multiplies, where that learns."""
    return 10 * shape.hidden if shape.adapter is None else 6 * shape.hidden


def working_bytes(shape: ModelShape, work: Workload, kinds: Kinds) -> int:
    return round(_WORKING_SHARE * work.tokens * _largest_layer_bytes(shape, work, kinds))


def base_bytes(kind: str) -> int:
    return _BASE_BYTES.get(kind, _BASE_BYTES_ACCELERATOR)


def _largest_layer_bytes(shape: ModelShape, work: Workload, kinds: Kinds) -> int:
    """Per token."""
    return max(layer_bytes_per_token(shape, work.size, work.compiled, routed=routed) for routed in kinds)


def kinds_of(shape: ModelShape, layers: Iterable[int] | None = None) -> Kinds:
    """Whether layers are routed: the kinds that there are among these, or in the whole model."""
    dense = num_dense_layers(shape)
    return sorted({layer >= dense for layer in (range(shape.layers) if layers is None else layers)})


def _layer_kept(shape: ModelShape, work: Workload, *, routed: bool) -> int:
    if work.recompute == "selective":
        return selective_bytes_per_token(shape, work.size, routed=routed)
    return layer_bytes_per_token(shape, work.size, work.compiled, routed=routed)


def selective_bytes_per_token(shape: ModelShape, size: int, *, routed: bool) -> int:
    """One block of which only its input and the outputs of its matmuls are kept: what model/recompute.py
    saves. Norms, rotation, attention and the SwiGLU product are made again (arXiv:2205.05198 section 5).
    """
    a, k, d = shape.heads, shape.kv_heads, shape.head_dim
    attention = (a + 2 * k) * d
    if shape.mla_kv_rank:
        expanded = a * (2 * shape.mla_nope_dim + shape.mla_rope_dim + shape.mla_v_dim)
        attention = shape.mla_q_rank + shape.mla_kv_rank + shape.mla_rope_dim + expanded
    first = ffn_matrices(shape) - 1  # of a feed-forward layer, those before its activation
    if routed:
        inner = shape.experts_per_token * (first * shape.expert_ffn + shape.hidden)
        inner += first * shape.shared_ffn + (shape.hidden if shape.shared_ffn else 0)
    else:
        inner = first * shape.ffn + shape.hidden
    router = 4 * shape.experts if routed else 0
    inner += inner_elements_per_token(shape, routed=routed)
    return size * (2 * shape.hidden + attention + inner) + router


def layer_bytes_per_token(shape: ModelShape, size: int, compiled: bool, *, routed: bool) -> int:
    """One block. Compiled, the norms and the SwiGLU product are made again in the backward pass."""
    norms = (4 * size if compiled else 16 + 2 * size) * shape.hidden + 8
    if shape.qk_norm and not compiled:
        norms += (8 if size == 2 else 4) * (shape.heads + shape.kv_heads) * shape.head_dim
    if traits_of(shape.family).sandwiched:
        # What two more norms were given; what they gave is added to the residual stream and not kept.
        norms += (2 * size if compiled else 16) * shape.hidden + 8
    # Gate, up, silu(gate) and their product; of GELU what it is given and what it gives.
    feed_forward = (2 if not shape.gated else 3 if compiled else 4) * size
    if not routed:
        inner = feed_forward * shape.ffn
    else:
        # The rows of each choice twice: sorted for the experts, and as they come from them.
        experts = shape.experts_per_token * (2 * size * shape.hidden + feed_forward * shape.expert_ffn)
        router = 4 * shape.hidden if size == 2 and not compiled else 0  # its input in fp32
        inner = experts + feed_forward * shape.shared_ffn + 8 * shape.experts + router
    inner += adapter_bytes_per_token(shape, size, compiled, routed=routed)
    return norms + _attention_bytes_per_token(shape, size) + inner


def all_matrices(shape: ModelShape) -> int:
    """Weights that are cast: all but the embedding's look-up and the norms."""
    routed = shape.layers - num_dense_layers(shape)
    one = ffn_matrices(shape) * shape.hidden * shape.expert_ffn
    idle = routed * (shape.experts - shape.experts_per_token) * one
    return matmul_params(shape) + idle


def _attention_bytes_per_token(shape: ModelShape, size: int) -> int:
    """Projections (e·(a+2k)·d, V inside), rotated q and k, output, log-sum-exp."""
    if not shape.mla_kv_rank:
        a, k, d = shape.heads, shape.kv_heads, shape.head_dim
        return size * ((a + k) * d + (a + 2 * k) * d + a * d) + 4 * a
    head = 2 * (shape.mla_nope_dim + shape.mla_rope_dim) + 2 * shape.mla_v_dim
    latents = 2 * shape.mla_q_rank + 2 * shape.mla_kv_rank + shape.mla_rope_dim
    return size * (latents + shape.heads * head) + 4 * shape.heads


def loss_bytes(shape: ModelShape, work: Workload) -> int:
    """Gradient of the head, one chunk of logits, gradient of the hidden states. The head's cast is a cast."""
    chunk = min(loss_rows(head_rows(shape)), work.tokens) * head_rows(shape) * _LOSS_BYTES_PER_ELEMENT
    return head_gradient_bytes(shape) + chunk + work.size * work.tokens * shape.hidden


def loss_rows(vocab: int) -> int:
    """Tokens of a chunk of logits, in the loss (model/loss.py) and wherever it is counted."""
    return max(_LEAST_LOSS_ROWS, 1 << max(0, (_LOSS_CHUNK_ELEMENTS // vocab).bit_length() - 1))


def head_gradient_bytes(shape: ModelShape) -> int:
    """Beside adapters a head of words is frozen; one of classes learns."""
    return 4 * head_rows(shape) * shape.hidden if shape.adapter is None or shape.labels else 0


def received_by_tensor(shape: ModelShape, work: Workload, tensor: int, *, routed: bool) -> int:
    """Of a layer and own token: inputs of attention and feed-forward, whole on each of so many ranks.

    Selective recomputation keeps no norm's result, so there the rank's own part counts too. In place of what
    the last matmuls give, it keeps the sums over ranks; with frozen weights both.
    """
    if work.recompute != "selective" or tensor == 1:
        return 2 * (tensor - 1) * work.size * shape.hidden
    has_last = not routed or shape.shared_ffn > 0  # a matmul beside those of experts
    kept = 2 * tensor + (not has_last)
    if shape.adapter is not None:
        kept = 2 * tensor + 2 + (tensor - 1) * (1 + has_last)
    return kept * work.size * shape.hidden


def exchanged_rows_bytes(shape: ModelShape, work: Workload) -> int:
    """Of a routed layer and token on every tensor rank: what selective recomputation keeps as other expert
    ranks sent it, rows and their results."""
    return 2 * work.size * shape.experts_per_token * shape.hidden if work.recompute == "selective" else 0


def whole_rows_bytes(shape: ModelShape, work: Workload, *, routed: bool) -> int:
    """Of a layer and token, what each tensor rank holds whole: x Aᵀ of adapters, results of DoRA; rows of
    experts, the router's input."""
    results = inner_elements_per_token(shape, routed=routed)
    if work.recompute != "selective":
        results += whole_results_per_token(shape, routed=routed)
    return work.size * results + (_routed_rows_bytes(shape, work) if routed else 0)


def _routed_rows_bytes(shape: ModelShape, work: Workload) -> int:
    if work.recompute == "selective" or shape.adapter is not None:  # frozen experts' rows are not kept
        return work.size * shape.experts_per_token * shape.hidden
    router = 4 * shape.hidden if work.size == 2 and not work.compiled else 0
    return 2 * work.size * shape.experts_per_token * shape.hidden + router


def back_bytes_per_token(shape: ModelShape, size: int, *, routed: bool) -> int:
    """Gradients at the fullest place in a block that is taken back, in SwiGLU, beside all that was kept."""
    if not routed:
        return size * (2 * shape.ffn + 2 * shape.hidden)
    width = shape.experts_per_token * (2 * shape.expert_ffn + 2 * shape.hidden)
    return size * (width + 2 * shape.hidden) + 4 * shape.experts_per_token * shape.hidden
