"""A checkpoint that several ranks wrote, in slices, is put together whole."""

import json
from pathlib import Path
from typing import Any

import pytest
from making_checkpoints import FILES, parts, trained
from making_runs import assert_same_tensors
from safetensors.torch import load_file
from torch import Tensor

from bessemer.checkpoint.folder import Manifest, verify
from bessemer.checkpoint.load import restore
from bessemer.checkpoint.write import save, write_safetensors
from bessemer.durable import write_json
from bessemer.errors import CheckpointError


def test_slices_of_several_ranks_are_put_together_optimizer_state_too(tmp_path: Path) -> None:
    model, optimizer = trained()
    folder = save(tmp_path, 3, model, optimizer, {}, {"shard": 2})
    files = {**split(folder, FILES[0]), **split(folder, FILES[1])}
    write_json(folder / "manifest.json", Manifest(3, {"shard": 2}, files).to_json())
    assert len(verify(folder).files) == len(list(folder.glob("*.safetensors"))) == 4
    other, fresh = parts(seed=9)
    restore(other, fresh, folder)
    assert_same_tensors(dict(other.named_parameters()), dict(model.named_parameters()))
    for one, copy in zip(model.parameters(), other.parameters(), strict=True):
        assert_same_tensors(optimizer.state[one], fresh.state[copy])


def test_missing_slice_is_named(tmp_path: Path) -> None:
    folder = save(tmp_path, 3, *trained(), {}, {"shard": 2})
    split(folder, FILES[0])
    (folder / "model-00001.safetensors").unlink()
    with pytest.raises(CheckpointError, match="does not hold this model"):
        restore(*parts(), folder)


def split(folder: Path, name: str) -> dict[str, dict[str, Any]]:
    """Into the files of two ranks: matrices by rows, or by columns; the rest whole, on the first."""
    tensors = load_file(folder / name)
    ranks: list[dict[str, Tensor]] = [{}, {}]
    slices: list[dict[str, Any]] = [{}, {}]
    for number, (key, tensor) in enumerate(tensors.items()):
        if tensor.dim() < 2:
            ranks[0][key] = tensor
            continue
        dim, middle = number % 2, tensor.shape[number % 2] // 3
        halves = tensor.split([middle, tensor.shape[dim] - middle], dim)
        for rank, begin in enumerate((0, middle)):
            ranks[rank][key] = halves[rank].contiguous()
            slices[rank][key] = {"shape": list(tensor.shape), "offset": [begin * (d == dim) for d in (0, 1)]}
    names = [name.replace("00000", f"{rank:05d}") for rank in (0, 1)]
    return {
        names[rank]: write_safetensors(
            folder / names[rank], ranks[rank], {"slices": json.dumps(slices[rank])}
        )
        for rank in (0, 1)
    }
