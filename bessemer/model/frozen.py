"""Linear layers whose weight does not learn, with low-rank adapters beside it.

    y = x Wᵀ + scale (x Aᵀ) Bᵀ        for each of several W, A, B that share x

No gradient of W is computed, and nothing but x, x Aᵀ and the weights themselves is kept for the backward
pass: a frozen weight is stored in the compute type, or packed (model/quantized.py) and unpacked again there.
Where selective recomputation keeps what the matmul gave, its forward pass is run again for the inputs alone,
and nothing is unpacked for it: twice a step, not three times (4 layers of 512, 256 tokens, one core of a busy
Xeon: nf4 in bf16 259 to 204 ms a step, in fp32 327 to 301; int8 174 to 148 and 274 to 240).
The A's are joined into one small matmul, and scale (x Aᵀ) Bᵀ is added inside the large one. Without an
adapter x is not kept either. W's of one input are not joined: that would copy them in every pass.
DoRA (arXiv:2402.09353): rows of W + scale B A are scaled to length `magnitude`. Their norms are taken as
constants in the backward pass, as there (section 4.3) and in PEFT, and follow without forming B A:
|W|² + 2 scale <W, B A> + scale² |B A|², each of which is a small matmul.
Dims: N tokens, I inputs, O outputs, R rank.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bessemer.model.deferred import add_gradients, current_deferral, joined
from bessemer.model.quantized import Packing, dequantise


@dataclass(frozen=True)
class FrozenPart:
    """One of the matrices that share an input. Without an adapter `down` and `up` are None."""

    weight: Tensor
    packing: Packing | None
    down_RI: Tensor | None  # A
    up_OR: Tensor | None  # B
    scale: float
    magnitude_O: Tensor | None  # DoRA's
    # Sums over the ranks that have other columns of the same rows.
    over_columns: Callable[[Tensor], Tensor]
    remembered: bool = False  # what it gives is kept, and this pass needs its inputs only: model/recompute.py


def frozen_linear(x: Tensor, parts: Sequence[FrozenPart]) -> list[Tensor]:
    """The parts' outputs."""
    adapted = [part for part in parts if part.down_RI is not None]
    outs = _Frozen.apply(
        x,
        adapted[0].scale if adapted else 1.0,
        tuple(part.packing for part in parts),
        tuple(part.down_RI is not None for part in parts),
        parts[0].remembered,
        *(part.weight for part in parts),
        *(part.down_RI for part in adapted),
        *(part.up_OR for part in adapted),
    )
    return [_with_magnitude(out, part) for out, part in zip(outs, parts, strict=True)]


def matrix_of(weight: Tensor, packing: Packing | None, dtype: torch.dtype) -> Tensor:
    """A frozen weight to multiply with."""
    return weight.to(dtype) if packing is None else dequantise(weight, packing, dtype)


def _unread(weight: Tensor, packing: Packing | None, dtype: torch.dtype) -> Tensor:
    """A matrix for a product whose result is kept already: only its size is looked at."""
    if packing is None:
        return weight.to(dtype)
    return weight.new_empty((weight.shape[0], packing.columns), dtype=dtype)


def row_norms(part: FrozenPart, dtype: torch.dtype) -> Tensor:
    """fp32 [O]: lengths of the rows of W + scale B A, all of them as they are in `dtype`."""
    matrix_OI = matrix_of(part.weight, part.packing, dtype)
    squares_O = torch.linalg.vector_norm(matrix_OI, dim=1, dtype=torch.float32).square()
    if part.down_RI is not None and part.up_OR is not None:
        down_RI, up_OR = part.down_RI.detach().to(dtype), part.scale * part.up_OR.detach().to(dtype).float()
        mixed_OR = (matrix_OI @ down_RI.T).float()
        down_RI = down_RI.float()
        squares_O = squares_O + (up_OR * (2.0 * mixed_OR + up_OR @ (down_RI @ down_RI.T))).sum(1)
    return part.over_columns(squares_O).clamp(min=0.0).sqrt()


def _with_magnitude(out: Tensor, part: FrozenPart) -> Tensor:
    if part.magnitude_O is None:
        return out
    with torch.no_grad():
        inverse_O = row_norms(part, out.dtype).reciprocal()
    return out * (part.magnitude_O.float() * inverse_O).to(out.dtype)


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: float,
        packings: tuple[Packing | None, ...],
        adapted: tuple[bool, ...],
        remembered: bool,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.scale, ctx.packings, ctx.adapted = scale, packings, adapted
        weights, downs, ups = _sorted(tensors, adapted)
        ctx.downs, ctx.ups = downs, ups  # themselves, as in model/deferred.py
        x_NI, inner_NR, inner = x.reshape(-1, x.shape[-1]), None, iter(())
        if downs:
            inner_NR = functional.linear(x_NI, joined(downs, x.dtype))
            inner = iter(inner_NR.split([down.shape[0] for down in downs], 1))
        ctx.save_for_backward(x if downs else None, inner_NR, *tensors)
        outs, up = [], iter(ups)
        for weight, packing, has_adapter in zip(weights, packings, adapted, strict=True):
            matrix_OI = (_unread if remembered else matrix_of)(weight, packing, x.dtype)
            if has_adapter:
                # Into `out`, which selective recomputation forgets (model/recompute.py); it keeps the sum.
                added_NO = x.new_empty((x_NI.shape[0], matrix_OI.shape[0]))
                torch.mm(next(inner), next(up).to(x.dtype).T, out=added_NO)
                out_NO = torch.addmm(added_NO, x_NI, matrix_OI.T, beta=scale)
            else:
                out_NO = x_NI @ matrix_OI.T
            outs.append(out_NO.view(*x.shape[:-1], -1))
            del matrix_OI  # out of its packing: there is never a second one
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, inner_NR, *tensors = ctx.saved_tensors
        weights, downs, ups = _sorted(tensors, ctx.adapted)
        grads_NO = [grad.flatten(0, -2) for grad in grads]
        adapted_NO = [grad for grad, has_adapter in zip(grads_NO, ctx.adapted, strict=True) if has_adapter]
        dtype = grads[0].dtype
        back_NR = None
        if downs:
            pairs = zip(adapted_NO, ups, strict=True)
            back_NR = torch.cat([grad @ (ctx.scale * up).to(dtype) for grad, up in pairs], 1)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_NI = None
            for grad, weight, packing in zip(grads_NO, weights, ctx.packings, strict=True):
                matrix_OI = matrix_of(weight, packing, dtype)
                grad_NI = grad @ matrix_OI if grad_NI is None else grad_NI.addmm_(grad, matrix_OI)
                del matrix_OI
            assert grad_NI is not None
            if back_NR is not None:
                grad_NI.addmm_(back_NR, joined(downs, dtype))
            grad_x = grad_NI.view(*grads[0].shape[:-1], -1)
        nothing = (grad_x, None, None, None, None, *(None for _ in weights))
        if back_NR is None:
            return nothing

        def gradients() -> list[Tensor]:
            return _gradients(x.flatten(0, -2), inner_NR, back_NR, adapted_NO, downs, ups, ctx.scale)

        deferral = current_deferral()
        if deferral is None:
            return *nothing, *gradients()
        learning = [*ctx.downs, *ctx.ups]
        deferral.add(lambda: add_gradients(learning, gradients()))
        return *nothing, *(None for _ in learning)


def _sorted(
    tensors: Sequence[Tensor], adapted: Sequence[bool]
) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    """(weights, A's, B's)."""
    first, second = len(adapted), len(adapted) + sum(adapted)
    return tensors[:first], tensors[first:second], tensors[second:]


def _gradients(
    x_NI: Tensor,
    inner_NR: Tensor,
    back_NR: Tensor,
    grads_NO: Sequence[Tensor],
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
    scale: float,
) -> list[Tensor]:
    """Of the A's, then of the B's."""
    ranks = [down.shape[0] for down in downs]
    of_downs = (back_NR.T @ x_NI).split(ranks)
    of_ups = [
        (grad.T @ inner) * scale for grad, inner in zip(grads_NO, inner_NR.split(ranks, 1), strict=True)
    ]
    pairs = zip([*of_downs, *of_ups], [*downs, *ups], strict=True)
    return [part.to(weight.dtype) for part, weight in pairs]
