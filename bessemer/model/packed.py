"""A model whose frozen matrices are packed into 4 or 8 bits, and how values come into them.

Each matrix is replaced on the meta device, before it has memory; its values are quantised as they are read,
one tensor at a time, so that the whole model is never there in float.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bessemer.formulas.layout import split_evenly
from bessemer.formulas.quantized import is_packed
from bessemer.formulas.shape import ModelShape
from bessemer.formulas.tensors import tensor_table
from bessemer.model.layers import Linear
from bessemer.model.pieces import Piece, Pieces, local, packings, stored
from bessemer.model.quantized import Packing, quantise

Sizes = tuple[int, ...]


def pack_bases(model: nn.Module, shape: ModelShape, tensor: int = 1, place: int = 0) -> None:
    """Give the frozen matrices of a model without values the size that they have packed.

    tensor, place: ranks of the tensor axis, and this one, which has its part of them.
    """
    if shape.adapter is None or shape.adapter.base == "float":
        return
    specs = {spec.name: spec for spec in tensor_table(shape)}
    for name, module in model.named_modules():
        spec = specs.get(f"{name}.weight")
        if isinstance(module, Linear) and spec is not None and is_packed(spec):
            parts = [split_evenly(size, tensor)[place] if dim == spec.tensor_dim else range(size)
                     for dim, size in enumerate(spec.shape)]  # fmt: skip
            module.packing = Packing(shape.adapter.base, spec.shape[1], parts[1].start, parts[1].stop)
            size = (len(parts[0]), module.packing.bytes_per_row)
            packed = torch.empty(size, dtype=torch.uint8, device=module.weight.device)
            module.weight = nn.Parameter(packed, requires_grad=False)


@dataclass(frozen=True)
class Place:
    """Where this rank keeps a piece of a stored tensor, and how."""

    piece: Piece
    parameter: Tensor  # this rank's part of the parameter that the piece is in
    packing: Packing | None

    def take(self, read: Callable[[Sizes, Sizes], Tensor]) -> None:
        """read: the region of the stored tensor at (offset, size). Packed, whole rows are read, as their
        scales are those of all their columns."""
        piece = self.piece
        if self.packing is None:
            piece.of(self.parameter).copy_(read(piece.offset, piece.size))
        elif piece.size[0]:
            rows_OI = read((piece.offset[0], 0), (piece.size[0], self.packing.whole))
            self.parameter.copy_(quantise(rows_OI.to(self.parameter.device), self.packing))

    def take_from(self, whole: Tensor) -> None:
        """Out of the whole stored tensor."""
        self.take(
            lambda offset, size: whole[tuple(slice(o, o + n) for o, n in zip(offset, size, strict=True))]
        )


def places(model: nn.Module, pieces: Pieces) -> dict[str, list[Place]]:
    """By the name of the stored tensor, all that this rank keeps of `pieces`."""
    tensors, packed = dict(stored(model)), packings(model)
    found: dict[str, list[Place]] = {}
    for name, held in pieces.items():
        for piece in held:
            found.setdefault(piece.name, []).append(Place(piece, local(tensors[name]), packed.get(name)))
    return found
