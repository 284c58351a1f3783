"""A checkpoint's weights as Hugging Face safetensors: streamed, bit for bit unless a type is asked for.

A tensor is assembled (checkpoint/tensors.py), written with its shard, and dropped. Memory: one shard.
Shards are filled in the order of the forward pass up to 5 GB, as transformers does.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from bessemer.checkpoint.tensors import CheckpointTensors
from bessemer.durable import guard_write, write_json
from bessemer.errors import RecipeError
from bessemer.formulas.shape import ModelShape
from bessemer.formulas.stored import StoredTensor, stored_table
from bessemer.formulas.tensors import tensor_table

SHARD_BYTES = 5_000_000_000
_TYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}
_STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def parse_dtype(name: str) -> torch.dtype:
    if name in _TYPES:
        return _TYPES[name]
    raise RecipeError(
        "this type cannot be exported",
        found=f"--dtype {name}",
        wanted=f"one of {', '.join(_TYPES)}",
        fix="leave --dtype out to keep the weights bit for bit",
    )


def dtype_name(dtype: torch.dtype) -> str:
    """As Hugging Face writes it: "float32"."""
    return str(dtype).removeprefix("torch.")


def stored_dtype(checkpoint: Path) -> torch.dtype:
    with CheckpointTensors(checkpoint, "model") as stored:
        return _STORED[stored.dtype(stored.names[0])]


def stored_weights(checkpoint: Path, shape: ModelShape) -> Iterator[tuple[str, Tensor]]:
    """Every weight of the shape, whole, in the order of the forward pass."""
    table = {spec.name: spec.shape for spec in tensor_table(shape)}
    with CheckpointTensors(checkpoint, "model") as stored:
        for name, size in table.items():
            yield name, stored.read(name, size)


def joined(weights: Iterator[tuple[str, Tensor]], shape: ModelShape) -> Iterator[tuple[str, Tensor]]:
    """Every weight under the name that the family's files have, from all in the order of the tensor table."""
    for stored in stored_table(shape):
        yield stored.name, _assembled(stored, weights)


def _assembled(stored: StoredTensor, weights: Iterator[tuple[str, Tensor]]) -> Tensor:
    parts = []
    for spec in stored.parts:
        name, tensor = next(weights)
        assert name == spec.name, (name, spec.name)
        parts.append(tensor)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def write_weights(
    checkpoint: Path,
    shape: ModelShape,
    folder: Path,
    dtype: torch.dtype | None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """model.safetensors, or shards with their index where one file would be over `shard_bytes`."""
    itemsize = (stored_dtype(checkpoint) if dtype is None else dtype).itemsize
    write_tensors(stored_weights(checkpoint, shape), shape, folder, dtype, itemsize, shard_bytes)


def write_tensors(
    own: Iterator[tuple[str, Tensor]],
    shape: ModelShape,
    folder: Path,
    dtype: torch.dtype | None,
    itemsize: int,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """The same of any weights, in the order of the tensor table. itemsize: bytes of a number, written."""
    names = _shards(shape, itemsize, shard_bytes)
    weights = joined(own, shape)
    # The bias of a router moves by steps far below bf16's; transformers too keeps it in fp32.
    kept = {spec.name for spec in tensor_table(shape) if not spec.trained}
    index: dict[str, str] = {}
    size_bytes = 0
    for place, shard in enumerate(names, start=1):
        file = (
            "model.safetensors" if len(names) == 1 else f"model-{place:05d}-of-{len(names):05d}.safetensors"
        )
        tensors = {
            name: _convert(name, tensor, None if name in kept else dtype)
            for name, tensor in _take(weights, len(shard))
        }
        assert list(tensors) == shard, (list(tensors), shard)
        path = folder / file
        guard_write(path, partial(save_file, tensors, path, {"format": "pt"}))
        index |= dict.fromkeys(shard, file)
        size_bytes += sum(tensor.nbytes for tensor in tensors.values())
    if len(names) > 1:
        content = {"metadata": {"total_size": size_bytes}, "weight_map": index}
        write_json(folder / "model.safetensors.index.json", content)


def _shards(shape: ModelShape, itemsize: int, shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for stored in stored_table(shape):
        size = stored.numel * itemsize
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(stored.name)
        filled += size
    return shards


def _take(weights: Iterator[tuple[str, Tensor]], count: int) -> Iterator[tuple[str, Tensor]]:
    for _ in range(count):
        yield next(weights)


def _convert(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is None or dtype == tensor.dtype:
        return tensor.contiguous()
    converted = tensor.to(dtype)
    if not bool(torch.isfinite(converted).all()) and bool(torch.isfinite(tensor).all()):
        raise RecipeError(
            "a weight is too large for the type asked for",
            found=f"{name} reaches {float(tensor.abs().max()):.4g} in {dtype_name(dtype)}",
            wanted="a type that holds every weight",
            fix="export with --dtype bfloat16, or without --dtype",
        )
    return converted.contiguous()
