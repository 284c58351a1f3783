"""A region of a stored tensor: what is asked for, all of it, and nothing else of the file."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from making_processes import ROOT
from torch import Tensor

from bessemer.checkpoint.folder import Manifest
from bessemer.checkpoint.tensors import CheckpointTensors
from bessemer.checkpoint.write import write_safetensors
from bessemer.durable import write_json
from bessemer.errors import CheckpointError

WHOLE = torch.arange(7.0 * 5 * 3).reshape(7, 5, 3)
Box = tuple[tuple[int, int], ...]  # begin and end along each dim


def checkpoint(folder: Path, boxes: list[Box], whole: Tensor = WHOLE) -> Path:
    """One file for each slice of the tensor "x"."""
    files = {}
    for rank, box in enumerate(boxes):
        part = whole[tuple(slice(*ends) for ends in box)].contiguous()
        place = {"x": {"shape": list(whole.shape), "offset": [begin for begin, _ in box]}}
        name = f"model-{rank:05d}.safetensors"
        files[name] = write_safetensors(folder / name, {"x": part}, {"slices": json.dumps(place)})
    write_json(folder / "manifest.json", Manifest(1, {}, files).to_json())
    return folder


def grid(*borders: list[int]) -> list[Box]:
    return list(itertools.product(*(itertools.pairwise(each) for each in borders)))


ALL = (0, 5), (0, 3)
LAYOUTS = {
    "whole": [((0, 7), *ALL)],
    "rows": grid([0, 3, 5, 7], [0, 5], [0, 3]),
    "grid": grid([0, 3, 7], [0, 1, 5], [0, 2, 3]),
    "overlapping": [((0, 4), *ALL), ((2, 7), *ALL)],
    "twice": [((0, 7), *ALL)] * 2,
}


@pytest.mark.parametrize("boxes", LAYOUTS.values(), ids=LAYOUTS)
def test_any_region_is_that_of_the_whole_tensor(boxes: list[Box], tmp_path: Path) -> None:
    dice = torch.Generator().manual_seed(0)
    with CheckpointTensors(checkpoint(tmp_path, boxes), "model") as stored:
        assert torch.equal(stored.read("x"), WHOLE)
        for _ in range(50):
            begin = [int(torch.randint(n, (), generator=dice)) for n in WHOLE.shape]
            size = [
                int(torch.randint(n - b + 1, (), generator=dice))
                for n, b in zip(WHOLE.shape, begin, strict=True)
            ]
            wanted = WHOLE[tuple(slice(b, b + n) for b, n in zip(begin, size, strict=True))]
            found = stored.read("x", (7, 5, 3), tuple(begin), tuple(size))
            assert found.dtype == wanted.dtype and torch.equal(found, wanted), (begin, size)


@pytest.mark.parametrize(
    "boxes",
    [
        [((0, 3), *ALL), ((4, 7), *ALL)],
        [((0, 4), *ALL), ((1, 4), *ALL)],  # as many elements as the tensor, some of them twice
    ],
    ids=["gap", "gap of the size of an overlap"],
)
def test_gap_is_an_error_only_where_it_is_read(boxes: list[Box], tmp_path: Path) -> None:
    with CheckpointTensors(checkpoint(tmp_path, boxes), "model") as stored:
        assert torch.equal(stored.read("x", None, (1, 0, 0), (2, 5, 3)), WHOLE[1:3])
        for region in [((0, 0, 0), (7, 5, 3)), ((2, 1, 1), (3, 2, 2))]:
            with pytest.raises(CheckpointError, match="does not hold this model") as caught:
                stored.read("x", None, *region)
            assert "x is not whole" in caught.value.found
        with pytest.raises(CheckpointError) as caught:
            stored.read("x", (7, 5, 4))
        assert caught.value.found == "x of shape [7, 5, 3] instead of [7, 5, 4]"
        with pytest.raises(CheckpointError) as caught:
            stored.read("y")
        assert caught.value.found == "no y"


@pytest.mark.parametrize(
    ("columns", "rows", "code"),
    [("0, 1000", "0, 100", 0), ("0, 10", "50, 90", 0), ("0, 1000", "900, 50", -7)],
)
def test_nothing_beyond_the_region_is_touched(columns: str, rows: str, code: int, tmp_path: Path) -> None:
    """The file is cut behind row 500 after it is opened: to touch what is gone kills the process (SIGBUS)."""
    checkpoint(tmp_path, [((0, 1000), (0, 1000))], torch.ones(1000, 1000))
    program = f"""
import os, sys, torch
from pathlib import Path
from bessemer.checkpoint.tensors import CheckpointTensors
with CheckpointTensors(Path(sys.argv[1]), "model") as stored:
    os.truncate(Path(sys.argv[1]) / "model-00000.safetensors", 500 * 4000)
    offset, size = zip(({rows}), ({columns}))
    assert bool((stored.read("x", None, offset, size) == 1).all())
"""
    child = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT)
    assert child.returncode == code
