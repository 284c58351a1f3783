"""Rotary position embedding, in the half-split order of Hugging Face's Llama (arXiv:2104.09864).

Some families turn only the first numbers of a head (`rotary_dim`); Gemma 3 turns layers with a window by
another base, unscaled.
Dims: B rows, T tokens, H heads, K head_dim, R numbers that are turned.
"""

import math
from typing import Any

import torch
from torch import Tensor

from bessemer.formulas.shape import ModelShape


def rotary_angles(
    shape: ModelShape, positions_BT: Tensor, *, windowed: bool = False
) -> tuple[Tensor, Tensor]:
    """cos and sin, [B, T, 1, R] fp32 each. windowed: of the layers that have a window.

    Computed in every forward pass (cheap against one layer) rather than kept as a buffer, which
    `to_empty` would leave unset. Scaling: Llama 3.1's reference code; LongRoPE's factors for short rows.
    """
    theta, scaling = shape.rope_theta, shape.rope_scaling
    if windowed and shape.local_rope_theta is not None:
        theta, scaling = shape.local_rope_theta, None
    even_R = torch.arange(0, shape.rotary_dim, 2, device=positions_BT.device, dtype=torch.float32)
    frequency_R = theta ** -(even_R / shape.rotary_dim)
    if scaling:
        frequency_R = stretched(scaling, frequency_R)
    angle_BTR = positions_BT[..., None].float() * frequency_R
    angle_BT1R = torch.cat([angle_BTR, angle_BTR], dim=-1).unsqueeze(2)
    size = (scaling or {}).get("attention_factor", 1.0)
    cos, sin = angle_BT1R.cos(), angle_BT1R.sin()
    return (cos, sin) if size == 1.0 else (cos * size, sin * size)


def stretched(scaling: dict[str, Any], frequency_R: Tensor) -> Tensor:
    """Rotary frequencies for a longer context: "linear", "llama3" or "longrope" scaling."""
    if scaling["rope_type"] == "longrope":
        return frequency_R / torch.tensor(scaling["short_factor"], device=frequency_R.device)
    if scaling["rope_type"] == "linear":
        return frequency_R / scaling["factor"]
    original = scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns_R = original * frequency_R / (2.0 * math.pi)
    smooth_R = ((turns_R - low) / (high - low)).clamp(0.0, 1.0)
    return frequency_R * (smooth_R + (1.0 - smooth_R) / scaling["factor"])


def rotate(x_BTHK: Tensor, rope: tuple[Tensor, Tensor], scale: float = 1.0) -> Tensor:
    """Rotary position embedding of queries or keys, computed in fp32; then times `scale`."""
    cos, sin = rope
    turned, rest = x_BTHK.float().split([cos.shape[-1], x_BTHK.shape[-1] - cos.shape[-1]], dim=-1)
    first, second = turned.chunk(2, dim=-1)
    out = turned * cos + torch.cat([-second, first], dim=-1) * sin
    if rest.shape[-1]:
        out = torch.cat([out, rest], dim=-1)
    return (out if scale == 1.0 else out * scale).to(x_BTHK.dtype)
