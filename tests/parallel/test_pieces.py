"""Which part of each stored tensor a rank holds: over all ranks, every element once, with its own value."""

from functools import cache

import pytest
import torch
from making_layouts import CONTEXT, SHAPES, as_rank, layout_of
from torch import Tensor

from bessemer.formulas.layout import Layout
from bessemer.formulas.shape import ModelShape
from bessemer.formulas.tensors import tensor_table
from bessemer.model.decoder import Decoder
from bessemer.model.init import initialise
from bessemer.model.pieces import Piece, local, stored, whole_pieces
from bessemer.parallel.apply import build_parts, joined, materialise
from bessemer.parallel.pieces import held_pieces

CASES = [
    ("dense", "replicate=1"),
    ("dense", "shard=1"),
    ("dense", "shard=3"),
    ("dense", "shard=8"),
    ("dense", "replicate=2"),
    ("dense", "replicate=2,shard=3"),
    ("dense", "tensor=4"),
    ("threes", "tensor=3"),
    ("threes", "tensor=3,shard=3"),
    ("dense", "context=2,shard=2"),
    ("dense", "pipeline=4,split=1+1+1+1"),
    ("dense", "pipeline=2,schedule=interleaved,interleave=2,shard=2"),
    ("dense", "pipeline=2,schedule=zbv,tensor=2,shard=2"),
    ("tied", "tensor=2,shard=2"),
    ("tied", "pipeline=2,shard=3"),
    ("tied", "pipeline=2,schedule=zbv,replicate=2"),
    ("deep", "pipeline=4,schedule=zbv"),
    ("moe", "shard=3"),
    ("moe", "shard=3,tensor=2"),  # two ranks hold no expert
    ("moe", "shard=4,expert=4"),
    ("moe", "replicate=2,shard=4,expert=2,tensor=2"),
    ("moe", "replicate=4,expert=2"),
    ("moe", "pipeline=2,shard=6,expert=2"),
    ("glm", "replicate=2,shard=2,tensor=2"),
    ("glm", "pipeline=2,schedule=zbv,shard=2,context=2,expert=2"),
    ("glm", "context=2,expert=2,replicate=3"),
]


@cache
def one_process(shape: ModelShape) -> dict[str, Tensor]:
    """By stored name: the values that one process begins with."""
    with torch.device("meta"):
        model = Decoder(shape, torch.float32)
    initialise(model, shape, 1, "cpu")
    tensors = dict(stored(model))
    return {
        piece.name: piece.of(tensors[name]).detach()
        for name, pieces in whole_pieces(model).items()
        for piece in pieces
    }


def held(shape: ModelShape, layout: Layout, rank: int) -> list[tuple[Piece, Tensor]]:
    """A rank's pieces and their first values."""
    with as_rank(layout, rank) as mesh:
        models = joined(build_parts(shape, torch.float32, mesh, context=CONTEXT))
        materialise(models, shape, mesh, 1)
        tensors = dict(stored(models))
        return [
            (piece, piece.of(local(tensors[name])).detach().clone())
            for name, pieces in held_pieces(models, shape, mesh).items()
            for piece in pieces
        ]


@pytest.mark.parametrize(("name", "text"), CASES)
def test_every_element_is_saved_once_and_begins_as_in_one_process(name: str, text: str) -> None:
    shape, layout = SHAPES[name], layout_of(text)
    values = one_process(shape)
    assert values.keys() == {spec.name for spec in tensor_table(shape)}
    times = {each: torch.zeros(value.shape, dtype=torch.int64) for each, value in values.items()}
    for rank in range(layout.world):
        for piece, value in held(shape, layout, rank):
            place = tuple(slice(at, at + size) for at, size in zip(piece.offset, piece.size, strict=True))
            assert piece.shape == tuple(values[piece.name].shape)
            assert torch.equal(value, values[piece.name][place]), f"rank {rank}: {piece}"
            times[piece.name][place] += piece.saved
    wrong = {each: count.unique().tolist() for each, count in times.items() if not (count == 1).all()}
    assert not wrong, "elements saved so often"


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", ["dense", "moe"])
def test_a_shard_axis_leaves_each_rank_its_share(name: str, ranks: int) -> None:
    shape = SHAPES[name]
    total = sum(value.numel() for value in one_process(shape).values())
    sizes = [
        sum(value.numel() for _, value in held(shape, Layout(shard=ranks), rank)) for rank in range(ranks)
    ]
    assert sum(sizes) == total and max(sizes) == total // ranks, "every size of these models divides"
