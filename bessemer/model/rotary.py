"""Rotary position embedding, in the half-split order of Hugging Face's Llama (arXiv:2104.09864)."""

import math

import torch
from torch import Tensor

from bessemer.formulas.shape import ModelShape


def rotary_angles(shape: ModelShape, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, [B, T, 1, K] fp32 each.

    Computed in every forward pass (cheap against one layer) rather than kept as a buffer, which
    `to_empty` would leave unset. Scaling: Llama 3.1's reference code.
    """
    half = torch.arange(0, shape.head_dim, 2, device=positions_BT.device, dtype=torch.float32)
    frequency_K = stretched(shape, shape.rope_theta ** -(half / shape.head_dim))
    angle_BTK = positions_BT[..., None].float() * frequency_K
    angle_BT1K = torch.cat([angle_BTK, angle_BTK], dim=-1).unsqueeze(2)
    return angle_BT1K.cos(), angle_BT1K.sin()


def stretched(shape: ModelShape, frequency_K: Tensor) -> Tensor:
    """Rotary frequencies for a longer context: "linear" or "llama3" scaling; none: unchanged."""
    scaling = shape.rope_scaling
    if not scaling:
        return frequency_K
    if scaling["rope_type"] == "linear":
        return frequency_K / scaling["factor"]
    original = scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns_K = original * frequency_K / (2.0 * math.pi)
    smooth_K = ((turns_K - low) / (high - low)).clamp(0.0, 1.0)
    return frequency_K * (smooth_K + (1.0 - smooth_K) / scaling["factor"])


def rotate(x_BTHK: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding of queries or keys, computed in fp32."""
    cos, sin = rope
    wide = x_BTHK.float()
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat([-second, first], dim=-1) * sin).to(x_BTHK.dtype)
