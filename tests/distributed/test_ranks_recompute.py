"""Recomputation and compilation change no number under a layout, nor does a layout under them."""

import shutil
from pathlib import Path

import pytest
from making_runs import curve, pretrained, write_recipe
from making_worlds import TWO_LAYERS, trained

LAYOUTS = {"shard=2,tensor=2": 4, "pipeline=2": 2, "replicate=2": 2}
PRETRAIN = ("pretrain", "tiny.toml", "--set", "pretrain.steps=5", "--set")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a run `one` of one process, which recomputes nothing."""
    folder = tmp_path_factory.mktemp("recompute")
    write_recipe(folder, sizes=TWO_LAYERS)
    pretrained(folder, "pretrain.steps=5", run="one")
    return folder


@pytest.mark.parametrize("kind", ["full", pytest.param("selective", marks=pytest.mark.slow)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_recomputed_layers_give_the_loss_of_one_process(folder: Path, layout: str, kind: str) -> None:
    run = f"{layout}-{kind}"
    trained(folder, layout, LAYOUTS[layout], *PRETRAIN, f"pretrain.recompute={kind}", "--run", run)
    assert_same_loss(folder, run)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiled_blocks_give_the_loss_of_one_process(folder: Path, layout: str) -> None:
    run = f"{layout}-compiled"
    trained(folder, layout, LAYOUTS[layout], *PRETRAIN, "pretrain.compile=true", "--run", run)
    assert_same_loss(folder, run)


def assert_same_loss(folder: Path, run: str) -> None:
    rows, wanted = (curve(folder / name / "pretrain") for name in (run, "one"))
    assert len(rows) == len(wanted) == 5
    assert [row[1] for row in rows] == pytest.approx([row[1] for row in wanted], rel=1e-5)
    assert [row[2] for row in rows] == pytest.approx([row[2] for row in wanted], rel=1e-4)
