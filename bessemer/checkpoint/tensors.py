"""Tensors, or regions of them, out of a checkpoint, whichever ranks wrote it.

Each file holds whole tensors or the slices of one rank; its header says which (CONTRACT: `slices`). Files
are mapped, and of a slice only what lies in the region asked for is read: a rank that loads its part of a
large model reads that part. Memory: the region.
"""

import json
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import safe_open
from torch import Tensor

from bessemer.checkpoint.folder import read_manifest
from bessemer.errors import CheckpointError

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Region:
    """A box in a tensor: where it begins, and how long it is, along each dim."""

    offset: Sizes
    size: Sizes

    @property
    def numel(self) -> int:
        return prod(self.size)

    def overlap(self, other: "Region") -> "Region":
        """What both hold; of some size 0 where they do not meet."""
        begins = [max(pair) for pair in zip(self.offset, other.offset, strict=True)]
        ends = [min(pair) for pair in zip(self._end, other._end, strict=True)]
        sizes = [max(0, end - begin) for begin, end in zip(begins, ends, strict=True)]
        return Region(tuple(begins), tuple(sizes))

    def within(self, outer: "Region") -> tuple[slice, ...]:
        """The index of this region in a tensor that holds `outer`."""
        begins = [own - base for own, base in zip(self.offset, outer.offset, strict=True)]
        return tuple(slice(begin, begin + n) for begin, n in zip(begins, self.size, strict=True))

    @property
    def _end(self) -> Sizes:
        return tuple(begin + n for begin, n in zip(self.offset, self.size, strict=True))


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

    def torch_dtype(self, name: str) -> torch.dtype:
        view = self._holders[name][0][0].get_slice(name)
        # An empty range of it: the type, and nothing read.
        dtype: torch.dtype = view[:0].dtype if view.get_shape() else view[()].dtype
        return dtype

    def shape(self, name: str) -> Sizes:
        """Of the whole tensor."""
        if name not in self._holders:
            raise incomplete(self._folder, f"no {name}")
        file, place = self._holders[name][0]
        return tuple(file.get_slice(name).get_shape() if place is None else place["shape"])

    def read(
        self, name: str, shape: Sizes | None = None, offset: Sizes | None = None, size: Sizes | None = None
    ) -> Tensor:
        """A tensor, or its region of `size` at `offset`. It may be a view into the mapped file: only to read.

        shape: that of the whole tensor. CheckpointError when it is another, or the region is not all there.
        """
        found = self.shape(name)
        if shape is not None and found != shape:
            raise incomplete(self._folder, f"{name} of shape {list(found)} instead of {list(shape)}")
        region = Region(offset or (0,) * len(found), found if size is None else size)
        parts = self._parts(name, region)
        for box, values in parts.items():
            if box == region:
                return values
        tensor = torch.empty(region.size, dtype=self.torch_dtype(name))
        for box, values in parts.items():
            tensor[box.within(region)] = values
        if not _covers(list(parts), region):
            raise incomplete(self._folder, f"{name} is not whole in any or all files together")
        return tensor

    def _parts(self, name: str, region: Region) -> dict[Region, Tensor]:
        """What each slice has of the region; nothing of a slice beyond it is touched."""
        parts: dict[Region, Tensor] = {}
        for file, place in self._holders[name]:
            view = file.get_slice(name)
            size = tuple(view.get_shape())
            slice_ = Region((0,) * len(size) if place is None else tuple(place["offset"]), size)
            box = region.overlap(slice_)
            if box.numel and box not in parts:
                # A tensor without dims has no ranges to be cut by.
                parts[box] = view[box.within(slice_)] if size else file.get_tensor(name)
        return parts


def incomplete(folder: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint {folder} does not hold this model",
        found=found,
        wanted="every tensor of the stage's model, in its shape",
        fix="choose another checkpoint with --step",
    )


def _covers(boxes: list[Region], region: Region) -> bool:
    """Whether boxes inside a region fill it."""
    if not boxes:
        return region.numel == 0
    begins = torch.tensor([box.offset for box in boxes])
    ends = begins + torch.tensor([box.size for box in boxes])
    meet = ((begins[:, None] < ends) & (ends[:, None] > begins)).all(-1)
    if int(meet.sum()) == len(boxes):  # each meets itself only: their sizes add up
        return sum(box.numel for box in boxes) == region.numel
    filled = torch.zeros(region.size, dtype=torch.bool)
    for box in boxes:
        filled[box.within(region)] = True
    return bool(filled.all())
