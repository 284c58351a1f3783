"""Linear layers whose weight gradients wait: what a zero-bubble pipeline fills its idle time with.

While a `Deferral` is entered, the backward pass of every linear layer computes the gradient of its input
only and notes what the gradient of its weight needs; `Deferral.run` makes the noted ones, later. So a
backward pass splits into "input" and "weight" without cutting through autograd's graph, which is what
makes torch's own split wrong for modules that shard their weights.
Source: arXiv:2401.10241 (zero bubble).
"""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

_current: "list[Deferral]" = []  # at most one: the backward pass that runs now


class Deferral:
    """The weight gradients of one backward pass. Memory: the layers' inputs and output gradients."""

    def __init__(self) -> None:
        self._waiting: list[Callable[[], None]] = []

    def __enter__(self) -> Self:
        assert not _current, "two backward passes at once"
        _current.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _current.pop()

    def add(self, work: Callable[[], None]) -> None:
        self._waiting.append(work)

    def run(self) -> None:
        """Add the noted gradients to their weights' `grad`."""
        for work in self._waiting:
            work()
        self._waiting.clear()


class _Switch:
    on = False


def set_deferring(on: bool) -> None:
    """Whether linear layers are built into the graph so that their weight gradients can wait."""
    _Switch.on = on


def is_deferring() -> bool:
    return _Switch.on and torch.is_grad_enabled()


def deferred_linear(x: Tensor, *weights: Tensor) -> Tensor:
    """x (W1; W2; …)ᵀ, as `layers.fused_linear` computes it."""
    return _DeferredLinear.apply(x, *weights)  # type: ignore[no-any-return]


class _DeferredLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> Tensor:
        joined = torch.cat([weight.to(x.dtype) for weight in weights])
        ctx.save_for_backward(x)
        ctx.weights, ctx.joined = weights, joined
        return functional.linear(x, joined)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,), weights = ctx.saved_tensors, ctx.weights

        def gradients() -> list[Tensor]:
            whole = grad.flatten(0, -2).T @ x.flatten(0, -2)
            return list(whole.split([weight.shape[0] for weight in weights]))

        grad_x = grad @ ctx.joined if ctx.needs_input_grad[0] else None
        if not _current:
            return grad_x, *(part.to(weight.dtype) for part, weight in zip(gradients(), weights, strict=True))

        def later() -> None:
            for part, weight in zip(gradients(), weights, strict=True):
                _add_gradient(weight, part.to(weight.dtype))

        _current[-1].add(later)
        return grad_x, *(None for _ in weights)


def _add_gradient(weight: Tensor, part: Tensor) -> None:
    if weight.grad is None:
        weight.grad = part.clone() if part._is_view() else part
    else:
        weight.grad += part
