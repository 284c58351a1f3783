"""FLOPs of training, per token, in one convention that every MFU here uses.

Model FLOPs: a multiply-add counts 2, backward counts twice the forward pass, attention is **causal**
(the exact triangle, half of the PaLM convention), recomputation does not count. Left out: norms,
rotary embedding, softmax, optimizer; together under 1 % from 100M parameters on. A frozen matrix has no
gradient of its own: 4 FLOPs a token and parameter instead of 6. Its first one in the model would need none
of its input either, which is not taken off.
Source: arXiv:2204.02311 appendix B (6 N + 12 L H Q T), with its attention term halved.
"""

from dataclasses import replace

from bessemer.formulas.adapters import adapter_params
from bessemer.formulas.parameters import head_rows, matmul_params
from bessemer.formulas.shape import ModelShape

CONVENTION = "model FLOPs, causal attention"


def train_flops_per_token(shape: ModelShape, context: int, mean_keys: float | None = None) -> float:
    """Forward and backward. `mean_keys`: keys that a token sees on average; default: one document a row."""
    keys = mean_keys if mean_keys is not None else mean_causal_keys(shape, context)
    attention = 3.0 * attention_flops_per_token(shape, keys)
    if shape.adapter is None:
        return 6.0 * matmul_params(shape) + attention
    head = 2.0 * shape.labels * shape.hidden  # which learns
    return 4.0 * matmul_params(shape) + head + 6.0 * adapter_matrices(shape) + attention


def attention_flops_per_token(shape: ModelShape, mean_keys: float) -> float:
    """Forward FLOPs of the score and value products of all layers, for one token."""
    if shape.mla_kv_rank:
        width = shape.mla_nope_dim + shape.mla_rope_dim + shape.mla_v_dim
    else:
        width = 2 * shape.head_dim
    return 2.0 * (shape.layers + shape.mtp_layers) * shape.heads * width * mean_keys


def mean_causal_keys(shape: ModelShape, context: int) -> float:
    """Keys that a token sees in a row of one document, averaged over tokens and layers.

    Half of the row; window w of s tokens: a triangle of w² / 2 and a band of w (s - w), over s queries.
    """
    window = min(shape.sliding_window or context, context)
    windowed = window * (2 * context - window) / (2.0 * context)
    full = full_attention_layers(shape) / shape.layers
    return full * context / 2.0 + (1.0 - full) * windowed


def full_attention_layers(shape: ModelShape) -> int:
    """Layers that see all tokens of the row."""
    if shape.sliding_window is None:
        return shape.layers
    return len(shape.full_layers) + (shape.layers // shape.full_every if shape.full_every else 0)


def hardware_flops_per_token(shape: ModelShape, context: int, recompute: str) -> float:
    """What the device really computes: with full recomputation each block's forward runs twice."""
    model = train_flops_per_token(shape, context)
    if recompute != "full":
        return model
    forward = 2.0 * (matmul_params(shape) + adapter_matrices(shape))
    forward += attention_flops_per_token(shape, mean_causal_keys(shape, context))
    return model + forward - 2.0 * head_rows(shape) * shape.hidden


def adapter_matrices(shape: ModelShape) -> int:
    """Parameters of A's and B's, without magnitudes."""
    if shape.adapter is None:
        return 0
    return adapter_params(replace(shape, adapter=replace(shape.adapter, dora=False)))
