"""A checkpoint belongs to no layout: any ranks read and save it bit for bit, and one process uses it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from making_runs import assert_same_tensors, pretrained, write_recipe
from making_worlds import RESAVE, TWO_LAYERS, resave, run_world, trained, write_moe_recipe
from safetensors.torch import load_file
from torch import Tensor

from bessemer.checkpoint.folder import listed, read_manifest
from bessemer.checkpoint.load import load_model
from bessemer.checkpoint.tensors import CheckpointTensors
from bessemer.cli.main import main


def whole(stage: Path) -> dict[str, Tensor]:
    """Every tensor of a stage's newest checkpoint, put together from the files of all ranks."""
    found = {}
    for kind in ("model", "optimizer"):
        with CheckpointTensors(listed(stage)[0], kind) as stored:
            found |= {name: stored.read(name).clone() for name in stored.names}
    return found


def resaved(folder: Path, source: str, out: str, layout: str, size: int) -> None:
    ranks = run_world(folder, *[(RESAVE, source, out, layout)] * size)
    assert [rank.code for rank in ranks] == [0] * size, ranks


def write_dense_recipe(folder: Path) -> Path:
    return write_recipe(folder, sizes=TWO_LAYERS)


@pytest.mark.parametrize(
    ("write", "layout"),
    [
        pytest.param(write_dense_recipe, "shard=2,tensor=2", marks=pytest.mark.slow),
        (write_moe_recipe, "expert=2,shard=2,pipeline=2"),
    ],
)
def test_read_by_four_ranks_and_saved_at_once_it_is_the_same_and_back(
    tmp_path: Path, write: Callable[[Path], Path], layout: str
) -> None:
    write(tmp_path)
    pretrained(tmp_path, "pretrain.steps=3")
    one, four, again = (tmp_path / name for name in ("run/pretrain", "four/pretrain", "again/pretrain"))
    resaved(tmp_path, str(one), str(four), layout, 4)
    assert len(list(listed(four)[0].glob("model-*.safetensors"))) > 1
    assert_same_tensors(whole(four), whole(one))
    assert any("experts" in name for name in whole(four)) == ("expert" in layout)
    assert read_manifest(listed(four)[0]).state == read_manifest(listed(one)[0]).state
    resave(str(four), str(again), "replicate=1")
    assert read_manifest(listed(again)[0]).files == read_manifest(listed(one)[0]).files


@pytest.mark.parametrize(
    ("write", "layout"),
    [
        pytest.param(write_dense_recipe, "shard=2,tensor=2", marks=pytest.mark.slow),
        (write_moe_recipe, "expert=2,shard=2,pipeline=2"),
    ],
)
def test_one_process_uses_what_four_ranks_trained(
    tmp_path: Path,
    write: Callable[[Path], Path],
    layout: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path)
    trained(tmp_path, layout, 4, "pretrain", "tiny.toml", "--set", "pretrain.steps=3", "--run", "run")
    stage = tmp_path / "run/pretrain"
    resave(str(stage), str(tmp_path / "one/pretrain"), "replicate=1")
    assert_same_tensors(whole(tmp_path / "one/pretrain"), whole(stage))
    loaded = load_model(stage, None, print)
    assert loaded.step == 3 and sum(value.isnan().sum() for value in loaded.model.parameters()) == 0

    monkeypatch.chdir(tmp_path)
    for run in ("run", "one"):
        assert main(["export", f"{run}/pretrain", "--format", "hf", "--out", f"hf-{run}"]) == 0
    assert_same_tensors(*(load_file(tmp_path / f"hf-{run}/model.safetensors") for run in ("run", "one")))
    capsys.readouterr()
    assert main(["evaluate", "run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"]["pretrain"]["validation_loss"] > 0
    assert main(["chat", "run", "--prompt", "iron"]) == 0
    assert capsys.readouterr().out.strip()
