"""Write a checkpoint: safetensors files first, the manifest last. No manifest, no checkpoint.

    checkpoints/step-00001000/
      model-00000.safetensors       weights under their Hugging Face names
      optimizer-00000.safetensors   optimizer.<weight>.<state>
      manifest.json                 step, layout, sizes and hashes of the files, state that is not tensors

The number in a file's name is the rank that wrote it. Each file is hashed while it is written, fsynced
and renamed; a kill at any moment leaves a folder without a manifest, which counts for nothing and is
swept by the next save. A tensor is copied to the host one at a time.
Format of a file: huggingface.co/docs/safetensors (length, JSON header, bytes).
"""

import json
import shutil
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from bessemer.checkpoint.folder import MANIFEST, Manifest, checkpoint_folder, listed, step_of
from bessemer.durable import atomic_file, cannot_write, write_json

_TYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def save(
    stage: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    layout: Mapping[str, Any],
) -> Path:
    """Write the checkpoint of `step`; returns its folder. WriteError leaves the older ones untouched."""
    folder = checkpoint_folder(stage, step)
    sweep(stage)
    shutil.rmtree(folder, ignore_errors=True)  # a whole one of the same step: it is written anew
    contents = {
        "model-00000.safetensors": {name: tensor.detach() for name, tensor in stored_tensors(model).items()},
        "optimizer-00000.safetensors": optimizer_tensors(model, optimizer),
    }
    files = {
        name: write_safetensors(folder / name, tensors, {"slices": "{}"})
        for name, tensors in contents.items()
    }
    write_json(folder / MANIFEST, Manifest(step, dict(layout), files, dict(state)).to_json())
    return folder


def prune(stage: Path, keep: int, step: int) -> None:
    """Remove all but the newest `keep` checkpoints up to `step`, the one that was just written.

    Later ones go too: a run that writes `step` has gone back behind them, as they are damaged, and they
    must not push out a good one. The manifest goes first, so that none is half there.
    """
    folders = listed(stage)
    later = [folder for folder in folders if (step_of(folder) or 0) > step]
    for folder in [*later, *folders[len(later) + keep :]]:
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def sweep(stage: Path) -> None:
    """Remove what a killed save left behind: folders without a manifest."""
    for folder in (stage / "checkpoints").glob("step-*"):
        if step_of(folder) is not None and not (folder / MANIFEST).is_file():
            shutil.rmtree(folder, ignore_errors=True)


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, each once, and the buffers that a module declares as part of its state."""
    persistent = model.state_dict(keep_vars=True)
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    return {**dict(model.named_parameters()), **buffers}


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every tensor of the optimizer's state under optimizer.<weight>.<state>."""
    return {
        f"optimizer.{name}.{key}": value.detach()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> dict[str, Any]:
    """One file; returns {"bytes", "xxh3_128"}. The folder is made where it is missing."""
    digest = xxhash.xxh3_128()
    size = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    with atomic_file(path) as file:
        for piece in _pieces(tensors, metadata):
            file.write(piece)
            digest.update(piece)
            size += len(piece)
    return {"bytes": size, "xxh3_128": digest.hexdigest()}


def _pieces(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> Iterator[bytes | memoryview]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    offset = 0
    # Widest types first, so that every tensor begins at a multiple of its own size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    for name in names:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name in names:
        flat = tensors[name].cpu().contiguous().reshape(-1)
        if flat.numel():
            yield flat.view(torch.uint8).numpy().data
