"""Which stored tensors a parameter holds: what checkpoints, initial values and imports speak of.

A parameter is usually one stored tensor under its own name. The experts of a layer are stacked into one
parameter, of which each expert is one stored tensor (`…experts.7.up_proj.weight`). On many ranks a
parameter is a part of them; then parallel/pieces.py says which.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bessemer.model.quantized import Packing


@dataclass(frozen=True)
class Piece:
    """A part of one stored tensor that lies in a parameter (or buffer, or optimizer state) of this rank."""

    name: str  # of the stored tensor, as Hugging Face has it
    shape: tuple[int, ...]  # of the whole stored tensor
    offset: tuple[int, ...]  # of the part in it
    size: tuple[int, ...]  # of the part; may hold no element
    index: int | None = None  # along dim 0 of a stack of tensors; None: the parameter is no stack
    saved: bool = True  # False: another rank holds the same values and writes them

    def of(self, local: Tensor) -> Tensor:
        """The part as a view into a tensor of the parameter's local shape."""
        part = local if self.index is None else local[self.index]
        assert part.shape == self.size, f"{self.name}: {tuple(part.shape)} is not {self.size}"
        return part

    @property
    def is_whole(self) -> bool:
        return self.size == self.shape


Pieces = dict[str, list[Piece]]  # by the name of the parameter in the module


def local(tensor: Tensor) -> Tensor:
    """This rank's values of a parameter, gradient or optimizer state; a view."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def stored_names(name: str, parameter: Tensor) -> list[str]:
    """Names of the stored tensors in a parameter: one, or one for each expert of a stack.

    A stack is named `….experts.up_proj`; its tensors are `….experts.0.up_proj.weight` and so on.
    """
    room, experts, matrix = name.rpartition(".experts.")
    if not experts:
        return [name]
    return [f"{room}.experts.{index}.{matrix}.weight" for index in range(parameter.shape[0])]


def stored(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of all that is state: parameters, each once, and persistent buffers."""
    # FSDP's own hook on this call also frees what is gathered, so that parameters are this rank's parts.
    persistent = model.state_dict(keep_vars=True)
    yield from model.named_parameters()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in persistent)


def packings(model: nn.Module) -> dict[str, Packing]:
    """How parameters are packed, by name, of those that are (model/quantized.py)."""
    packed = ((name, getattr(module, "packing", None)) for name, module in model.named_modules())
    return {f"{name}.weight": packing for name, packing in packed if packing is not None}


def whole_pieces(model: nn.Module) -> Pieces:
    """Of a model that one process holds whole."""
    found: Pieces = {}
    packed = packings(model)
    for name, tensor in stored(model):
        names, shape = stored_names(name, tensor), tuple(tensor.shape)
        if name in packed:
            shape = (shape[0], packed[name].whole)
        if len(names) == 1 and names[0] == name:
            found[name] = [Piece(name, shape, (0,) * len(shape), shape)]
        else:
            size = shape[1:]
            found[name] = [
                Piece(each, size, (0,) * len(size), size, index) for index, each in enumerate(names)
            ]
    return found
