"""The tensors of a Hugging Face file, and which of ours each is made of.

Most are ours under the same name. Phi-3's classes join query, key and value into one matrix, and gate and
up: in memory they stay apart, as a joined one breaks under sharding, so they are cut where weights are read
and joined again where they are written. Both are exact.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from bessemer.formulas.families import traits_of
from bessemer.formulas.shape import ModelShape
from bessemer.formulas.tensor_spec import TensorSpec
from bessemer.formulas.tensors import tensor_table

_JOINED = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file. `parts`: ours, one below the other along dim 0."""

    name: str
    parts: tuple[TensorSpec, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    @property
    def numel(self) -> int:
        return sum(part.numel for part in self.parts)

    def rows(self) -> Iterator[tuple[TensorSpec, slice]]:
        """Each part with its rows in the whole."""
        first = 0
        for part in self.parts:
            yield part, slice(first, first + part.shape[0])
            first += part.shape[0]


def stored_table(shape: ModelShape) -> list[StoredTensor]:
    """In the order of the forward pass."""
    return stored_tensors(shape, tensor_table(shape))


def stored_tensors(shape: ModelShape, specs: list[TensorSpec]) -> list[StoredTensor]:
    """The same of some of a shape's tensors, in the order of its table."""
    names = _JOINED if traits_of(shape.family).joined else {}
    grouped = groupby(specs, lambda spec: _stored_name(spec.name, names))
    return [StoredTensor(name, tuple(parts)) for name, parts in grouped]


def _stored_name(name: str, names: dict[str, str]) -> str:
    room, dot, weight = name.rpartition(".")
    before, _, module = room.rpartition(".")
    return f"{before}.{names[module]}{dot}{weight}" if module in names else name
