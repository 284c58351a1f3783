"""What this rank holds of a checkpoint: parts of stored tensors, of the weights and of the optimizer's state.

A parameter is cut by its pieces (model/pieces.py), and state of its shape likewise. State of no dimension,
as Adam's count of steps, is the same for every part of a weight: the rank that holds its first element
writes it, so that each stored tensor has one writer.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bessemer.errors import RecipeError
from bessemer.model.pieces import Piece, Pieces, stored, whole_pieces


@dataclass(frozen=True)
class Part:
    """Values that lie here, and where in the stored tensor."""

    tensor: Tensor
    place: dict[str, Any] | None = None  # {"shape": of the whole, "offset"}; None: this is the whole


Parts = dict[str, dict[str, Part]]  # "model" or "optimizer", then the name of the stored tensor


def local(tensor: Tensor) -> Tensor:
    """The values of a tensor that lie in this process, without history; not a copy."""
    tensor = tensor.detach()
    # Asked of the tensor: importing DTensor takes 0.5 s, and without a process group there is none.
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def held_pieces(model: nn.Module, pieces: Pieces | None) -> Iterator[tuple[Tensor, list[Piece]]]:
    """(parameter or persistent buffer, its pieces) of all state; None: the model is whole."""
    tensors = dict(stored(model))
    held = whole_pieces(model) if pieces is None else pieces
    assert held.keys() == tensors.keys(), sorted(held.keys() ^ tensors.keys())
    for name, tensor in tensors.items():
        yield tensor, held[name]


def parts_of(model: nn.Module, optimizer: torch.optim.Optimizer, pieces: Pieces | None = None) -> Parts:
    """What this rank writes: views, no copies."""
    parts: Parts = {"model": {}, "optimizer": {}}
    for tensor, held in held_pieces(model, pieces):
        state = {
            key: local(value)
            for key, value in optimizer.state.get(tensor, {}).items()
            if isinstance(value, Tensor)
        }
        values = local(tensor)
        for piece in held:
            if not _is_written(piece):
                continue
            _add(parts["model"], piece.name, _cut(values, piece))
            for key, value in state.items():
                name = f"optimizer.{piece.name}.{key}"
                if value.shape == values.shape:
                    _add(parts["optimizer"], name, _cut(value, piece))
                elif not any(piece.offset):
                    _add(parts["optimizer"], name, Part(_uncut(name, value, piece)))
    return parts


def _is_written(piece: Piece) -> bool:
    return piece.saved and (piece.is_whole or 0 not in piece.size)


def _cut(values: Tensor, piece: Piece) -> Part:
    place = {"shape": list(piece.shape), "offset": list(piece.offset)}
    return Part(piece.of(values), None if piece.is_whole else place)


def _uncut(name: str, value: Tensor, piece: Piece) -> Tensor:
    if value.dim() and (piece.index is not None or not piece.is_whole):
        raise RecipeError(
            "the state of this optimizer cannot be saved from several ranks",
            found=f"{name} of shape {list(value.shape)}, for a weight of shape {list(piece.shape)}",
            wanted="state of the weight's own shape, or of no dimension",
            fix="train it in one process, or with an optimizer such as AdamW",
        )
    return value


def _add(parts: dict[str, Part], name: str, part: Part) -> None:
    assert name not in parts, f"{name} lies twice on one rank, and both are to be saved"
    parts[name] = part
