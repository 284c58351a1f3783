"""The small parts of a block: linear layers, norm, feed-forward.

Weights that learn are fp32 and cast to the type of the input on use. Matrices that share an input are joined
on the fly, so that they stay separate tensors, which shard cleanly. Frozen ones, with or without an adapter:
model/frozen.py.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from bessemer.model.deferred import (
    forgotten_linear,
    is_deferring,
    linear,
    rejoined_linear,
    unread_linear,
)
from bessemer.model.frozen import FrozenPart, frozen_linear
from bessemer.model.quantized import Packing


class Linear(nn.Module):
    """y = x Wᵀ, computed in the type of x."""

    lora_A: "Factor | None"
    lora_B: "Factor | None"
    lora_magnitude_vector: "Factor | None"

    def __init__(self, inputs: int, outputs: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None
        self.rejoins = False  # cast and join weights again in the backward pass, rather than keep a copy
        # What it gives is added up over ranks at once. Recomputation, where it keeps anything, keeps the sum.
        self.summed = False
        self.remembered = False  # whether what it gives is kept, and this pass run again without need of it
        # Of a frozen weight (model/adapter.py). packing: how it is kept in 4 or 8 bits.
        self.packing: Packing | None = None
        self.scale = 1.0
        self.over_columns: Callable[[Tensor], Tensor] = _identity
        for name in ("lora_A", "lora_B", "lora_magnitude_vector"):
            self.register_module(name, None)

    def forward(self, x: Tensor) -> Tensor:
        return fused_linear(x, self)[0]

    def frozen_part(self) -> FrozenPart:
        factors = (self.lora_A, self.lora_B, self.lora_magnitude_vector)
        down, up, magnitude = (None if factor is None else factor.weight for factor in factors)
        return FrozenPart(
            self.weight, self.packing, down, up, self.scale, magnitude, self.over_columns, self.remembered
        )


class Factor(nn.Module):
    """A weight of an adapter. A module of its own for PEFT's names, and so that its type can be its own."""

    def __init__(self, *size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))


def fused_linear(x: Tensor, *parts: Linear) -> list[Tensor]:
    """The parts' outputs. Of weights that learn from one matmul: they are joined while they are cast."""
    outs = _fused_matmul(x, parts)
    return [
        out if part.bias is None else out + part.bias.to(out.dtype)
        for part, out in zip(parts, outs, strict=True)
    ]


def _fused_matmul(x: Tensor, parts: tuple[Linear, ...]) -> list[Tensor]:
    if not parts[0].weight.requires_grad:
        return frozen_linear(x, [part.frozen_part() for part in parts])
    weights: list[Tensor] = [part.weight for part in parts]
    rejoins = parts[0].rejoins or is_deferring()
    forgets = parts[0].summed and not torch.compiler.is_compiling()
    if not rejoins:  # then copies are kept
        weights = [weight.to(x.dtype) for weight in weights]
    if rejoins or forgets:
        product = linear if not forgets else unread_linear if parts[0].remembered else forgotten_linear
        out = rejoined_linear(x, *weights, product=product)
    else:
        out = linear(x, weights)
    return list(out.split([part.weight.shape[0] for part in parts], dim=-1)) if len(parts) > 1 else [out]


def _identity(values: Tensor) -> Tensor:
    return values


class FeedForward(nn.Module):
    """SwiGLU (arXiv:2002.05202), or with another gate: "gelu" is its tanh form."""

    def __init__(self, hidden: int, ffn: int, gate: str = "silu") -> None:
        super().__init__()
        self.gate = gate
        self.gate_proj = Linear(hidden, ffn)
        self.up_proj = Linear(hidden, ffn)
        self.down_proj = Linear(ffn, hidden)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate_BTF, up_BTF = fused_linear(x_BTD, self.gate_proj, self.up_proj)
        if self.gate == "gelu":
            return self.down_proj(functional.gelu(gate_BTF, approximate="tanh") * up_BTF)
        return self.down_proj(functional.silu(gate_BTF) * up_BTF)


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dim, in fp32 inside (arXiv:1910.07467).

    centred: times one plus the weight, as Gemma has it.
    """

    def __init__(self, size: int, eps: float, *, centred: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps
        self.centred = centred

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        weight = 1.0 + self.weight if self.centred else self.weight
        return (wide * scale * weight).to(x.dtype)
