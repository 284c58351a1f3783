"""Memory of one device that trains the whole model: what is held, in bytes, part by part.

Weights, gradients and AdamW's two moments are fp32: 16 bytes per parameter. With bf16 compute each
matrix is cast when it is used and the copy is kept for the backward pass: 2 bytes more (in fp32 only
the matrices that are joined for use are copied). Activations are those of our layer, counted from the
tensors that autograd keeps (a test counts them again in the real model); the loss never holds the full
logits (model/loss.py).
Source: arXiv:2205.05198 for the method; AdamW and casts: model/decoder.py; MoE and latent attention as
in Megatron-Core's layers.
Symbols: h hidden, a query heads, k key-value heads, d head size, f feed-forward width, e bytes.
"""

from dataclasses import dataclass, fields

from bessemer.formulas.parameters import matmul_params, num_dense_layers, total_params
from bessemer.formulas.shape import ModelShape

_GIB = 2**30
# Logits of one chunk in the loss: model/loss.py takes 8 Mi elements, in fp32 twice and in bf16 twice.
_LOSS_CHUNK_ELEMENTS = 8 * 2**20
_LOSS_BYTES_PER_ELEMENT = 14
# Of one block's activations. Fitted to peak resident sets of four models (docs/planner.md), within 7 %
# but for the smallest.
_WORKING_SHARE = 1.5
# Python and torch themselves: resident on a CPU, the context on an accelerator.
_BASE_BYTES = {"cpu": round(0.5 * _GIB)}
_BASE_BYTES_ACCELERATOR = round(1.0 * _GIB)


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the peak of a step."""

    weights: int
    gradients: int
    optimizer: int
    casts: int  # bf16 copies of the matrices; in fp32 those of the matrices that are joined
    activations: int
    working: int  # gradients inside the block that is being taken back
    loss: int
    base: int

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


def device_memory(shape: ModelShape, work: Workload) -> Memory:
    """Everything on one device, not sharded."""
    params = total_params(shape)
    return Memory(
        weights=4 * params,
        gradients=4 * params,
        optimizer=8 * params,
        casts=2 * all_matrices(shape) if work.dtype == "bf16" else 4 * _joined(shape),
        activations=activation_bytes(shape, work),
        working=round(_WORKING_SHARE * work.tokens * _largest_layer_bytes(shape, work)),
        loss=_loss_bytes(shape, work),
        base=_BASE_BYTES.get(work.kind, _BASE_BYTES_ACCELERATOR),
    )


def activation_bytes(shape: ModelShape, work: Workload) -> int:
    """Kept from forward to backward for one micro-batch, all layers and the embedding's output."""
    size = 2 if work.dtype == "bf16" else 4
    dense, layers = num_dense_layers(shape), shape.layers
    per_dense = layer_bytes_per_token(shape, size, work.compiled, routed=False)
    per_routed = layer_bytes_per_token(shape, size, work.compiled, routed=True) if layers > dense else 0
    kept = dense * per_dense + (layers - dense) * per_routed
    if work.recompute == "full":  # each block's input, and one block made again
        kept = layers * size * shape.hidden + _largest_layer_bytes(shape, work)
    ends = 10 * shape.hidden  # embedding's output, final norm: fp32 inside
    return work.tokens * (kept + ends)


def _largest_layer_bytes(shape: ModelShape, work: Workload) -> int:
    """Per token."""
    size, dense = 2 if work.dtype == "bf16" else 4, num_dense_layers(shape)
    kinds = [routed for routed, count in ((False, dense), (True, shape.layers - dense)) if count]
    return max(layer_bytes_per_token(shape, size, work.compiled, routed=routed) for routed in kinds)


def layer_bytes_per_token(shape: ModelShape, size: int, compiled: bool, *, routed: bool) -> int:
    """One block. Compiled, the norms and the SwiGLU product are made again in the backward pass."""
    norms = (4 * size if compiled else 16 + 2 * size) * shape.hidden + 8
    feed_forward = (3 if compiled else 4) * size
    if not routed:
        inner = feed_forward * shape.ffn
    else:
        experts = shape.experts_per_token * (size * shape.hidden + feed_forward * shape.expert_ffn)
        inner = experts + feed_forward * shape.shared_ffn + 8 * shape.experts
    return norms + _attention_bytes_per_token(shape, size) + inner


def all_matrices(shape: ModelShape) -> int:
    """Weights that are cast: all but the embedding's look-up and the norms."""
    routed = shape.layers - num_dense_layers(shape)
    idle = routed * (shape.experts - shape.experts_per_token) * 3 * shape.hidden * shape.expert_ffn
    return matmul_params(shape) + idle


def _joined(shape: ModelShape) -> int:
    """Weights that are copied into one matrix before use: query, key and value; gate and up."""
    queries_keys_values = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    if shape.mla_kv_rank or shape.experts:
        return 0
    return shape.layers * shape.hidden * (queries_keys_values + 2 * shape.ffn)


def _attention_bytes_per_token(shape: ModelShape, size: int) -> int:
    """Projections (e·(a+2k)·d, V inside), rotated q and k, output and its copy, log-sum-exp."""
    if not shape.mla_kv_rank:
        a, k, d = shape.heads, shape.kv_heads, shape.head_dim
        return size * ((a + k) * d + (a + 2 * k) * d + 2 * a * d) + 4 * a
    head = 2 * (shape.mla_nope_dim + shape.mla_rope_dim) + 2 * shape.mla_v_dim
    latents = 2 * shape.mla_q_rank + 2 * shape.mla_kv_rank + shape.mla_rope_dim
    return size * (latents + shape.heads * head) + 4 * shape.heads


def _loss_bytes(shape: ModelShape, work: Workload) -> int:
    """Head weight cast, its gradient (sum and chunk), one chunk of logits, gradient of the hidden states."""
    head = 8 * shape.vocab * shape.hidden
    chunk = min(_LOSS_CHUNK_ELEMENTS, work.tokens * shape.vocab) * _LOSS_BYTES_PER_ELEMENT
    return head + chunk + 4 * work.tokens * shape.hidden
