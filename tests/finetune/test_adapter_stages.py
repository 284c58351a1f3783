"""Stages of adapters: what they save, what they stand on, how they go on, and what comes after them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from making_runs import (
    QUIET,
    assert_same_training,
    curve,
    fail,
    place,
    pretrained,
    tensors_of,
    write_recipe,
)
from torch import Tensor

from bessemer.checkpoint.base import merged_weights
from bessemer.checkpoint.folder import listed
from bessemer.checkpoint.load import LoadedModel, load_model
from bessemer.errors import CheckpointError, RecipeError, UserError
from bessemer.evaluate.run import evaluate
from bessemer.export.huggingface import export_huggingface
from bessemer.finetune.run import finetune
from bessemer.formulas.adapters import adapter_params
from bessemer.recipe.load import load
from bessemer.rundir import read_object

SHORT = "pretrain.steps=4"
LORA = ("finetune.method=lora", "finetune.lora.rank=4", "finetune.lr=5e-3")
DORA = (*LORA, "finetune.lora.dora=true")
KINDS = [pytest.param(LORA, id="lora", marks=pytest.mark.slow), pytest.param(DORA, id="dora")]
TOKENS = torch.randint(0, 300, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_recipe(tmp_path, task=True)
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Path:
    """Pre-trained for four steps."""
    pretrained(folder, SHORT)
    return folder / "run"


def finetuned(folder: Path, *settings: str, run: str = "run", from_: str | None = None) -> dict[str, Any]:
    return finetune(load(str(folder / "tiny.toml"), [SHORT, *settings]), place(folder, run), from_)


def refused(folder: Path, *settings: str, **options: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        finetuned(folder, *settings, **options)
    return caught.value


def loaded(stage: Path) -> LoadedModel:
    return load_model(stage, None, fail)


@torch.no_grad()
def logits(stage: Path) -> Tensor:
    model = loaded(stage).model
    return model.logits(model(TOKENS))


@pytest.mark.parametrize("settings", KINDS)
def test_the_task_is_learnt_and_the_checkpoint_has_adapters_only(
    folder: Path, run: Path, settings: tuple[str, ...]
) -> None:
    finetuned(folder, *settings, "finetune.epochs=6")
    losses = [row[1] for row in curve(run / "finetune")]
    assert losses[-1] < 0.8 * losses[0]
    shape = loaded(run / "finetune").shape
    kept = tensors_of(run / "finetune")
    weights = {name: value for name, value in kept.items() if not name.startswith("optimizer.")}
    assert all("lora_" in name for name in weights) and len(kept) == 4 * len(
        weights
    )  # two moments and a count
    assert sum(value.numel() for value in weights.values()) == adapter_params(shape)
    assert all(kept[name].any() for name in weights if "lora_B" in name)
    size_bytes = sum(path.stat().st_size for path in listed(run / "finetune")[0].iterdir())
    assert size_bytes < 12 * adapter_params(shape) + 60_000


def test_the_first_loss_is_that_of_full_fine_tuning(folder: Path, run: Path) -> None:
    finetuned(folder, *DORA)
    shutil.copytree(run / "pretrain", folder / "other/pretrain")
    finetuned(folder, run="other")
    assert curve(run / "finetune")[0][1] == pytest.approx(curve(folder / "other/finetune")[0][1], rel=1e-6)


@pytest.mark.parametrize("settings", KINDS)
def test_it_goes_on_bit_for_bit(folder: Path, run: Path, settings: tuple[str, ...]) -> None:
    settings = (*settings, "finetune.epochs=4")
    finetuned(folder, *settings)
    shutil.copytree(run, folder / "cut")
    for newest in listed(folder / "cut/finetune")[:1]:
        shutil.rmtree(newest)
    steps = len(curve(run / "finetune"))
    document = finetuned(folder, *settings, run="cut")
    assert document["step"] == steps and document["attempts"] == 2
    assert_same_training(folder / "cut/finetune", run / "finetune", steps)


@pytest.mark.parametrize("kind", ["run", "hf"])
def test_another_base_is_refused(kind: str, folder: Path, run: Path) -> None:
    base = folder / "hf"
    export_huggingface(run / "pretrain", base, step=None, dtype=None, console=QUIET)
    finetuned(folder, *LORA, run="mine", from_=str(base if kind == "hf" else run))
    changed = base / "model.safetensors" if kind == "hf" else listed(run / "pretrain")[0] / "manifest.json"
    content = bytearray(changed.read_bytes())
    if kind == "hf":
        content[-1] ^= 1
    else:  # as one of another run would be: whole, and different
        values = {**json.loads(content), "step": 5}
        values.pop("xxh3_128")
        content = bytearray(json.dumps(values).encode())
    changed.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        loaded(folder / "mine/finetune")
    assert "has adapters for another model" in caught.value.problem
    assert str(base if kind == "hf" else run) in caught.value.found


def test_pretraining_that_goes_on_keeps_what_adapters_stand_on(folder: Path, run: Path) -> None:
    finetuned(folder, *DORA)
    before = logits(run / "finetune")
    pretrained(folder, *DORA, "pretrain.steps=9", "pretrain.save_every=1")
    steps = [path.name[-1] for path in listed(run / "pretrain")]
    assert steps == ["9", "8", "4"]
    assert torch.equal(logits(run / "finetune"), before)


def test_a_base_that_is_gone_is_named(folder: Path, run: Path) -> None:
    finetuned(folder, *LORA)
    shutil.rmtree(run / "pretrain/checkpoints")
    with pytest.raises(CheckpointError) as caught:
        loaded(run / "finetune")
    assert str(run / "pretrain/checkpoints") in caught.value.found and "put them back" in caught.value.fix


@pytest.mark.parametrize("settings", KINDS)
def test_merged_weights_give_the_same_logits(folder: Path, run: Path, settings: tuple[str, ...]) -> None:
    finetuned(folder, *settings, "finetune.epochs=4")
    model = loaded(run / "pretrain").model
    weights = dict(merged_weights(run / "finetune", listed(run / "finetune")[0]))
    model.load_state_dict(weights)
    with torch.no_grad():
        found = model.logits(model(TOKENS))
    assert not torch.allclose(found, logits(run / "pretrain"), atol=1e-2)
    torch.testing.assert_close(found, logits(run / "finetune"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", [(), LORA], ids=["full", "lora"])
def test_a_stage_goes_on_from_merged_adapters_also_of_adapters(
    method: tuple[str, ...], folder: Path, run: Path
) -> None:
    finetuned(folder, *DORA, "finetune.epochs=4")
    finetuned(folder, *LORA, run="second", from_=str(run))
    finetuned(folder, *method, run="third", from_=str(folder / "second"))
    last = [row["validation_loss"] for row in _rows(folder / "second/finetune") if row.get("validation_loss")]
    assert curve(folder / "third/finetune")[0][1] < 1.2 * last[-1] < curve(run / "finetune")[0][1]
    assert loaded(folder / "third/finetune").shape.adapter is None or method


def test_it_is_evaluated_and_answers_with_its_adapters(folder: Path, run: Path) -> None:
    document = finetuned(folder, *DORA, "finetune.epochs=4")
    recipe = load(
        str(folder / "tiny.toml"), [SHORT, "evaluate.examples=2", "evaluate.answer_tokens=4"]
    ).recipe
    found = evaluate(run, recipe, QUIET)["stages"]["finetune"]
    assert found["task_loss"] == pytest.approx(document["validation_loss"], rel=1e-5)
    assert found["examples"] == 2


def test_what_cannot_have_an_adapter_is_refused_with_the_nearest_name(folder: Path, run: Path) -> None:
    error = refused(folder, *LORA, 'finetune.lora.targets=["q_prj"]')
    assert isinstance(error, RecipeError) and 'write "q_proj"' in error.fix
    error = refused(folder, *LORA, 'finetune.lora.targets=["lm_head"]')
    assert "the head learns with all weights only" in error.found
    error = refused(folder, "finetune.lora.rank=4")
    assert "without adapters" in error.found


def test_the_plan_says_its_rate_and_what_is_trained(
    folder: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finetuned(folder, "finetune.method=lora")
    info = read_object(run / "finetune/stage.json")
    before = read_object(run / "pretrain/stage.json")
    assert info is not None and before is not None
    assert info["plan"]["lr"] == pytest.approx(before["plan"]["lr"], rel=0.02)
    assert info["origin"]["hash"] and info["shape"]["adapter"]["alpha"] == 32.0


def _rows(stage: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
