"""Stages of adapters on real processes: under layouts, across layouts, and killed."""

import json
import shutil
from pathlib import Path

import pytest
from making_processes import finish, start, wait_for
from making_runs import assert_same_training, curve, pretrained, tensors_of, write_recipe
from making_worlds import TWO_LAYERS, trained

from bessemer.checkpoint.folder import listed

ADAPTERS = ("--set", "finetune.method=lora", "--set", "finetune.lora.rank=4", "--set", "finetune.lr=5e-3")
DORA = (*ADAPTERS, "--set", "finetune.lora.dora=true")
FINETUNE = ("finetune", "tiny.toml", "--from", "base", *DORA, "--set", "finetune.dtype=fp32")


def tuned(folder: Path, layout: str, world: int, epochs: int, run: str) -> dict[str, object]:
    words = (*FINETUNE, "--set", f"finetune.epochs={epochs}", "--run", run)
    return trained(folder, layout, world, *words)


def losses_and_norms(stage: Path) -> list[float]:
    return [value for row in curve(stage) for value in row[1:3]]


def test_adapters_under_layouts_equal_one_process_over_several_steps(tmp_path: Path) -> None:
    write_recipe(tmp_path, task=True, sizes=TWO_LAYERS)
    pretrained(tmp_path, "pretrain.steps=3", run="base")
    tuned(tmp_path, "replicate=1", 1, 2, "one")
    wanted = losses_and_norms(tmp_path / "one/finetune")
    assert len(wanted) >= 8
    tuned(tmp_path, "shard=2,tensor=2", 4, 2, "four")
    assert losses_and_norms(tmp_path / "four/finetune") == pytest.approx(wanted, rel=2e-6)
    assert tensors_of(tmp_path / "one/finetune").keys() == tensors_of(tmp_path / "four/finetune").keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "world"),
    [
        ("replicate=2", 2),
        ("shard=2", 2),
        ("tensor=2", 2),
        ("context=2", 2),
        ("pipeline=2", 2),
        ("pipeline=2,schedule=zbv", 2),
        ("shard=2,pipeline=2,schedule=zbv", 4),
    ],
)
def test_adapters_under_more_layouts_equal_one_process(layout: str, world: int, tmp_path: Path) -> None:
    write_recipe(tmp_path, task=True, sizes={**TWO_LAYERS, "layers": 4})
    pretrained(tmp_path, "pretrain.steps=3", run="base")
    tuned(tmp_path, "replicate=1", 1, 2, "one")
    tuned(tmp_path, layout, world, 2, "many")
    wanted = losses_and_norms(tmp_path / "one/finetune")
    assert losses_and_norms(tmp_path / "many/finetune") == pytest.approx(wanted, rel=2e-6)


@pytest.mark.slow
def test_adapters_go_on_under_another_layout(tmp_path: Path) -> None:
    write_recipe(tmp_path, task=True, sizes=TWO_LAYERS)
    pretrained(tmp_path, "pretrain.steps=3", run="base")
    tuned(tmp_path, "replicate=1", 1, 2, "one")
    tuned(tmp_path, "shard=2", 2, 2, "run")
    shutil.rmtree(listed(tmp_path / "run/finetune")[0])
    assert tuned(tmp_path, "tensor=2", 2, 2, "run")["attempts"] == 2
    wanted = losses_and_norms(tmp_path / "one/finetune")
    assert losses_and_norms(tmp_path / "run/finetune") == pytest.approx(wanted, rel=1e-4)


@pytest.mark.slow
def test_adapters_that_were_killed_go_on_bit_for_bit(tmp_path: Path) -> None:
    write_recipe(tmp_path, task=True)
    pretrained(tmp_path, "pretrain.steps=3", run="base")
    more = ("--set", "finetune.epochs=20", "--set", "finetune.save_every=7", "--run")
    code, out, err = finish(start(tmp_path, *FINETUNE, *more, "whole", "--json"))
    assert code == 0, err
    steps = json.loads(out)["step"]
    killed = tmp_path / "killed/finetune"
    process = start(tmp_path, *FINETUNE, *more, "killed")
    wait_for(process, lambda: bool(curve(killed)) and curve(killed)[-1][0] >= 9)
    process.kill()
    assert finish(process)[0] == -9
    assert 0 < curve(killed)[-1][0] < steps
    code, _, err = finish(start(tmp_path, *FINETUNE, *more, "killed"))
    assert code == 0, err
    assert_same_training(killed, tmp_path / "whole/finetune", steps)
