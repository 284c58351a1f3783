"""The small parts of a block: linear layers, norm, feed-forward.

Weights are fp32 and cast to the type of the input on use. Matrices that share an input are joined on the
fly, so that they stay separate tensors, which shard cleanly.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from bessemer.model.deferred import is_deferring, rejoined_linear


class Linear(nn.Module):
    """y = x Wᵀ with an fp32 weight, computed in the type of x."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.rejoins = False  # cast and join weights again in the backward pass, rather than keep a copy

    def forward(self, x: Tensor) -> Tensor:
        if self.rejoins or is_deferring():
            return rejoined_linear(x, self.weight)
        return functional.linear(x, self.weight.to(x.dtype))


def fused_linear(x: Tensor, *parts: Linear) -> Tensor:
    """The parts' outputs side by side, from one matmul: their weights are joined while they are cast."""
    if parts[0].rejoins or is_deferring():
        return rejoined_linear(x, *(part.weight for part in parts))
    return functional.linear(x, torch.cat([part.weight.to(x.dtype) for part in parts]))


class FeedForward(nn.Module):
    """SwiGLU (arXiv:2002.05202)."""

    def __init__(self, hidden: int, ffn: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden, ffn)
        self.up_proj = Linear(hidden, ffn)
        self.down_proj = Linear(ffn, hidden)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate_BTF, up_BTF = fused_linear(x_BTD, self.gate_proj, self.up_proj).chunk(2, dim=-1)
        return self.down_proj(functional.silu(gate_BTF) * up_BTF)


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dim, in fp32 inside (arXiv:1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale * self.weight).to(x.dtype)
