"""A verified checkpoint's weights into a model: each rank reads the pieces that it holds, whoever wrote them.

Names are checked before the first tensor is copied, so that nothing half fitting reaches a model.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from bessemer.checkpoint.grown import GROWN, grown
from bessemer.checkpoint.tensors import CheckpointTensors, incomplete
from bessemer.formulas.shape import HEADS
from bessemer.model.packed import places
from bessemer.model.pieces import Piece, Pieces, whole_pieces


def load_weights(
    model: nn.Module,
    folder: Path,
    pieces: Pieces | None = None,
    *,
    other_head: bool = False,
    new_tokens: Sequence[int] = (),
) -> None:
    """Copy a verified checkpoint's weights into a model whose memory is there.

    pieces: what this rank holds, which may be a part of the model; None: all of it.
    other_head: the checkpoint may have another head than the model, which then keeps its values.
    new_tokens: numbers of those that the model has beside the checkpoint's (checkpoint/grown.py).
    """
    held = whole_pieces(model) if pieces is None else pieces
    with CheckpointTensors(folder, "model") as stored, torch.no_grad():
        found = set(stored.names)
        if other_head:
            held = {name: [each for each in parts if _fits(stored, each)] for name, parts in held.items()}
            found -= {head for head in HEADS if head in found}
            found |= {piece.name for parts in held.values() for piece in parts if piece.name in HEADS}
        names = {piece.name for parts in held.values() for piece in parts}
        different = names - found if pieces is not None else names ^ found
        if different:
            raise incomplete(folder, f"{len(different)} names differ, {min(different)} among them")
        for name, here in places(model, held).items():
            if new_tokens and name in GROWN:
                whole = grown(stored.read(name), here[0].piece.shape[0], new_tokens)
            for place in here:
                if new_tokens and name in GROWN:
                    place.take_from(whole)
                else:
                    place.take(partial(stored.read, name, place.piece.shape))


def read_piece(stored: CheckpointTensors, name: str, piece: Piece) -> Tensor:
    return stored.read(name, piece.shape, piece.offset, piece.size)


def _fits(stored: CheckpointTensors, piece: Piece) -> bool:
    """Not a head that the checkpoint lacks, or has in another size."""
    return piece.name not in HEADS or (
        piece.name in stored.names and tuple(stored.shape(piece.name)) == piece.shape
    )
