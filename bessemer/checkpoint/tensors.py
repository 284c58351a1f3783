"""Whole tensors out of a checkpoint, whichever ranks wrote it.

Each file holds whole tensors or the slices of one rank; its header says which (CONTRACT: `slices`).
Memory: one tensor at a time.
"""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import safe_open
from torch import Tensor

from bessemer.checkpoint.folder import read_manifest
from bessemer.errors import CheckpointError


class CheckpointTensors:
    """The tensors of one kind ("model", "optimizer") of a verified checkpoint, opened together."""

    def __init__(self, folder: Path, kind: str) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._holders: dict[str, list[tuple[Any, dict[str, Any] | None]]] = {}
        # Only what the manifest names was verified; a stray file beside it was not.
        names = sorted(name for name in read_manifest(folder).files if name.startswith(f"{kind}-"))
        paths = [folder / Path(name).name for name in names]
        if not paths:
            raise incomplete(folder, f"no {kind}-*.safetensors")
        for path in paths:
            file = self._stack.enter_context(safe_open(path, framework="pt"))
            slices = json.loads((file.metadata() or {}).get("slices", "{}"))
            for name in file.keys():  # noqa: SIM118 (not a dict)
                self._holders.setdefault(name, []).append((file, slices.get(name)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def names(self) -> list[str]:
        return list(self._holders)

    def dtype(self, name: str) -> str:
        """As the file's header writes it: "F32"."""
        return str(self._holders[name][0][0].get_slice(name).get_dtype())

    def read(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """A whole tensor, assembled from its slices. CheckpointError when it is not of `shape`."""
        holders = self._holders.get(name, [])
        whole = [file for file, place in holders if place is None]
        tensor: Tensor = whole[0].get_tensor(name) if whole else self._assemble(name, holders)
        if shape is not None and tuple(tensor.shape) != shape:
            raise incomplete(self._folder, f"{name} of shape {list(tensor.shape)} instead of {list(shape)}")
        return tensor

    def _assemble(self, name: str, holders: list[tuple[Any, dict[str, Any] | None]]) -> Tensor:
        parts = [(file.get_tensor(name), place) for file, place in holders if place is not None]
        if not parts:
            raise incomplete(self._folder, f"no {name}")
        size = tuple(parts[0][1]["shape"])
        tensor, filled = torch.empty(size, dtype=parts[0][0].dtype), torch.zeros(size, dtype=torch.bool)
        for part, place in parts:
            where = tuple(slice(o, o + n) for o, n in zip(place["offset"], part.shape, strict=True))
            tensor[where], filled[where] = part, True
        if not bool(filled.all()):
            raise incomplete(self._folder, f"{name} is not whole in any or all files together")
        return tensor


def incomplete(folder: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint {folder} does not hold this model",
        found=found,
        wanted="every tensor of the stage's model, in its shape",
        fix="choose another checkpoint with --step",
    )
