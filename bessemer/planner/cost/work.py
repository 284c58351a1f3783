"""The work of one layer on one device for one micro-batch, forward and backward, in seconds by kind.

Matmuls take FLOPs over the sustained rate **plus** their reads and writes over the memory's: the sum is what
makes a short side slow (hidden / tensor, few tokens, few tokens per expert), as bytes over FLOPs is
1 / rows + 1 / inputs + 1 / outputs. Attention has its own rate, which falls with short rows and small heads.
Vector work (norms, activations, rotation, residual sums, dispatch, quantising) is bytes over the memory's
rate. In 8 and 4 bit only the linear layers are faster; attention, head and router stay in 16 bit.
Everything here may be a number or a column of numbers: one code path for one run and for 100,000.
Source: roofline with FLOPs and bytes in sum; bytes of a layer from arXiv:2205.05198, without dropout.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from bessemer.formulas.adapters import trained_params
from bessemer.formulas.flops import adapter_matrices, mean_causal_keys
from bessemer.formulas.parameters import (
    attention_params,
    ffn_matrices,
    head_rows,
    matmul_params,
    num_dense_layers,
    total_params,
)
from bessemer.formulas.passes import pass_lengths, waiting_share
from bessemer.formulas.schedule import EQUAL
from bessemer.formulas.shape import ModelShape

Column = Any  # a float, or a numpy column of floats


@dataclass(frozen=True)
class Dims:
    """What of a model's shape step times depend on, as floats (or columns of them, in the fit)."""

    layers: Column
    routed_layers: Column  # of `layers`, those with experts
    later_layers: Column  # that predict later tokens: a layer and a head each
    hidden: Column
    heads: Column
    head_dim: Column
    rotated: Column  # query and key elements of a token
    keys_values: Column  # elements of a token that context-parallel ranks exchange
    attention_split: Column  # attention weights that tensor ranks divide
    attention_whole: Column  # those that each has whole (latent down-projections)
    attention_inner: Column  # inputs and outputs of attention matmuls, per token, that tensor ranks divide
    attention_outer: Column  # those that each has whole
    ffn_weights: Column
    ffn: Column
    matrices: Column
    expert_weights: Column  # of one expert
    expert_ffn: Column
    expert_hidden: Column  # width of what an expert reads
    expert_groups: Column  # domains that a token's experts may lie in, at the most
    experts: Column
    chosen: Column
    shared_weights: Column
    shared_ffn: Column
    head_weights: Column
    table_weights: Column  # embedding, 0 where the head is the same
    vocab: Column  # rows of the head
    irregular: Column  # 1: its layers have parts that stacks do not fuse (below)
    keys: Column  # that a token sees, on average
    row_tokens: Column
    products: Column  # of each matrix: three, forwards and backwards; about two where it is frozen
    head_products: Column
    learned: Column  # share of the weights that have gradients
    waiting: Column  # share of matmuls whose weights' gradient a zero-bubble pipeline may leave for later
    equal_order: Column  # 1: without recomputation a zero-bubble pipeline has the order of equal passes


def dims_of(shape: ModelShape, context: int) -> Dims:
    """Of one model with rows of `context` tokens."""
    hidden, matrices = shape.hidden, ffn_matrices(shape)
    values = {
        "layers": shape.layers,
        "routed_layers": shape.layers - num_dense_layers(shape),
        "later_layers": shape.mtp_layers,
        "hidden": hidden,
        "heads": shape.heads,
        "ffn_weights": matrices * hidden * shape.ffn,
        "ffn": shape.ffn,
        "matrices": matrices,
        "expert_weights": matrices * hidden * shape.expert_ffn,
        # As wide as makes the weights that there are, where experts read less than the hidden states.
        "expert_ffn": shape.expert_ffn * hidden / (shape.expert_hidden or hidden),
        "expert_hidden": shape.expert_hidden or hidden,
        "expert_groups": shape.expert_groups or shape.experts or 1,
        "experts": shape.experts,
        "chosen": shape.experts_per_token if shape.experts else 0,
        "shared_weights": matrices * hidden * shape.shared_ffn if shape.experts else 0,
        "shared_ffn": shape.shared_ffn if shape.experts else 0,
        "head_weights": head_rows(shape) * hidden,
        "table_weights": 0 if shape.tie_embeddings else shape.vocab * hidden,
        "vocab": head_rows(shape),
        # Expert models with windows: attention sinks and biases of experts (GPT-OSS), state-space or linear
        # mixers in the place of windows (Nemotron 3, Qwen3-Next): kernels that no stack fuses yet.
        "irregular": bool(shape.experts and shape.sliding_window and shape.full_every),
        "keys": mean_causal_keys(shape, context),
        "row_tokens": context,
        "waiting": waiting_share(shape),
        "equal_order": pass_lengths(shape, context, "none") == EQUAL,
        **_learning(shape),
    }
    values |= _latent(shape) if shape.mla_kv_rank else _grouped(shape)
    return Dims(**{field.name: float(values[field.name]) for field in fields(Dims)})


@dataclass(frozen=True)
class Work:
    """Seconds of a micro-batch on one device: of a mean layer, and of the head."""

    matmul_s: Column
    attention_s: Column
    vector_s: Column
    recompute_s: Column
    overhead_s: Column
    host_s: Column  # what the host needs to launch the layer
    head_matmul_s: Column
    head_vector_s: Column

    @property
    def layer_s(self) -> Column:
        return self.matmul_s + self.attention_s + self.vector_s + self.recompute_s + self.overhead_s

    @property
    def head_s(self) -> Column:
        return self.head_matmul_s + self.head_vector_s


def layer_work(dims: Dims, layout: Any, profile: Any) -> Work:
    """`layout`: float columns tokens (of a micro-batch, divided by context), tensor, expert, full, selective
    (1 where so), eight (1 where matmuls are in 8 or 4 bit), size (bytes of an activation). `profile`: columns
    of a Profile, whose bytes are those of 16 bit: in 32 bit twice as many move."""
    tokens, tensor = layout.tokens, layout.tensor
    routed = dims.routed_layers / dims.layers
    dense_s = _ffn_s(dims.ffn_weights, dims.ffn, dims, layout, profile)
    shared_s = _ffn_s(dims.shared_weights, dims.shared_ffn, dims, layout, profile)
    matmul_s = (
        _matmul_s(
            tokens,
            dims.attention_split / tensor + dims.attention_whole,
            dims.attention_inner / tensor + dims.attention_outer,
            dims,
            layout,
            profile,
        )
        + (1.0 - routed) * dense_s
        + routed * (shared_s + _experts_s(dims, layout, profile))
    )
    attention_s = _attention_s(dims, layout, profile)
    vector_s = _vector_s(dims, layout, profile, routed)
    again_s = layout.full * (matmul_s / dims.products + attention_s / 3.5 + vector_s / 2.5)
    again_s = again_s + layout.selective * (profile.selective * matmul_s / dims.products + vector_s / 5.0)
    again_s = again_s + layout.selective * (profile.score_bytes > 0) * attention_s / 3.0
    head_matmul_s = (
        dims.head_products * 2.0 * tokens * dims.head_weights / tensor / (profile.head_tflops * 1e12)
    )
    return Work(
        matmul_s,
        attention_s,
        vector_s,
        again_s,
        (profile.layer_s + routed * profile.routed_s) * (1.0 + layout.full / 3.0),
        (profile.host_s + routed * profile.host_routed_s) * (1.0 + layout.full / 3.0),
        head_matmul_s,
        (12.0 + layout.size) * tokens * dims.vocab / tensor / (profile.vector_gb_per_s * 1e9),
    )


def _matmul_s(
    tokens: Column, weights: Column, sides: Column, dims: Dims, layout: Any, profile: Any
) -> Column:
    """Forward and backward products of matrices with `weights` in all and `sides` = inputs + outputs."""
    flops = 2.0 * dims.products * tokens * weights
    # Reads and writes of the products in 16 bit; in 8 bit the inputs are half. Gradients of weights are added
    # in 32 bit.
    narrow = (1.0 - 0.25 * layout.eight) * layout.size / 2.0
    traffic = narrow * (2.0 * dims.products * tokens * sides + 4.0 * weights) + 8.0 * dims.learned * weights
    memory = profile.vector_gb_per_s * 1e9
    quantise = layout.eight * profile.quantise_bytes * tokens * sides
    return flops / (profile.matmul_tflops * 1e12) + (profile.matmul_traffic * traffic + quantise) / memory


def _ffn_s(weights: Column, width: Column, dims: Dims, layout: Any, profile: Any) -> Column:
    sides = 2.0 * dims.hidden + dims.matrices * width / layout.tensor
    return _matmul_s(layout.tokens, weights / layout.tensor, sides * (weights > 0), dims, layout, profile)


def _experts_s(dims: Dims, layout: Any, profile: Any) -> Column:
    """Tokens of the group's ranks go to experts evenly, and tensor ranks divide tokens or widths."""
    pairs = layout.tokens * dims.chosen / layout.tensor * profile.imbalance
    local = np.maximum(dims.experts, 1.0) / expert_ways(layout, profile)
    rows = np.maximum(pairs / local, 1.0)
    slow = (1.0 + profile.rows_half / rows) / np.maximum(profile.grouped, 1e-9)
    flops_s = 2.0 * dims.products * pairs * dims.expert_weights / (profile.matmul_tflops * 1e12) * slow
    outer = 2.0 * dims.expert_hidden * whole_rows(layout, profile)
    sides = pairs * (outer + dims.matrices * dims.expert_ffn)
    narrow = (1.0 - 0.25 * layout.eight) * layout.size / 2.0
    weights = local * dims.expert_weights
    traffic = narrow * (2.0 * dims.products * sides + 4.0 * weights) + 8.0 * dims.learned * weights
    traffic = profile.matmul_traffic * traffic + layout.eight * profile.quantise_bytes * sides
    return (dims.experts > 0) * (flops_s + traffic / (profile.vector_gb_per_s * 1e9))


def whole_rows(layout: Any, profile: Any) -> Column:
    """Tensor ranks that each have the same rows of experts whole: where they divide an expert's width."""
    return np.where(profile.expert_tensor > 0, layout.tensor, 1.0)


def expert_ways(layout: Any, profile: Any) -> Column:
    """How many ways the weights of a layer's experts are divided over the ranks of a model copy."""
    both = layout.expert * layout.tensor
    return np.where(profile.expert_tensor > 0, both, np.maximum(layout.expert, layout.tensor))


def _attention_s(dims: Dims, layout: Any, profile: Any) -> Column:
    """Forward and backward: 3.5 times the forward FLOPs where scores are made again, 3 times else."""
    fused = profile.score_bytes == 0
    # Where scores are written out, those of later tokens are computed too.
    keys = np.where(fused, dims.keys, dims.row_tokens)
    flops = 4.0 * dims.heads * dims.head_dim * keys * layout.tokens / layout.tensor
    row = 1.0 + profile.attention_half_tokens / dims.row_tokens
    head = (1.0 + profile.attention_half_dim / dims.head_dim) / (1.0 + profile.attention_half_dim / 128.0)
    compute_s = np.where(fused, 3.5 * row * head, 3.0) * flops / (profile.attention_tflops * 1e12)
    scores = dims.heads / layout.tensor * keys * layout.tokens
    return compute_s + profile.score_bytes * scores / (profile.vector_gb_per_s * 1e9)


def _vector_s(dims: Dims, layout: Any, profile: Any, routed: Column) -> Column:
    """Two norms, two residual sums, rotation, activation; for experts also sorting and joining."""
    outer = 44.0 * dims.hidden / np.where(profile.sequence_parallel > 0, layout.tensor, 1.0)
    outer = outer + 8.0 * dims.rotated / layout.tensor
    middle = 4.0 + 4.0 * dims.matrices  # 16 bytes per element of a gated activation, 12 of another
    inner = (1.0 - routed) * middle * dims.ffn / layout.tensor
    pairs = dims.chosen / layout.tensor
    expert = middle * (pairs * dims.expert_ffn + dims.shared_ffn / layout.tensor)
    rows = whole_rows(layout, profile)
    expert = expert + (16.0 * pairs * dims.expert_hidden + 12.0 * dims.experts / layout.tensor) * rows
    bytes_moved = layout.size / 2.0 * layout.tokens * (outer + inner + routed * expert)
    extra = 1.0 + dims.irregular * profile.irregular
    return profile.vector * extra * bytes_moved / (profile.vector_gb_per_s * 1e9)


def _learning(shape: ModelShape) -> dict[str, float]:
    """A frozen matrix has no gradient of its own; its adapter is two small matrices beside it."""
    if shape.adapter is None:
        return {"products": 3.0, "head_products": 3.0, "learned": 1.0}
    beside = adapter_matrices(shape) / (matmul_params(shape) - head_rows(shape) * shape.hidden)
    learned = trained_params(shape, total_params(shape)) / total_params(shape)
    return {
        "products": 2.0 + 3.0 * beside,
        "head_products": 3.0 if shape.labels else 2.0,
        "learned": learned,
    }


def _grouped(shape: ModelShape) -> dict[str, float]:
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return {
        "head_dim": shape.head_dim,
        "rotated": queries + keys,
        "keys_values": 2 * keys,
        "attention_split": attention_params(shape),
        "attention_whole": 0,
        "attention_inner": 2 * queries + 2 * keys,
        "attention_outer": 2 * shape.hidden,
    }


def _latent(shape: ModelShape) -> dict[str, float]:
    """Latent attention: each head reads nope + rope and gives v; head_dim is what gives the same FLOPs."""
    reads, gives = shape.mla_nope_dim + shape.mla_rope_dim, shape.mla_v_dim
    ranks = shape.mla_q_rank + shape.mla_kv_rank + shape.mla_rope_dim
    down = shape.hidden * ranks
    inner = shape.heads * (reads + shape.mla_nope_dim + 2 * gives)
    return {
        "head_dim": (reads + gives) / 2,
        "rotated": 3 * shape.heads * reads,  # keys are joined of two parts, queries split in two
        "keys_values": shape.heads * (reads + gives),
        "attention_split": attention_params(shape) - down,
        "attention_whole": down,
        "attention_inner": inner,
        "attention_outer": 2 * shape.hidden + 2 * ranks,
    }
