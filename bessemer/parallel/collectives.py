"""Exchanges between ranks that gradients flow through, each with its mirror image backwards.

    gather_dim    my part -> the whole      backwards: sum over ranks, my part   (reduce-scatter)
    scatter_dim   partial sums -> my part of the sum    backwards: the whole     (all-gather)
    sum_ranks     partial sums -> the sum   backwards: as it is, as each rank computes the same from it
    exchange      rows to the ranks they are meant for   backwards: back again   (all-to-all)

Parts are consecutive and may differ in size (layout.split_evenly): they are padded to the longest on the
way, as collectives want equal sizes.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bessemer.formulas.layout import split_evenly

Group = dist.ProcessGroup
_operators = torch.ops._c10d_functional


def gather_dim(part: Tensor, dim: int, size: int, group: Group) -> Tensor:
    """The whole, `size` long in `dim`, from every rank's part of it."""
    return _Gather.apply(part, dim, size, group)  # type: ignore[no-any-return]


def scatter_dim(partial: Tensor, dim: int, group: Group) -> Tensor:
    """This rank's part of the sum over ranks."""
    return _Scatter.apply(partial, dim, group)  # type: ignore[no-any-return]


def sum_ranks(partial: Tensor, group: Group) -> Tensor:
    """The sum over ranks, from which every rank computes the same further on."""
    return _Sum.apply(partial, group)  # type: ignore[no-any-return]


def exchange(rows: Tensor, sent: list[int], received: list[int], group: Group) -> Tensor:
    """Rows [sum(sent), …], `sent[r]` of them for rank r -> [sum(received), …], in order of the senders."""
    return _Exchange.apply(rows, sent, received, group)  # type: ignore[no-any-return]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, dim: int, size: int, group: Group) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return _own(_gathered(part, dim, size, group))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _scattered(grad, ctx.dim, ctx.group), None, None, None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, partial: Tensor, dim: int, group: Group) -> Tensor:
        ctx.dim, ctx.size, ctx.group = dim, partial.shape[dim], group
        return _own(_scattered(partial, dim, group))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _gathered(grad, ctx.dim, ctx.size, ctx.group), None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, partial: Tensor, group: Group) -> Tensor:
        return all_reduce(partial, "sum", group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int], group: Group) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return all_to_all(rows, received, sent, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return all_to_all(grad, ctx.sent, ctx.received, ctx.group), None, None, None


def _gathered(part: Tensor, dim: int, size: int, group: Group) -> Tensor:
    parts = group.size()
    longest = -(-size // parts)
    padded = _padded(part, dim, longest)
    if dim:
        padded = padded.movedim(dim, 0)
    whole = all_gather(padded, group)
    if size % parts:
        ranges = split_evenly(size, parts)
        pieces = [whole[rank * longest : rank * longest + len(ranges[rank])] for rank in range(parts)]
        whole = torch.cat(pieces)
    return whole.movedim(0, dim).contiguous() if dim else whole


def _scattered(partial: Tensor, dim: int, group: Group) -> Tensor:
    parts, size = group.size(), partial.shape[dim]
    longest = -(-size // parts)
    first = partial.movedim(dim, 0) if dim else partial
    if size % parts:
        ranges = split_evenly(size, parts)
        first = torch.cat([_padded(first[each.start : each.stop], 0, longest) for each in ranges])
    mine = reduce_scatter(first, group)
    if size % parts:
        mine = mine[: len(split_evenly(size, parts)[dist.get_rank(group)])]
    return mine.movedim(0, dim).contiguous() if dim else mine


def _own(tensor: Tensor) -> Tensor:
    """Not a view: FSDP wants none from a module that it wraps, as an in-place change would lose its hooks."""
    if torch.compiler.is_compiling():  # asking would break the graph, and inside one nothing is wrapped
        return tensor
    return tensor.clone() if tensor._is_view() else tensor


def _padded(part: Tensor, dim: int, size: int) -> Tensor:
    missing = size - part.shape[dim]
    if not missing:
        return part
    shape = [*part.shape]
    shape[dim] = missing
    return torch.cat([part, part.new_zeros(shape)], dim)


# Without gradients. torch's operators themselves: its Python functions for them change names with versions.


def all_gather(part: Tensor, group: Group) -> Tensor:
    """Every rank's part, all of one shape, one after the other along dim 0."""
    return _done(_operators.all_gather_into_tensor(part.contiguous(), group.size(), group.group_name))


def reduce_scatter(partial: Tensor, group: Group) -> Tensor:
    """This rank's part, along dim 0, of the sum over ranks."""
    return _done(
        _operators.reduce_scatter_tensor(partial.contiguous(), "sum", group.size(), group.group_name)
    )


def all_reduce(values: Tensor, operation: str, group: Group) -> Tensor:
    """Over all ranks. operation: "sum" or "max"."""
    return _done(_operators.all_reduce(values.contiguous(), operation, group.group_name))


def all_to_all(rows: Tensor, received: list[int], sent: list[int], group: Group) -> Tensor:
    """Rows along dim 0, `sent[r]` of them to rank r, `received[r]` from it."""
    return _done(_operators.all_to_all_single(rows.contiguous(), received, sent, group.group_name))


def _done(tensor: Tensor) -> Tensor:
    return _operators.wait_tensor(tensor)  # type: ignore[no-any-return]
