"""A model cut over ranks that are threads: what each holds, and saving together through a store."""

import copy
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from making_runs import assert_same_tensors
from torch import Tensor, nn
from torch.distributed import HashStore, Store

from bessemer.checkpoint.load import restore
from bessemer.checkpoint.write import save
from bessemer.formulas.layout import split_evenly
from bessemer.model.pieces import Piece, Pieces, stored, stored_names

Ranges = tuple[range, ...]
Cut = Callable[[tuple[int, ...]], list[Ranges]]  # of a tensor's shape: what each rank holds of it


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up_proj = nn.Parameter(torch.randn(5, 7, 6))
        self.down_proj = nn.Parameter(torch.randn(5, 6, 7))


class Mixed(nn.Module):
    """A matrix, vectors, a scalar, stacked experts, and a buffer that is state."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Linear(9, 13)
        self.few = nn.Parameter(torch.randn(2, 3))  # fewer rows than some have ranks
        self.scalar = nn.Parameter(torch.randn(()))
        self.mlp = nn.Module()
        self.mlp.experts = Experts()
        self.register_buffer("balance", torch.randn(5))
        self.register_buffer("table", torch.randn(3), persistent=False)


def mixed(seed: int = 1) -> tuple[nn.Module, torch.optim.AdamW]:
    """With an optimizer that has made one update."""
    torch.manual_seed(seed)
    model = Mixed()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return model, optimizer


# Ways to cut.


def rows(ranks: int) -> Cut:
    """Along dim 0, of a stack too: some ranks have no row of a small tensor."""
    return lambda shape: _along(shape, 0, ranks)


def columns(ranks: int) -> Cut:
    """Along dim 1, in a stack the rows of each expert; vectors lie whole on every rank."""
    return lambda shape: _along(shape, 1, ranks)


def grid(shape: tuple[int, ...]) -> list[Ranges]:
    """Three by two."""
    pairs = itertools.product(rows(3)(shape), columns(2)(shape))
    return [(*by_row[:1], *by_column[1:]) for by_row, by_column in pairs]


def _along(shape: tuple[int, ...], dim: int, ranks: int) -> list[Ranges]:
    whole = tuple(range(n) for n in shape)
    if dim >= len(shape):
        return [whole] * ranks
    return [(*whole[:dim], part, *whole[dim + 1 :]) for part in split_evenly(shape[dim], ranks)]


CUTS: dict[str, Cut] = {
    "one": rows(1),
    "3 by rows": rows(3),
    "2 by columns": columns(2),
    "3 x 2": grid,
    "8 by rows": rows(8),
}

# What a rank holds.


@dataclass
class Held:
    """On one rank."""

    model: nn.Module
    optimizer: torch.optim.AdamW
    pieces: Pieces


def cut_up(model: nn.Module, optimizer: torch.optim.AdamW, cut: Cut) -> list[Held]:
    """What each rank holds, as copies."""
    return [_held(model, optimizer, cut, rank) for rank in range(len(cut((8,))))]


def _held(model: nn.Module, optimizer: torch.optim.AdamW, cut: Cut, rank: int) -> Held:
    own, pieces = copy.deepcopy(model), {}
    fresh = torch.optim.AdamW(own.parameters(), lr=0.1)
    for (name, whole), (_, part) in zip(stored(model), stored(own), strict=True):
        shape = tuple(whole.shape)
        cuts = cut(shape)
        pieces[name] = _pieces(name, whole, cuts[rank], cuts[rank] not in cuts[:rank])
        index = tuple(slice(each.start, each.stop) for each in cuts[rank])
        part.data = whole.detach()[index].clone()
        for key, value in optimizer.state.get(whole, {}).items():
            fresh.state[part][key] = (value[index] if value.shape == whole.shape else value).clone()
    return Held(own, fresh, pieces)


def _pieces(name: str, whole: Tensor, cut: Ranges, saved: bool) -> list[Piece]:
    shape = tuple(whole.shape)
    begin, size = tuple(each.start for each in cut), tuple(len(each) for each in cut)
    names = stored_names(name, whole)
    if names == [name]:
        return [Piece(name, shape, begin, size, saved=saved)]
    return [
        Piece(names[expert], shape[1:], begin[1:], size[1:], expert - begin[0], saved) for expert in cut[0]
    ]


# All ranks at once.


def save_together(stage: Path, step: int, ranks: list[Held], store: Store | None = None) -> Path:
    shared = store or HashStore()

    def one(rank: int) -> Path:
        held, others = ranks[rank], {"rank": rank, "world": len(ranks), "store": shared}
        layout = {"shard": len(ranks)}
        return save(stage, step, held.model, held.optimizer, {}, layout, pieces=held.pieces, **others)

    with ThreadPoolExecutor(len(ranks)) as pool:
        folders = list(pool.map(one, range(len(ranks))))
    assert len(set(folders)) == 1
    return folders[0]


def assert_restored(folder: Path, wanted: list[Held], cut: Cut) -> None:
    """Each of these ranks, begun with other values, reads its part bit for bit."""
    for held, other in zip(wanted, cut_up(*mixed(seed=9), cut), strict=True):
        other.optimizer.state.clear()
        restore(other.model, other.optimizer, folder, other.pieces)
        assert_same_held(other, held)


def assert_same_held(one: Held, other: Held) -> None:
    assert_same_tensors(dict(stored(one.model)), dict(stored(other.model)))
    pairs = zip(one.model.named_parameters(), other.model.parameters(), strict=True)
    for (name, mine), theirs in pairs:
        if one.pieces[name]:  # none: a stack without an expert here, whose state torch begins anew, empty
            assert_same_tensors(one.optimizer.state[mine], other.optimizer.state[theirs])
