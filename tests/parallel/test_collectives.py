"""Exchanges that gradients flow through, against the same in plain tensors of one process.

The plain formula sees every rank's input; each rank's output gets random gradients, and autograd says what
each rank's input must get.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from making_ranks import Pool, Result
from torch import Tensor

from bessemer.formulas.layout import split_evenly
from bessemer.parallel.collectives import exchange, gather_dim, scatter_dim, sum_ranks

OTHER = 5  # length of the dim that stays whole


def values(number: int, *size: int) -> Tensor:
    """The same on every rank: random, by number."""
    return torch.randn(size, generator=torch.Generator().manual_seed(number), dtype=torch.float64)


def size_of(length: int, dim: int) -> list[int]:
    return [length, OTHER, 2] if dim == 0 else [OTHER, length, 2]


def part_of(whole: Tensor, dim: int, rank: int, ranks: int) -> Tensor:
    own = split_evenly(whole.shape[dim], ranks)[rank]
    return whole.narrow(dim, own.start, len(own))


# What a rank does.


def run_there(rank: int, name: str, size: int, dim: int) -> Result:
    group, ranks = dist.group.WORLD, dist.get_world_size()
    assert group is not None
    mine = inputs(name, size, dim, ranks)[rank].requires_grad_()
    if name == "gather":
        out = gather_dim(mine, dim, size, group)
    elif name == "scatter":
        out = scatter_dim(mine, dim, group)
    elif name == "sum":
        out = sum_ranks(mine, group)
    else:
        sent = sent_rows(ranks)
        out = exchange(mine, sent[rank], [row[rank] for row in sent], group)
    is_view = out._is_view()
    out.backward(values(100 + rank, *out.shape))
    assert mine.grad is not None
    return {"out": out.detach(), "grad": mine.grad, "is_view": is_view}


# And what it must be.


def inputs(name: str, size: int, dim: int, ranks: int) -> list[Tensor]:
    if name == "gather":
        return [part_of(values(0, *size_of(size, dim)), dim, rank, ranks).clone() for rank in range(ranks)]
    if name == "exchange":
        return [values(rank, sum(row), 3) for rank, row in enumerate(sent_rows(ranks))]
    return [values(rank, *size_of(size, dim)) for rank in range(ranks)]


def sent_rows(ranks: int) -> list[list[int]]:
    """By sender, by receiver: uneven, some pairs have nothing to say, and rank 1 sends nothing at all."""
    return [
        [(3 * sender + receiver) % 4 * (sender != 1) for receiver in range(ranks)] for sender in range(ranks)
    ]


def formula(name: str, dim: int, parts: list[Tensor]) -> list[Tensor]:
    ranks = len(parts)
    if name == "gather":
        return [torch.cat(parts, dim)] * ranks
    if name == "scatter":
        return [part_of(torch.stack(parts).sum(0), dim, rank, ranks) for rank in range(ranks)]
    if name == "sum":
        return [torch.stack(parts).sum(0)] * ranks
    cut = [part.split(row) for part, row in zip(parts, sent_rows(ranks), strict=True)]
    return [torch.cat([cut[sender][rank] for sender in range(ranks)]) for rank in range(ranks)]


def gradients(name: str, parts: list[Tensor], outs: list[Tensor]) -> list[Tensor]:
    """Of the sum over ranks of output · its random gradient; `sum` alone is special."""
    ranks = range(len(parts))
    grads = [values(100 + rank, *out.shape) for rank, out in enumerate(outs)]
    if name == "sum":  # every rank goes on with the same, so its own gradient is the whole one
        return grads
    total = sum(((outs[rank] * grads[rank]).sum() for rank in ranks), torch.zeros(()))
    return list(torch.autograd.grad(total, parts))


CASES = [
    ("gather", 6, 0), ("gather", 7, 0), ("gather", 8, 1), ("gather", 7, 1), ("gather", 2, 1),
    ("scatter", 6, 0), ("scatter", 7, 0), ("scatter", 8, 1), ("scatter", 7, 1), ("scatter", 2, 1),
    ("sum", 4, 0), ("exchange", 0, 0),
]  # fmt: skip


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize(("name", "size", "dim"), CASES)
def test_forward_and_backward_are_those_of_plain_tensors(
    name: str, size: int, dim: int, world: int, ranks: Pool
) -> None:
    found = ranks.run(run_there, world, name=name, size=size, dim=dim)
    parts = [part.requires_grad_() for part in inputs(name, size, dim, world)]
    outs = formula(name, dim, parts)
    for rank, (out, grad) in enumerate(zip(outs, gradients(name, parts, outs), strict=True)):
        torch.testing.assert_close(found[rank]["out"], out.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found[rank]["grad"], grad, rtol=1e-12, atol=1e-12)
        assert not found[rank]["is_view"], f"rank {rank}: FSDP wants no views"


def run_type(rank: int) -> Result:
    group = dist.group.WORLD
    assert group is not None
    functions: list[Callable[..., Any]] = [
        lambda x: gather_dim(x, 0, 4, group),
        lambda x: scatter_dim(x, 0, group),
        lambda x: exchange(x, [1, 1], [1, 1], group),
    ]
    x = torch.ones(2, 3, dtype=torch.bfloat16)
    return {"types": [str(function(x).dtype) for function in functions]}


def test_what_is_bf16_travels_and_arrives_as_bf16(ranks: Pool) -> None:
    assert ranks.run(run_type, 2)[1]["types"] == ["torch.bfloat16"] * 3
