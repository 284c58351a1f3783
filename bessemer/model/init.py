"""Initial weights: a stateless function of (seed, tensor name, block of elements).

A tensor is cut into blocks of 65,536 elements; each block has its own Philox stream, so that any
slice can be made alone, on any rank, with the same values as in one process. Philox is counter
based: the key is a hash of seed and name, the counter's high word is the block.
Cost: about 100 M values a second and core.
"""

from functools import partial

import numpy as np
import torch
import xxhash
from torch import nn

from bessemer.formulas.shape import ModelShape
from bessemer.formulas.tensor_spec import TensorSpec
from bessemer.formulas.tensors import tensor_table
from bessemer.model.packed import Sizes, places
from bessemer.model.pieces import Pieces, whole_pieces

_BLOCK = 65536


def initialise(model: nn.Module, shape: ModelShape, seed: int, device: torch.device | str) -> None:
    """Give a model built on the meta device its memory and its values, each tensor once."""
    model.to_empty(device=device)
    zero_counters(model)
    fill(model, whole_pieces(model), shape, seed)


def fill(model: nn.Module, pieces: Pieces, shape: ModelShape, seed: int) -> None:
    """First values of what is held here, be it whole tensors or parts of them."""
    specs = {spec.name: spec for spec in tensor_table(shape)}
    with torch.no_grad():
        for name, held in places(model, pieces).items():
            for place in held:
                place.take(partial(_region, specs[name], seed))


def _region(spec: TensorSpec, seed: int, offset: Sizes, size: Sizes) -> torch.Tensor:
    rows, *others = (slice(o, o + n) for o, n in zip(offset, size, strict=True))
    return initial_values(spec, seed, rows)[(slice(None), *others)]


def zero_counters(model: nn.Module) -> None:
    """Buffers that are no part of a checkpoint begin at zero; `to_empty` leaves them as they come."""
    kept = set(model.state_dict())
    for name, buffer in model.named_buffers():
        if name not in kept:
            buffer.zero_()


def initial_values(spec: TensorSpec, seed: int, rows: slice = slice(None)) -> torch.Tensor:
    """fp32 values of `spec`, or of a range of its rows (dim 0), equal to that slice of the whole."""
    first, last, step = rows.indices(spec.shape[0])
    assert step == 1 and first <= last, rows
    row_size = spec.numel // spec.shape[0]
    size = (last - first, *spec.shape[1:])
    if spec.init_std is None:
        return torch.ones(size)
    if spec.init_std == 0.0:
        return torch.zeros(size)
    flat = _normal(spec.name, seed, first * row_size, last * row_size) * np.float32(spec.init_std)
    return torch.from_numpy(flat).view(size)


def _normal(name: str, seed: int, begin: int, end: int) -> np.ndarray:
    """Elements begin..end of the endless stream of standard normal values that belongs to `name`."""
    key = xxhash.xxh3_128_intdigest(f"{seed}/{name}".encode())
    values = np.empty(end - begin, dtype=np.float32)
    for block in range(begin // _BLOCK, -(-end // _BLOCK)):
        stream = np.random.Generator(np.random.Philox(key=key, counter=block << 128))
        first = block * _BLOCK
        low, high = max(begin, first), min(end, first + _BLOCK)
        drawn = stream.standard_normal(high - first, dtype=np.float32)
        values[low - begin : high - begin] = drawn[low - first :]
    return values
