"""Stages that learn which answer is better, or which label fits: the shipped recipes in miniature, by the
command line, and what they end with."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from making_processes import finish, ran_here, start, wait_for
from making_runs import QUIET, assert_same_training, curve, place, pretrained, write_recipe

from bessemer.checkpoint.folder import listed
from bessemer.checkpoint.load import load_model
from bessemer.cli.main import main
from bessemer.errors import DataError, RecipeError, UserError
from bessemer.evaluate.answers import Completer
from bessemer.evaluate.run import evaluate
from bessemer.export.huggingface import export_huggingface
from bessemer.finetune.run import finetune
from bessemer.recipe.load import load
from bessemer.rundir import read_object

SIZES = {"layers": 2, "hidden": 32, "ffn": 48, "context": 256, "batch_tokens": 512}
SMALL = ("finetune.context=256", "finetune.epochs=1", "finetune.dtype=fp32", "finetune.lr=1e-3")
SMALL += ("finetune.batch_tokens=4096", "finetune.micro_batch=2", "finetune.save_every=2")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run `base` that has a little pre-training behind it, and both recipes."""
    folder = tmp_path_factory.mktemp("choices")
    write_recipe(folder, sizes=SIZES)
    pretrained(folder, "pretrain.steps=2", run="base")
    for name in ("classify", "dpo"):
        assert main(["recipes", "copy", name, str(folder)]) == 0
    return folder


def command(base: Path, recipe: str, run: str, *settings: str) -> list[str]:
    words = ["finetune", f"{recipe}.toml", "--from", "base", "--run", run, "--store", "data"]
    return [*words, *(word for setting in (*SMALL, *settings) for word in ("--set", setting))]


def by_command(base: Path, recipe: str, run: str, *settings: str) -> Path:
    """In this process, unless it starts others."""
    words = command(base, recipe, run, *settings)
    has_ranks = any("parallel.layout" in setting for setting in settings)
    code, _, error = finish(start(base, *words)) if has_ranks else ran_here(base, *words)
    assert code == 0, error
    return base / run / "finetune"


def in_process(base: Path, recipe: str, run: str, *settings: str, from_: str = "base") -> Path:
    loaded = load(str(base / f"{recipe}.toml"), [*SMALL, *settings])
    finetune(loaded, place(base, run), str(base / from_))
    return base / run / "finetune"


def refused(base: Path, recipe: str, *settings: str, from_: str = "base") -> UserError:
    with pytest.raises(UserError) as caught:
        in_process(base, recipe, "refused", *settings, from_=from_)
    assert not (base / "refused").exists(), "a command that is refused writes nothing"
    return caught.value


def measured(stage: Path) -> dict[str, Any]:
    recipe = load(str(stage.parent / "recipe.toml"), []).recipe
    found: dict[str, Any] = evaluate(stage.parent, recipe, QUIET)["stages"]["finetune"]
    return found


def test_the_recipe_classify_learns_and_is_measured(base: Path) -> None:
    stage = by_command(base, "classify", "triage", "finetune.lr=1e-2", "finetune.epochs=3")
    found = measured(stage)
    rows = curve(stage)
    assert rows[-1][1] < rows[0][1]
    assert found["accuracy"] > 0.5 and 0.0 <= found["calibration_error"] <= 1.0
    assert set(found["by_label"]) == {"emergency", "urgent", "routine"}
    assert found["macro_f1"] == pytest.approx(sum(each["f1"] for each in found["by_label"].values()) / 3)
    plan = (read_object(stage / "stage.json") or {})["plan"]["objective"]
    assert plan["labels"] == sorted(plan["labels"]) and plan["class_weights"][0] > plan["class_weights"][1]
    metrics = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["validation_loss"] == pytest.approx(found["text_loss"], rel=1e-5)


def test_an_exported_classifier_says_the_same_in_transformers(base: Path, tmp_path: Path) -> None:
    stage = in_process(base, "classify", "to export")
    receipt = export_huggingface(stage, tmp_path / "out", step=None, dtype=None, console=QUIET)
    assert receipt["max_absolute_logit_difference"] < 1e-5
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {0: "emergency", 1: "routine", 2: "urgent"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    inputs = tokenizer(["A wart on the finger.", "Bleeding heavily."], return_tensors="pt", padding=True)
    ours = load_model(stage, None, print).model
    for number, (tokens_T, seen_T) in enumerate(zip(inputs.input_ids, inputs.attention_mask, strict=True)):
        with torch.no_grad():
            last = ours.logits(ours(tokens_T[None, : int(seen_T.sum())])[0, -1])
            torch.testing.assert_close(model(**inputs).logits[number], last, rtol=1e-5, atol=1e-5)


def test_the_recipe_dpo_learns_and_is_measured(base: Path) -> None:
    stage = by_command(base, "dpo", "preferred")
    assert curve(stage)[0][1] == pytest.approx(np.log(2.0), rel=1e-6), "it begins at its own reference"
    found = measured(stage)
    assert found["pair_accuracy"] > 0.9 and found["mean_margin"] > 0.0
    assert found["pair_loss"] < np.log(2.0)
    metrics = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["validation_loss"] == pytest.approx(found["pair_loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ipo", "orpo", "simpo", "reward"])
def test_every_other_method_of_pairs_runs_and_is_measured(method: str, base: Path, tmp_path: Path) -> None:
    text = (base / "dpo.toml").read_text().replace('method = "dpo"', f'method = "{method}"')
    (base / f"{method}.toml").write_text(text if method == "ipo" else text.replace("beta = 0.1", "# "))
    stage = in_process(base, method, method)
    assert measured(stage)["pair_accuracy"] > 0.5
    if method == "reward":
        receipt = export_huggingface(stage, tmp_path / "out", step=None, dtype=None, console=QUIET)
        assert receipt["max_absolute_logit_difference"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["shard=2", "tensor=2", "pipeline=2", "context=2", "replicate=2"])
@pytest.mark.parametrize("recipe", ["dpo", "classify"])
def test_a_run_on_ranks_learns_what_one_process_does(recipe: str, layout: str, base: Path) -> None:
    """The whole way, with the pass of the reference before it and the optimizer that is made after that."""
    alone = base / f"{recipe} alone" / "finetune"
    if not alone.exists():
        in_process(base, recipe, alone.parent.name)
    stage = by_command(base, recipe, f"{recipe} {layout}", f'parallel.layout="{layout}"')
    found, wanted = (torch.tensor([row[1:3] for row in curve(each)]) for each in (stage, alone))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert found[0, 0].item() == pytest.approx(wanted[0, 0].item(), rel=1e-6)


@pytest.mark.slow
def test_a_killed_run_goes_on_from_the_same_reference_bit_for_bit(base: Path) -> None:
    """The origin's weights are elsewhere by then: the reference can only come from the stage's own files."""
    settings = ("finetune.epochs=2", "finetune.batch_tokens=1024")
    whole = by_command(base, "dpo", "whole", *settings)
    stage = base / "killed" / "finetune"
    process = start(base, *command(base, "dpo", "killed", *settings))
    wait_for(process, lambda: bool(curve(stage)) and curve(stage)[-1][0] >= 7)
    process.kill()
    assert finish(process)[0] == -9
    before = {path.name: path.read_bytes() for path in stage.glob("reference*")}
    assert len(before) == 3
    by_command(base, "dpo", "killed", *settings)
    assert_same_training(stage, whole, len(curve(whole)))
    assert {path.name: path.read_bytes() for path in stage.glob("reference*")} == before


def test_a_reference_that_is_damaged_or_lost_is_told_and_not_made_anew(base: Path) -> None:
    stage = in_process(base, "dpo", "harmed")
    shutil.rmtree(listed(stage)[0])
    path = stage / "reference-train.npy"
    harmed = bytearray(path.read_bytes())
    harmed[-1] ^= 1
    path.write_bytes(harmed)
    with pytest.raises(DataError, match="are damaged"):
        in_process(base, "dpo", "harmed")
    (stage / "reference.json").unlink()
    with pytest.raises(DataError, match="has lost"):
        in_process(base, "dpo", "harmed")


@pytest.mark.parametrize(
    ("recipe", "settings", "told"),
    [
        ("classify", ("finetune.beta=0.1",), "finetune.beta would have no effect"),
        ("dpo", ("finetune.margin=1.0",), "finetune.margin would have no effect"),
        ("dpo", ('finetune.class_weights="balanced"',), "finetune.class_weights would have no effect"),
        ("classify", ("finetune.class_weights={ emergancy = 2.0 }",), "names a label that does not exist"),
        ("classify", ('finetune.data.labels=["urgent"]',), "labels"),
        ("classify", ('finetune.data.labels=["routine", "urgent", "emergency", "none"]',), "never seen"),
    ],
)
def test_what_cannot_work_is_refused_with_a_reason(
    recipe: str, settings: tuple[str, ...], told: str, base: Path
) -> None:
    error = refused(base, recipe, *settings)
    assert isinstance(error, RecipeError | DataError) and told in str(error)


def test_a_classifier_neither_writes_nor_learns_to(base: Path) -> None:
    stage = in_process(base, "classify", "labels")
    assert "cannot learn to write" in str(refused(base, "dpo", from_="labels"))
    with pytest.raises(RecipeError, match="cannot write"):
        Completer.load(stage, None, QUIET)


def test_pairs_of_equal_answers_and_labels_of_one_kind_are_refused(base: Path, tmp_path: Path) -> None:
    def with_rows(recipe: str, change: Callable[[dict[str, Any]], None]) -> Path:
        folder = tmp_path / recipe
        folder.mkdir()
        rows = [json.loads(line) for line in (base / f"{recipe}.jsonl").read_text().splitlines()]
        for row in rows:
            change(row)
        (folder / f"{recipe}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{recipe}.toml").write_text((base / f"{recipe}.toml").read_text())
        return folder

    for recipe, change in (
        ("dpo", lambda row: row.update(rejected=row["chosen"])),
        ("classify", lambda row: row.update(urgency="routine")),
    ):
        folder = with_rows(recipe, change)
        loaded = load(str(folder / f"{recipe}.toml"), list(SMALL))
        with pytest.raises(DataError):
            finetune(loaded, place(folder, "run"), str(base / "base"))
