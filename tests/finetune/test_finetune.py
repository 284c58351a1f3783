"""Stage two: where its weights come from, what its loss is on, and that it goes on like any stage."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from making_runs import (
    QUIET,
    assert_same_tensors,
    assert_same_training,
    curve,
    events,
    fail,
    place,
    pretrained,
    tensors_of,
    write_recipe,
)
from torch import Tensor
from torch.nn import functional

from bessemer.checkpoint.folder import listed
from bessemer.checkpoint.load import load_model
from bessemer.data.order import sample
from bessemer.errors import DataError, RecipeError, UserError
from bessemer.export.huggingface import export_huggingface
from bessemer.finetune import run as module
from bessemer.finetune.run import finetune
from bessemer.finetune.task import Task, prepare_finetune
from bessemer.recipe.load import load
from bessemer.rundir import read_object
from bessemer.train.build import build
from bessemer.train.run import Ready
from bessemer.train.stage import read_stage
from bessemer.train.stop import Stop

SHORT = "pretrain.steps=4"


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


def task_of(folder: Path, *settings: str) -> Task:
    return prepare_finetune(load(str(folder / "tiny.toml"), [SHORT, *settings]), place(folder), None)


def refused(folder: Path, *settings: str, **options: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        finetuned(folder, *settings, **options)
    return caught.value


@pytest.fixture
def first_weights(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Filled with the weights that the next stage would begin with; it trains nothing."""
    found: dict[str, Tensor] = {}

    def only_build(ready: Ready, *_: object) -> None:
        job, state = build(read_stage(ready.folder), ready.machine, QUIET, Stop())
        job.close()
        assert state.step == 0
        found.update({name: weight.detach().clone() for name, weight in job.model.named_parameters()})

    monkeypatch.setattr(module, "run_stage", only_build)
    return found


def weights_of(stage: Path) -> dict[str, Tensor]:
    return {name: value for name, value in tensors_of(stage).items() if not name.startswith("optimizer.")}


# Where the weights come from.


def test_own_pretraining_is_what_it_begins_from(
    folder: Path, run: Path, first_weights: dict[str, Tensor]
) -> None:
    finetuned(folder)
    assert_same_tensors(first_weights, weights_of(run / "pretrain"))


def test_another_run_is_begun_from_at_the_step_asked_for(
    folder: Path, first_weights: dict[str, Tensor]
) -> None:
    pretrained(folder, "pretrain.steps=6", "pretrain.save_every=3", run="other")
    finetuned(folder, run="mine", from_=f"{folder}/other@3")
    kept = tensors_of(folder / "other/pretrain", 3)
    assert_same_tensors(first_weights, {name: kept[name] for name in first_weights})
    info = read_object(folder / "mine/finetune/stage.json")
    assert info is not None and info["origin"]["step"] == 3 and not (folder / "mine/pretrain").exists()


@pytest.mark.parametrize("named", ["--from", "model.from"])
def test_hugging_face_folder_is_begun_from_without_pretraining(
    named: str, folder: Path, run: Path, first_weights: dict[str, Tensor]
) -> None:
    export_huggingface(run / "pretrain", folder / "hf", step=None, dtype=None, console=QUIET)
    if named == "--from":
        finetuned(folder, run="mine", from_=str(folder / "hf"))
    else:
        finetuned(folder, "model.from=hf", run="mine")
    assert_same_tensors(first_weights, weights_of(run / "pretrain"))
    tokenizers = [
        path.read_bytes()
        for path in (run / "pretrain/tokenizer.json", folder / "mine/finetune/tokenizer.json")
    ]
    assert tokenizers[0] == tokenizers[1]


def test_nothing_to_fine_tune_names_every_place_that_was_looked_at(folder: Path) -> None:
    error = refused(folder)
    assert isinstance(error, RecipeError) and error.problem == "there is nothing to fine-tune"
    assert str(folder / "run/pretrain") in error.found and "--from" in error.found
    assert "bessemer pretrain" in error.fix


def test_recipe_without_a_task_says_so(folder: Path, run: Path) -> None:
    text = (folder / "tiny.toml").read_text()
    (folder / "tiny.toml").write_text(text.split("[finetune]")[0])
    assert "[finetune]" in refused(folder).found


def test_tokenizer_with_more_words_than_the_model_is_refused(folder: Path, run: Path) -> None:
    export_huggingface(run / "pretrain", folder / "hf", step=None, dtype=None, console=QUIET)
    pretrained(folder, SHORT, "tokenizer.vocab=400", run="larger")
    shutil.copy(folder / "larger/pretrain/tokenizer.json", folder / "hf/tokenizer.json")
    error = refused(folder, run="mine", from_=str(folder / "hf"))
    assert isinstance(error, DataError) and "330 words, 320 rows" in error.found


# What it learns.


def test_loss_is_on_the_answers_alone(folder: Path, run: Path) -> None:
    """The first step's loss, from the examples one by one."""
    finetuned(folder)
    task = task_of(folder)
    info = read_object(run / "finetune/stage.json")
    assert info is not None
    plan, examples = info["plan"], task.data.examples("train")
    rows = task.data.rows("train", plan["context"])
    model, total, count = load_model(run / "pretrain", None, fail).model, 0.0, 0
    for position in range(plan["batch_rows"]):
        for number, _, _ in rows.documents(sample(0, position, len(rows))):
            prompt, answer = examples[number].prompt_ids, examples[number].answer_ids
            with torch.no_grad():
                logits = model.logits(model(torch.tensor([prompt + answer])))[0]
            before = logits[len(prompt) - 1 : -1]  # each predicts the next
            total += float(functional.cross_entropy(before, torch.tensor(answer), reduction="sum"))
            count += len(answer)
    assert count < plan["batch_rows"] * plan["context"] / 2
    assert curve(run / "finetune")[0][1] == pytest.approx(total / count, rel=1e-5)


def test_task_is_learnt(folder: Path, run: Path) -> None:
    document = finetuned(folder, "finetune.epochs=8", "finetune.lr=1e-2", "finetune.save_every=100")
    losses = [row[1] for row in curve(run / "finetune")]
    assert losses[-1] < 0.6 * losses[0]
    assert document["step"] == len(losses) and document["stage"] == "finetune"
    assert document["validation_loss"] is not None


# Going on.


def test_same_command_again_trains_nothing(folder: Path, run: Path) -> None:
    first = finetuned(folder)
    again = finetuned(folder)
    assert again == {**first, "already_done": True} and not first["already_done"]


def test_it_goes_on_bit_for_bit_when_what_it_began_from_has_been_removed(folder: Path, run: Path) -> None:
    settings = ("finetune.epochs=4",)
    finetuned(folder, *settings)
    shutil.copytree(run, folder / "cut")
    for newest in listed(folder / "cut/finetune")[:1]:
        shutil.rmtree(newest)
    # Meanwhile pre-training went on, and keeps only its own newest checkpoints.
    for path in listed(run / "pretrain"):
        shutil.rmtree(path)
    steps = len(curve(run / "finetune"))
    document = finetuned(folder, *settings, run="cut")
    assert document["step"] == steps and document["attempts"] == 2
    assert_same_training(folder / "cut/finetune", run / "finetune", steps)


def test_same_command_means_the_same_origin_when_that_run_has_gone_on(folder: Path) -> None:
    pretrained(folder, SHORT, run="base")
    finetuned(folder, run="mine", from_=str(folder / "base"))
    pretrained(folder, "pretrain.steps=6", "pretrain.save_every=1", run="base")
    assert finetuned(folder, run="mine", from_=str(folder / "base"))["already_done"]
    error = refused(folder, run="mine", from_=f"{folder}/base@6")
    assert "began from other weights" in error.problem


def test_learning_keys_of_a_begun_stage_are_refused_and_execution_keys_are_events(
    folder: Path, run: Path
) -> None:
    finetuned(folder)
    error = refused(folder, "finetune.lr=1e-5")
    assert error.exit_code == 2 and "`finetune.lr`" in error.problem
    finetuned(folder, "finetune.micro_batch=1")
    assert [row["key"] for row in events(run / "finetune", "recipe")] == ["finetune.micro_batch"]


def test_task_that_changed_is_a_data_error(folder: Path, run: Path) -> None:
    finetuned(folder)
    path = folder / "task.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    error = refused(folder)
    assert isinstance(error, DataError) and error.exit_code == 65


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (["parallel.layout=tensor=3"], "parallel.layout"),
        (["finetune.micro_batch=4096"], "micro_batch"),
        (["finetune.compile=true", "finetune.recompute=selective"], "does not run compiled"),
    ],
)
@pytest.mark.parametrize("begun", [False, True])
def test_refused_fine_tuning_changes_nothing_in_the_run(
    folder: Path, run: Path, settings: list[str], problem: str, begun: bool
) -> None:
    if begun:
        finetuned(folder)
    before = files_of(run)
    error = refused(folder, *settings)
    assert problem in error.problem
    assert files_of(run) == before


def test_compilation_without_a_compiler_is_refused_before_anything_is_written(
    folder: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    before = files_of(run)
    assert "compile = true needs a C++ compiler" in refused(folder, "finetune.compile=true").problem
    assert files_of(run) == before


def files_of(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}
