"""Write a checkpoint: safetensors files first, the manifest last. No manifest, no checkpoint.

    checkpoints/step-00001000/
      model-00000.safetensors       weights under their Hugging Face names
      optimizer-00000.safetensors   optimizer.<weight>.<state>
      manifest.json                 step, layout, sizes and hashes of the files, state that is not tensors

The number in a file's name is the rank that wrote it; a rank beyond the first that holds nothing of its own
writes none. The header of a file says which of its tensors are slices, and of what (`slices`). Rank 0 makes
the folder before, and writes the manifest after every rank has told its files (checkpoint/ranks.py). Each
file is hashed while it is written, fsynced and renamed; a kill at any moment leaves a folder without a
manifest, which counts for nothing and is swept by the next save. Tensors are copied to the host one by one.
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
from torch.distributed import Store  # type: ignore[attr-defined]

from bessemer.checkpoint.folder import MANIFEST, Manifest, checkpoint_folder, listed, step_of
from bessemer.checkpoint.needed import needed
from bessemer.checkpoint.parts import Part, Parts, parts_of
from bessemer.checkpoint.ranks import Talk, these_ranks
from bessemer.durable import atomic_file, cannot_write, write_json
from bessemer.model.pieces import Pieces

# Small enough that hashing one never holds up the training thread, which shares the interpreter.
_BLOCK_BYTES = 1 << 22
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
    *,
    pieces: Pieces | None = None,
    rank: int = 0,
    world: int = 1,
    store: Store | None = None,
) -> Path:
    """Write the checkpoint of `step`, all ranks together; returns its folder once it is whole.

    pieces: what this rank holds; None: everything. WriteError, on every rank, leaves the older checkpoints
    untouched. While training goes on: checkpoint/saver.py.
    """
    talk = Talk(these_ranks(rank, world, store), step)
    try:
        parts = parts_of(model, optimizer, pieces)
    except Exception as error:
        talk.fail(error)
        raise
    return write_parts(stage, step, parts, state, layout, talk)


def write_parts(
    stage: Path, step: int, parts: Parts, state: Mapping[str, Any], layout: Mapping[str, Any], talk: Talk
) -> Path:
    """This rank's files, and on rank 0 the folder before and the manifest after. See `save`."""
    folder = checkpoint_folder(stage, step)
    try:
        if talk.rank == 0:
            _make_folder(stage, folder)
            talk.open_folder()
        else:
            talk.wait_for_folder()
        talk.tell_files(_write_files(folder, parts, talk.rank))
        if talk.rank == 0:
            manifest = Manifest(step, dict(layout), talk.all_files(), dict(state))
            write_json(folder / MANIFEST, manifest.to_json())
            talk.close()
        else:
            talk.wait_until_whole()
    except Exception as error:
        talk.fail(error)
        raise
    return folder


def prune(stage: Path, keep: int, step: int) -> None:
    """Remove all but the newest `keep` checkpoints up to `step`, the one that was just written.

    Later ones go too: a run that writes `step` has gone back behind them, as they are damaged, and they
    must not push out a good one. What other stages still need stays (checkpoint/needed.py). The manifest goes
    first, so that none is half there.
    """
    folders, stay = listed(stage), needed(stage)
    later = [folder for folder in folders if (step_of(folder) or 0) > step]
    for folder in [*later, *folders[len(later) + keep :]]:
        if folder.resolve() in stay:
            continue
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def sweep(stage: Path) -> None:
    """Remove what a killed save left behind: folders without a manifest."""
    for folder in (stage / "checkpoints").glob("step-*"):
        if step_of(folder) is not None and not (folder / MANIFEST).is_file():
            shutil.rmtree(folder, ignore_errors=True)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> dict[str, Any]:
    """One file; returns {"bytes", "xxh3_128"}. The folder is made where it is missing."""
    digest = xxhash.xxh3_128()
    size = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    with atomic_file(path) as file:
        for block in _blocks(tensors, metadata):
            file.write(block)
            digest.update(block)
            size += len(block)
    return {"bytes": size, "xxh3_128": digest.hexdigest()}


def _make_folder(stage: Path, folder: Path) -> None:
    sweep(stage)
    shutil.rmtree(folder, ignore_errors=True)  # a whole one of the same step: it is written anew
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


def _write_files(folder: Path, parts: Parts, rank: int) -> dict[str, dict[str, Any]]:
    return {
        f"{kind}-{rank:05d}.safetensors": _write_file(folder / f"{kind}-{rank:05d}.safetensors", group)
        for kind, group in parts.items()
        if group or rank == 0  # an optimizer without state has a file too: that of a checkpoint is not lost
    }


def _write_file(path: Path, group: Mapping[str, Part]) -> dict[str, Any]:
    slices = {name: part.place for name, part in group.items() if part.place is not None}
    tensors = {name: part.tensor for name, part in group.items()}
    return write_safetensors(path, tensors, {"slices": json.dumps(slices, separators=(",", ":"))})


def _blocks(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> Iterator[bytes | memoryview]:
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
            content = flat.view(torch.uint8).numpy().data
            for begin in range(0, len(content), _BLOCK_BYTES):
                yield content[begin : begin + _BLOCK_BYTES]
