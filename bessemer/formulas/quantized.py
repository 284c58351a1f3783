"""Bytes of a frozen base in 4 or 8 bits, and which matrices are kept so.

A row of the matrix is packed into bytes: its codes, and after them its fp32 scales. 4-bit (nf4): two codes
in a byte, a scale for each block of 64 columns, 0.5625 bytes a weight. 8-bit (int8): a byte a code, one scale
for the row. QLoRA's second quantisation, of the scales, is not done: it would save another 0.055 bytes a
weight, 3.8 GB of Llama 70B's 38.5 GB, and its rounding makes a weight depend on 16,384 others.
Packed are the matrices of blocks that an adapter could sit beside; embedding, head, norms, routers and
routed experts stay in the compute type, as in QLoRA.
Source: arXiv:2305.14314 sections 2 and 3; block and scale as in bitsandbytes' `quantize_4bit`.
"""

from dataclasses import dataclass, replace
from functools import cache
from math import ceil

from bessemer.formulas.parameters import num_dense_layers
from bessemer.formulas.shape import ModelShape
from bessemer.formulas.tensor_spec import TensorSpec
from bessemer.formulas.tensors import tensor_table

NF4_BLOCK = 64
SCALE_BYTES = 4
_PACKED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def is_packed(spec: TensorSpec) -> bool:
    """Whether a base in 4 or 8 bits packs this tensor."""
    room, _, module = spec.name.removesuffix(".weight").rpartition(".")
    return spec.expert is None and module in _PACKED and ".layers." in room


def row_bytes(kind: str, columns: int) -> int:
    """Of one packed row that begins at a block. kind: nf4 or int8."""
    if kind == "int8":
        return columns + SCALE_BYTES
    blocks = -(-columns // NF4_BLOCK)
    return blocks * (NF4_BLOCK // 2 + SCALE_BYTES)


def packed_row_bytes(kind: str, columns: range) -> int:
    """Of the part of a row that one rank has: for nf4 the whole blocks that its columns lie in."""
    start = columns.start // NF4_BLOCK * NF4_BLOCK if kind == "nf4" else columns.start
    return row_bytes(kind, columns.stop - start)


@dataclass(frozen=True)
class Packed:
    """Of some frozen weights, those that are packed: how many, and into how many bytes."""

    elements: int = 0
    bytes: int = 0

    def __add__(self, other: "Packed") -> "Packed":
        return Packed(self.elements + other.elements, self.bytes + other.bytes)

    def times(self, count: int) -> "Packed":
        return Packed(count * self.elements, count * self.bytes)

    def shard(self, ranks: int) -> "Packed":
        return Packed(self.elements // ranks, ceil(self.bytes / ranks))

    def frozen_bytes(self, elements: int, size: int) -> int:
        """Of so many frozen weights with these among them. size: bytes of one that is not packed."""
        return size * (elements - self.elements) + self.bytes


NONE_PACKED = Packed()


def packed_model(shape: ModelShape) -> Packed:
    """In one process."""
    dense = num_dense_layers(shape)
    counts = {False: dense, True: shape.layers - dense}
    parts = (packed_block(shape, routed=routed).times(count) for routed, count in counts.items() if count)
    return sum(parts, NONE_PACKED)


def packed_block(shape: ModelShape, tensor: int = 1, *, routed: bool) -> Packed:
    """Of one layer, on a rank of the tensor axis."""
    if shape.adapter is None or shape.adapter.base == "float":
        return NONE_PACKED
    sizes = [_part(spec, tensor) for spec in _packed_specs(_plain(shape), routed)]
    size_bytes = sum(rows * row_bytes(shape.adapter.base, columns) for rows, columns in sizes)
    return Packed(sum(rows * columns for rows, columns in sizes), size_bytes)


def unpacked_bytes(shape: ModelShape, size: int, tensor: int = 1) -> int:
    """Of the largest packed matrix in the compute type, of `size` bytes, while it is multiplied with."""
    if shape.adapter is None or shape.adapter.base == "float":
        return 0
    dense = num_dense_layers(shape)
    kinds = [routed for routed, count in ((False, dense), (True, shape.layers - dense)) if count]
    specs = [spec for routed in kinds for spec in _packed_specs(_plain(shape), routed)]
    largest = max(rows * columns for rows, columns in (_part(spec, tensor) for spec in specs))
    return size * largest


def _plain(shape: ModelShape) -> ModelShape:
    """Of which these tensors depend."""
    return replace(shape, adapter=None, rope_scaling=None)


@cache
def _packed_specs(shape: ModelShape, routed: bool) -> tuple[TensorSpec, ...]:
    one = replace(shape, layers=1, dense_layers=0 if routed or not shape.experts else 1)
    return tuple(spec for spec in tensor_table(one) if is_packed(spec))


def _part(spec: TensorSpec, tensor: int) -> tuple[int, int]:
    """(rows, columns) on the rank with the largest part."""
    sizes = [ceil(size / tensor) if dim == spec.tensor_dim else size for dim, size in enumerate(spec.shape)]
    return sizes[0], sizes[1]
