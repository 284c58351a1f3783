"""`bessemer check layouts` of a fine-tuning with adapters: from a run, which it leaves as it is."""

import json
from pathlib import Path
from typing import Any

import pytest
from making_runs import QUIET, pretrained, write_recipe
from test_check_layouts import broken

from bessemer.check.layouts import Wish, check_subject
from bessemer.check.plans import WHERE, Subject, plan_layouts, plan_one
from bessemer.cli.main import main
from bessemer.errors import RecipeError
from bessemer.finetune.checked import checked_stage
from bessemer.recipe.load import load
from bessemer.train.pretrain import Place

SIZES = {"layers": 4, "hidden": 64, "ffn": 96, "context": 32, "batch_tokens": 256}
LORA = ["finetune.method=lora", "finetune.lora.rank=4"]
KINDS = {
    "rslora": [*LORA, "finetune.lora.rslora=true"],
    "dora": [*LORA, "finetune.lora.dora=true"],
    "int8": ["finetune.method=qlora", "finetune.lora.base=int8"],
    "nf4 dora": ["finetune.method=qlora", "finetune.lora.base=nf4", "finetune.lora.dora=true"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, cache: None) -> Path:
    """With a run, `base`, that was pre-trained for three steps."""
    made = tmp_path_factory.mktemp("adapters")
    write_recipe(made, task=True, sizes=SIZES)
    pretrained(made, "pretrain.steps=3", run="base")
    return made


def subject_of(folder: Path, *settings: str, recipe: str = "tiny.toml") -> Subject:
    loaded = load(str(folder / recipe), list(settings))
    place = Place(folder / "base", folder / "data", QUIET)
    return Subject(loaded.recipe, *checked_stage(loaded, place, None, WHERE))


def assert_passed(document: dict[str, Any], count: int) -> None:
    assert document["stage"] == "finetune" and document["passed"] == count, document["rows"]
    for row in document["rows"]:
        assert row["max_relative_loss_difference"] < 1e-5, row
        assert row["max_relative_grad_norm_difference"] < 1e-4 and row["bytes_sent"] > 0, row


def test_adapters_are_checked_under_layouts_and_the_run_they_stand_on_stays_as_it_was(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = sorted(str(path) for path in (folder / "base").rglob("*"))
    words = ["check", "layouts", str(folder / "tiny.toml"), "--from", str(folder / "base"), "--json"]
    words += ["--store", str(folder / "data"), "--steps", "3", "--layouts", "tensor=2"]
    assert main([*words, *(word for each in LORA for word in ("--set", each))]) == 0
    document = json.loads(capfd.readouterr().out)
    assert_passed(document, 1)
    assert len(set(document["reference"]["losses"])) == 3  # something was learnt
    assert sorted(str(path) for path in (folder / "base").rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_adapter_passes(folder: Path, kind: str) -> None:
    layouts = "shard=2;tensor=2;context=2;pipeline=2,schedule=zbv;shard=2,tensor=2"
    document = check_subject(subject_of(folder, *KINDS[kind]), Wish(layouts, steps=4), QUIET)
    assert_passed(document, 5)


@pytest.mark.slow
def test_a_wrong_gradient_of_an_adapter_is_found(folder: Path, tmp_path: Path) -> None:
    worker = broken(tmp_path, "self.parameters[1].grad.mul_(1.5)")
    document = check_subject(subject_of(folder, *LORA), Wish("shard=2;context=2", steps=3), QUIET, worker)
    assert [row["passed"] for row in document["rows"]] == [False, True]


def test_a_recipe_without_sources_is_its_fine_tuning(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (folder / "tiny.toml").read_text()
    begin, end = text.index("[[data.source]]"), text.index("[pretrain]")
    (folder / "task.toml").write_text(text[:begin] + text[end:])
    words = ["check", "layouts", str(folder / "task.toml"), "--store", str(folder / "data")]
    assert main([*words, "--layouts", "tensor=3", "--run", str(folder / "base")]) == 2
    assert "--layouts: tensor does not divide heads" in capsys.readouterr().err
    assert main([*words, "--layouts", "tensor=2", "--run", str(folder / "none")]) == 2
    assert "there is nothing to fine-tune" in capsys.readouterr().err


def test_settings_that_are_left_to_us_are_the_same_under_every_layout(folder: Path) -> None:
    auto = [f"finetune.{name}=auto" for name in ("batch_tokens", "micro_batch", "lr")]
    subject = subject_of(folder, *LORA, *auto)
    one = plan_one(subject)
    layouts = Wish("shard=3;pipeline=2,schedule=zbv").named() or []
    plans = [one, *(each.plan for each in plan_layouts(subject, one, layouts, named=True))]
    assert len({(plan.batch_rows, plan.lr, plan.dtype, plan.steps) for plan in plans if plan}) == 1
    assert all(plan and plan.warmup == 0 and plan.schedule == "constant" for plan in plans)


def test_rows_that_a_model_makes_are_refused(folder: Path) -> None:
    with pytest.raises(RecipeError, match="rows that a model makes"):
        subject_of(folder, "finetune.method=grpo")
