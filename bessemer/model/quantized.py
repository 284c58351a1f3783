"""Frozen matrices in 4 or 8 bits: packed once, dequantised to the compute type at each use.

nf4   16 values that are quantiles of a normal distribution, times the largest of a block of 64 columns
int8  -127 … 127, times the largest of the row, over 127

Blocks lie along a row and begin anew with each. Where the number of columns is a multiple of 64, as in every
published model, codes and scales are bit for bit bitsandbytes' (which cuts the flattened matrix); elsewhere
the last block of a row is shorter. Whole rows are quantised, and then the columns of a tensor rank are cut
out in whole blocks: a weight is the same number in every layout.
A packed matrix is one uint8 tensor [rows, bytes], scales behind the codes, so that FSDP shards it by rows
and nothing ever casts a scale. Its gradient is none; that of the input dequantises again (`frozen_linear`
of model/frozen.py).
Cost on one core of a Xeon with AVX-512, of 8.4 M weights: nf4 11 ms to bf16 and 25 to fp32, most of it page
faults of the result (bitsandbytes' C++ takes 3 and 15), int8 5 and 18; an fp32 matmul of 256 tokens 28.
Source: arXiv:2305.14314 (QLoRA), appendix E for the values, as bitsandbytes 0.50 has them.
Not done: double quantisation of scales (formulas/quantized.py says why), and bitsandbytes' own kernels.
Dims: O rows (outputs), I columns (inputs), N blocks, B bytes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bessemer.formulas.quantized import NF4_BLOCK, row_bytes

# float32 exactly; written as bitsandbytes has them.
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
_TINY = 1e-38  # in place of the scale of a block of zeros
_INT8_MOST = 127
_IN_CACHE = 2**17  # weights: their fp32 values are half a MiB


@dataclass(frozen=True)
class Packing:
    """How a matrix of `whole` columns is packed; this rank multiplies with those from begin to end."""

    kind: str  # nf4 or int8
    whole: int
    begin: int
    end: int

    @property
    def columns(self) -> int:
        return self.end - self.begin

    @property
    def bytes_per_row(self) -> int:
        return row_bytes(self.kind, self.held.stop - self.held.start)

    @property
    def held(self) -> slice:
        """Columns that are packed: for nf4 in whole blocks."""
        if self.kind == "int8":
            return slice(self.begin, self.end)
        first = self.begin // NF4_BLOCK * NF4_BLOCK
        return slice(first, min(self.whole, -(-self.end // NF4_BLOCK) * NF4_BLOCK))


def quantise(rows_OI: Tensor, packing: Packing) -> Tensor:
    """Packed [O, B] uint8 of whole rows, cut to the rank's columns."""
    assert rows_OI.shape[1] == packing.whole, (rows_OI.shape, packing)
    size = (rows_OI.shape[0], packing.bytes_per_row)
    packed_OB = torch.empty(size, dtype=torch.uint8, device=rows_OI.device)
    pack = _pack_nf4 if packing.kind == "nf4" else _pack_int8
    step = _rows_at_once(packed_OB, packing.whole)
    for some_OI, some_OB in zip(rows_OI.split(step), packed_OB.split(step), strict=True):
        codes, scales = pack(some_OI.float(), packing)
        some_OB[:, : codes.shape[1]] = codes
        some_OB[:, codes.shape[1] :] = scales.contiguous().view(torch.uint8)
    return packed_OB


def dequantise(packed_OB: Tensor, packing: Packing, dtype: torch.dtype) -> Tensor:
    """The rank's columns of the matrix in `dtype` [O, I]: code times scale in fp32, then rounded."""
    out_OI = packed_OB.new_empty((packed_OB.shape[0], packing.columns), dtype=dtype)
    held = packing.held.stop - packing.held.start
    own = slice(packing.begin - packing.held.start, packing.end - packing.held.start)
    unpack = _unpack_nf4 if packing.kind == "nf4" else _unpack_int8
    step = _rows_at_once(packed_OB, held)
    for some_OB, some_OI in zip(packed_OB.split(step), out_OI.split(step), strict=True):
        some_OI.copy_(unpack(some_OB, held)[:, own])
    return out_OI


def _rows_at_once(packed_OB: Tensor, columns: int) -> int:
    """On a CPU as many as stay in its cache while they are worked on; elsewhere, and compiled, all."""
    if packed_OB.device.type != "cpu" or torch.compiler.is_compiling():
        return max(1, packed_OB.shape[0])
    return max(1, _IN_CACHE // columns)


def _pack_nf4(rows_OI: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
    held_OI = rows_OI[:, packing.held]
    short = -held_OI.shape[1] % NF4_BLOCK
    blocks_ONI = torch.nn.functional.pad(held_OI, (0, short)).unflatten(1, (-1, NF4_BLOCK))
    scales_ON = blocks_ONI.abs().amax(-1)
    # Times the reciprocal, as bitsandbytes does: a division would round some weights to the other neighbour.
    unit_ONI = (blocks_ONI * (1.0 / scales_ON.clamp(min=_TINY)).unsqueeze(-1)).clamp(-1.0, 1.0)
    values = torch.tensor(NF4, device=rows_OI.device)
    codes_ONI = torch.bucketize(unit_ONI, (values[:-1] + values[1:]) / 2, out_int32=True).to(torch.uint8)
    codes_OI = codes_ONI.flatten(1)
    return (codes_OI[:, ::2] << 4) | codes_OI[:, 1::2], scales_ON


def _unpack_nf4(packed_OB: Tensor, columns: int) -> Tensor:
    num_bytes = -(-columns // NF4_BLOCK) * (NF4_BLOCK // 2)
    codes = packed_OB[:, :num_bytes].int()
    values = _pairs(packed_OB.device).index_select(0, codes.flatten()).view(torch.float32)
    blocks_ONI = values.view(packed_OB.shape[0], -1, NF4_BLOCK)
    # In place: a second buffer costs more than the multiplication, as its pages come anew each time.
    return blocks_ONI.mul_(_scales(packed_OB, num_bytes).unsqueeze(-1)).flatten(1)[:, :columns]


def _pack_int8(rows_OI: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
    scales_O1 = rows_OI.abs().amax(1, keepdim=True) / _INT8_MOST
    held_OI = rows_OI[:, packing.held]
    codes_OI = (held_OI / scales_O1.clamp(min=_TINY)).round().clamp(-_INT8_MOST, _INT8_MOST)
    return codes_OI.to(torch.int8).view(torch.uint8), scales_O1


def _unpack_int8(packed_OB: Tensor, columns: int) -> Tensor:
    codes_OI = packed_OB[:, :columns].contiguous().view(torch.int8)
    return codes_OI.float().mul_(_scales(packed_OB, columns))


def _scales(packed_OB: Tensor, num_bytes: int) -> Tensor:
    """fp32, behind so many bytes of codes. A copy, as bytes within a row need not be aligned."""
    return packed_OB[:, num_bytes:].contiguous().view(torch.float32)


def _pairs(device: torch.device) -> Tensor:
    """[256]: both values of a byte as the 64 bits of two floats, so that one look-up gives both."""
    values = torch.tensor(NF4, device=device)
    both = torch.stack([values.repeat_interleave(16), values.repeat(16)], 1)
    return both.view(torch.int64).squeeze(1)
