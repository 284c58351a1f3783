"""Linear layers whose weight gradients wait: what a zero-bubble pipeline fills its idle time with.

While a `Deferral` is entered, the backward pass of every linear layer computes the gradient of its input
only and notes what the gradient of its weight needs; `Deferral.run` makes the noted ones, later. So a
backward pass splits into "input" and "weight" without cutting through autograd's graph, which is what
makes torch's own split wrong for modules that shard their weights.
Source: arXiv:2401.10241 (zero bubble).
"""

from collections.abc import Callable, Sequence
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
        with torch.no_grad():
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


def current_deferral() -> Deferral | None:
    """That of the backward pass that runs now."""
    return _current[-1] if _current else None


Product = Callable[[Tensor, Sequence[Tensor]], Tensor]


def linear(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    return functional.linear(x, joined(weights, x.dtype))


def forgotten_linear(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The same into a tensor that is there, which selective recomputation does not keep."""
    out = unread_linear(x, weights)
    torch.mm(x.flatten(0, -2), joined(weights, x.dtype).T, out=out.flatten(0, -2))
    return out


def unread_linear(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Its size alone, any values: for a pass whose results nobody reads."""
    return x.new_empty(*x.shape[:-1], sum(weight.shape[0] for weight in weights))


def rejoined_linear(x: Tensor, *weights: Tensor, product: Product = linear) -> Tensor:
    """x (W1; W2; …)ᵀ, as `layers.fused_linear` computes it, without keeping what is cast and joined.

    The copy would be as large as the weights, for every micro-batch in flight, and would outlive the gathered
    weights that sharding frees. Cost: the cast and the join once more, small against the matmuls.
    """
    return _Rejoined.apply(product, x, *weights)  # type: ignore[no-any-return]


class _Rejoined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, product: Product, x: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(x, *weights)
        # Themselves: what recomputation saves are copies, whose grad nobody reads. A weight that was cast
        # before does not wait, and would only stay here.
        ctx.weights = weights if weights[0].is_leaf else ()
        return product(x, weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        grad_x = grad @ joined(weights, x.dtype) if ctx.needs_input_grad[1] else None
        deferral = current_deferral()
        if deferral is None:
            return None, grad_x, *_gradients(x, grad, weights)
        deferral.add(lambda: add_gradients(ctx.weights, _gradients(x, grad, weights)))
        return None, grad_x, *(None for _ in weights)


def joined(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """One above the other, cast: nothing is copied where one is of that type already."""
    cast = [weight.to(dtype) for weight in weights]
    return cast[0] if len(cast) == 1 else torch.cat(cast)


def _gradients(x: Tensor, grad: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    whole = grad.flatten(0, -2).T @ x.flatten(0, -2)
    parts = whole.split([weight.shape[0] for weight in weights])
    return [part.to(weight.dtype) for part, weight in zip(parts, weights, strict=True)]


def add_gradients(weights: Sequence[Tensor], parts: Sequence[Tensor]) -> None:
    for weight, part in zip(weights, parts, strict=True):
        _add_gradient(weight, part)


def _add_gradient(weight: Tensor, part: Tensor) -> None:
    if weight.grad is None:
        weight.grad = part.clone() if part._is_view() else part
    else:
        weight.grad += part
