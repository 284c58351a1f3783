"""A checkpoint's weights as Hugging Face safetensors: streamed, bit for bit unless a type is asked for.

Each file of a checkpoint holds whole tensors or the slices of one rank; the header says which
(CONTRACT: `slices`). A tensor is assembled, written with its shard, and dropped. Memory: one shard.
Shards are filled in the order of the forward pass up to 5 GB, as transformers does.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bessemer.durable import guard_write, write_json
from bessemer.errors import DataError, RecipeError
from bessemer.formulas.shape import ModelShape
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
    with safe_open(_files(checkpoint)[0], framework="pt") as file:
        return _STORED[file.get_slice(next(iter(file.keys()))).get_dtype()]


def stored_weights(checkpoint: Path, shape: ModelShape) -> Iterator[tuple[str, Tensor]]:
    """Every weight of the shape, whole, in the order of the forward pass."""
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, framework="pt")) for path in _files(checkpoint)]
        holders: dict[str, list[tuple[Any, list[int] | None]]] = {}
        for file in files:
            slices = json.loads((file.metadata() or {}).get("slices", "{}"))
            for name in file.keys():  # noqa: SIM118 (not a dict)
                holders.setdefault(name, []).append((file, (slices.get(name) or {}).get("offset")))
        for spec in tensor_table(shape):
            yield spec.name, _assemble(spec.name, spec.shape, holders.get(spec.name, []), checkpoint)


def write_weights(
    checkpoint: Path,
    shape: ModelShape,
    folder: Path,
    dtype: torch.dtype | None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """model.safetensors, or shards with their index where one file would be over `shard_bytes`."""
    written = stored_dtype(checkpoint) if dtype is None else dtype
    names = _shards(shape, written.itemsize, shard_bytes)
    weights = stored_weights(checkpoint, shape)
    index: dict[str, str] = {}
    for place, shard in enumerate(names, start=1):
        file = (
            "model.safetensors" if len(names) == 1 else f"model-{place:05d}-of-{len(names):05d}.safetensors"
        )
        tensors = {name: _convert(name, tensor, dtype) for name, tensor in _take(weights, len(shard))}
        assert list(tensors) == shard, (list(tensors), shard)
        path = folder / file
        guard_write(path, partial(save_file, tensors, path, {"format": "pt"}))
        index |= dict.fromkeys(shard, file)
    if len(names) > 1:
        total = sum(spec.numel for spec in tensor_table(shape)) * written.itemsize
        write_json(
            folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index}
        )


def _files(checkpoint: Path) -> list[Path]:
    files = sorted(checkpoint.glob("model-*.safetensors"))
    if files:
        return files
    raise DataError(
        f"no weights in {checkpoint}",
        found="no model-*.safetensors",
        wanted="a checkpoint with its weights",
        fix="choose another one with --step",
    )


def _assemble(
    name: str, size: tuple[int, ...], holders: list[tuple[Any, list[int] | None]], checkpoint: Path
) -> Tensor:
    """One whole tensor from the files that hold it or its parts."""
    whole = [file for file, offset in holders if offset is None]
    if whole:
        tensor: Tensor = whole[0].get_tensor(name)
    else:
        parts = [(file.get_tensor(name), offset) for file, offset in holders if offset is not None]
        filled = torch.zeros(size, dtype=torch.bool)
        tensor = torch.empty(size, dtype=parts[0][0].dtype) if parts else torch.empty(0)
        for part, offset in parts:
            place = tuple(slice(o, o + n) for o, n in zip(offset, part.shape, strict=True))
            tensor[place], filled[place] = part, True
        if not parts or not bool(filled.all()):
            raise _incomplete(checkpoint, f"{name} is not whole in any or all files together")
    if tuple(tensor.shape) != size:
        raise _incomplete(checkpoint, f"{name} of shape {list(tensor.shape)} instead of {list(size)}")
    return tensor


def _shards(shape: ModelShape, itemsize: int, shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for spec in tensor_table(shape):
        size = spec.numel * itemsize
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(spec.name)
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


def _incomplete(checkpoint: Path, found: str) -> DataError:
    return DataError(
        f"the checkpoint {checkpoint} does not hold this model",
        found=found,
        wanted="every tensor of stage.json's shape",
        fix="choose another checkpoint with --step",
    )
