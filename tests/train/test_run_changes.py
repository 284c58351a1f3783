"""What may be changed under a run that exists, what forks, and what is refused before it starts."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from making_processes import small_disk, start, wait_for
from making_runs import (
    QUIET,
    assert_same_tensors,
    assert_same_training,
    curve,
    events,
    pretrained,
    tensors_of,
    write_recipe,
)

from bessemer.checkpoint.folder import listed, step_of
from bessemer.cli.main import main
from bessemer.errors import CheckpointError, DataError, RecipeError, RefusedError, UserError
from bessemer.export.huggingface import export_huggingface
from bessemer.model.decoder import Block
from bessemer.recipe.load import load
from bessemer.rundir import read_object, read_rows

LENGTH = "pretrain.steps=10"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_recipe(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Path:
    """A finished run of ten steps, checkpoints of 5 and 10."""
    pretrained(folder, LENGTH)
    return folder / "run"


def stage_plan_of(run: Path) -> dict[str, Any]:
    info = read_object(run / "pretrain" / "stage.json")
    assert info is not None
    return info["plan"]


def refused(folder: Path, *settings: str, **options: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        pretrained(folder, *settings, **options)
    return caught.value


# Under a run that exists.


def test_same_command_again_trains_nothing(folder: Path, run: Path) -> None:
    before = (run / "pretrain" / "metrics.jsonl").read_bytes()
    document = pretrained(folder, LENGTH)
    assert document["already_done"] and document["step"] == 10 and document["attempts"] == 1
    assert (run / "pretrain" / "metrics.jsonl").read_bytes() == before


def test_execution_keys_may_change_each_is_an_event_and_the_stage_follows(folder: Path, run: Path) -> None:
    settings = ("pretrain.steps=14", "pretrain.micro_batch=4", "pretrain.save_every=2", "pretrain.keep=3")
    document = pretrained(folder, *settings, "pretrain.recompute=full", "name=other")
    assert document["step"] == 14 and document["attempts"] == 2
    told = {row["key"]: (row["old"], row["new"]) for row in events(run / "pretrain", "recipe")}
    assert told == {
        "pretrain.steps": (10, 14),
        "pretrain.micro_batch": (2, 4),
        "pretrain.save_every": (5, 2),
        "pretrain.keep": (2, 3),
        "pretrain.recompute": ("none", "full"),
    }
    assert all(row["step"] == 10 and row["attempt"] == 1 for row in events(run / "pretrain", "recipe"))
    plan = stage_plan_of(run)
    assert plan["micro_batch"] == 4 and plan["save_every"] == 2 and plan["steps"] == 14
    assert [step_of(path) for path in listed(run / "pretrain")] == [14, 12, 10]
    assert load(str(run / "recipe.toml"), []).recipe.pretrain.micro_batch == 4
    stored = read_object(run / "plan.json")
    assert stored is not None and stored["pretrain"]["micro_batch"] == 4
    # And from the run's own recipe nothing has changed.
    assert pretrained(folder, *settings, "pretrain.recompute=full")["already_done"]
    assert len(events(run / "pretrain", "recipe")) == 5


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_recomputation_reaches_the_model(
    recompute: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It changes no number, so only the calls of a block tell."""
    calls, forward = [], Block.forward
    monkeypatch.setattr(Block, "forward", lambda *args: calls.append(1) or forward(*args))
    pretrained(folder, "pretrain.steps=1", "data.validation=0", f"pretrain.recompute={recompute}")
    # Of one layer, for two micro-batches.
    assert len(calls) == {"none": 2, "selective": 4, "full": 4}[recompute]


def test_more_steps_continue_a_finished_run_as_one_planned_longer(folder: Path) -> None:
    constant = "pretrain.schedule=constant"
    pretrained(folder, "pretrain.steps=20", constant, run="longer")
    pretrained(folder, LENGTH, constant, "pretrain.warmup=1")
    document = pretrained(folder, "pretrain.tokens=2560", constant, "pretrain.warmup=1")
    assert document["step"] == 20 and not document["already_done"]
    assert_same_training(folder / "run/pretrain", folder / "longer/pretrain", 20)


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("pretrain.steps=9", "pretrain.steps"),
        ("pretrain.lr=1e-3", "pretrain.lr"),
        ("pretrain.batch_tokens=256", "pretrain.batch_tokens"),
        ("pretrain.schedule=constant", "pretrain.schedule"),
        ("seed=1", "seed"),
        ("model.hidden=64", "model.hidden"),
        ("tokenizer.vocab=290", "tokenizer.vocab"),
        ("data.validation=0.3", "data.validation"),
    ],
)
def test_other_keys_are_refused_by_name_and_change_nothing(
    setting: str, key: str, folder: Path, run: Path
) -> None:
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    error = refused(folder, LENGTH, setting)
    assert isinstance(error, RecipeError) and error.exit_code == 2
    assert f"`{key}`" in error.problem and "`bessemer pretrain" in error.fix
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == kept


def test_data_that_changed_or_vanished_is_a_data_error(folder: Path, run: Path) -> None:
    text = folder / "texts" / "03.txt"
    before = text.read_text()
    text.write_text(before + "More of it.\n")
    error = refused(folder, "pretrain.steps=12")
    assert isinstance(error, DataError) and error.exit_code == 65 and "the data of" in error.problem
    shutil.rmtree(folder / "texts")
    assert refused(folder, "pretrain.steps=12").exit_code == 65
    (folder / "texts").mkdir()
    assert refused(folder, "pretrain.steps=12").exit_code == 65
    assert [step_of(path) for path in listed(run / "pretrain")] == [10, 5]


# Forks.


def test_fork_on_the_same_data_goes_on_as_its_parent_did(folder: Path) -> None:
    pretrained(folder, "pretrain.steps=20", "pretrain.keep=4", run="parent")
    document = pretrained(folder, "pretrain.steps=20", run="fork", from_=f"{folder}/parent@10")
    assert document["step"] == 20 and document["attempts"] == 1
    assert [row[0] for row in curve(folder / "fork/pretrain")] == list(range(11, 21))
    assert curve(folder / "fork/pretrain") == curve(folder / "parent/pretrain")[10:]
    assert_same_tensors(tensors_of(folder / "fork/pretrain"), tensors_of(folder / "parent/pretrain"))
    receipt = read_object(folder / "fork" / "receipt.json")
    assert receipt is not None and receipt["parent"]["step"] == 10
    assert receipt["parent"]["folder"] == str(folder / "parent/pretrain")


def test_fork_may_change_what_it_learns_with(folder: Path, run: Path) -> None:
    document = pretrained(folder, "pretrain.steps=12", "pretrain.lr=1e-4", run="fork", from_=str(run))
    assert document["step"] == 12
    assert [row[0] for row in curve(folder / "fork/pretrain")] == [11, 12]
    assert max(row[3] for row in curve(folder / "fork/pretrain")) <= 1e-4


def test_fork_on_other_data_takes_the_weights_only(folder: Path, run: Path) -> None:
    own = f"tokenizer.path={run}/pretrain/tokenizer.json"
    recipe = folder / "tiny.toml"
    recipe.write_text(recipe.read_text().replace("vocab = 300", ""))
    shutil.rmtree(folder / "texts")
    (folder / "texts").mkdir()
    for number in range(5):
        (folder / "texts" / f"{number}.txt").write_text(f"Other words, {number} of them. " * 40)
    pretrained(folder, "pretrain.steps=1", "pretrain.lr=1e-9", own, run="fork", from_=f"{run}@5")
    forked, parent = tensors_of(folder / "fork/pretrain"), tensors_of(run / "pretrain", 5)
    for name, tensor in parent.items():
        if not name.startswith("optimizer."):
            torch.testing.assert_close(forked[name], tensor, rtol=0, atol=1e-6)
    assert curve(folder / "fork/pretrain")[0][0] == 1
    assert forked["optimizer.model.norm.weight.step"] == 1.0


def test_hugging_face_folder_gives_its_weights(folder: Path, run: Path) -> None:
    export_huggingface(run / "pretrain", folder / "hf", step=None, dtype=None, console=QUIET)
    pretrained(folder, "pretrain.steps=1", "pretrain.lr=1e-9", run="child", from_=str(folder / "hf"))
    child, parent = tensors_of(folder / "child/pretrain"), tensors_of(run / "pretrain")
    for name, tensor in parent.items():
        if not name.startswith("optimizer."):
            torch.testing.assert_close(child[name], tensor, rtol=0, atol=1e-6)
    assert curve(folder / "child/pretrain")[0][0] == 1


def test_fork_is_resumed_by_the_same_command_also_when_its_parent_has_gone_on(folder: Path) -> None:
    parent, step = str(folder / "parent"), "pretrain.save_every=1"
    pretrained(folder, LENGTH, run="parent")
    pretrained(folder, "pretrain.steps=12", step, run="fork", from_=parent)
    pretrained(folder, "pretrain.steps=14", step, run="parent")  # keeps 13 and 14 only
    document = pretrained(folder, "pretrain.steps=13", step, run="fork", from_=parent)
    assert document["step"] == 13 and document["attempts"] == 2
    assert pretrained(folder, "pretrain.steps=13", step, run="fork", from_=f"{parent}@10")["already_done"]
    assert pretrained(folder, "pretrain.steps=13", step, run="fork")["already_done"]
    error = refused(folder, "pretrain.steps=13", step, run="fork", from_=f"{parent}@14")
    assert "began from other weights" in error.problem and error.exit_code == 2


def test_fork_killed_before_its_checkpoint_was_copied_is_a_fork_still(folder: Path, run: Path) -> None:
    pretrained(folder, "pretrain.steps=12", run="fork", from_=str(run))
    shutil.rmtree(folder / "fork/pretrain/checkpoints")
    for name in ("events.jsonl", "metrics.jsonl"):
        (folder / "fork/pretrain" / name).unlink()
    pretrained(folder, "pretrain.steps=12", run="fork")
    assert [row[0] for row in curve(folder / "fork/pretrain")] == [11, 12]


def test_fork_at_its_end_is_refused(folder: Path, run: Path) -> None:
    error = refused(folder, LENGTH, run="fork", from_=str(run))
    assert error.exit_code == 2 and "would begin at its end" in error.problem
    assert "pretrain.steps=20" in error.fix
    assert not (folder / "fork" / "pretrain").exists()


def test_fork_of_another_shape_names_what_differs(folder: Path, run: Path) -> None:
    error = refused(folder, "model.ffn=80", run="fork", from_=str(run))
    assert error.exit_code == 2 and "another model" in error.problem
    assert "ffn 80" in error.found and "ffn 48" in error.wanted


def test_recipe_may_be_mended_until_a_stage_has_begun(folder: Path, run: Path) -> None:
    refused(folder, "pretrain.steps=12", "model.ffn=80", run="fork", from_=str(run))
    assert pretrained(folder, "pretrain.steps=12", run="fork", from_=str(run))["step"] == 12


def test_wrong_origins_are_told_what_is_there(folder: Path, run: Path) -> None:
    wrong = {
        f"{folder}/nowhere": "is not a run",
        f"{run}@7": "has no checkpoint of step 7",
        f"{run}@newest": "the part behind @ is not a step",
        f"{folder}/texts": "is not a run",
    }
    for from_, problem in wrong.items():
        error = refused(folder, run="fork", from_=from_)
        assert isinstance(error, RecipeError) and problem in error.problem, error
    assert refused(folder, run="fork", from_=f"{run}@7").found == "steps 5, 10"
    file = run / "pretrain/checkpoints/step-00000005/model-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    error = refused(folder, run="fork", from_=f"{run}@5")
    assert isinstance(error, CheckpointError) and str(file) in error.problem
    assert not (folder / "fork" / "pretrain").exists()


# Refused before the start.


def test_run_that_does_not_fit_in_memory_is_refused(folder: Path) -> None:
    huge = ("model.hidden=65536", "model.layers=100", "model.ffn=65536")
    error = refused(folder, *huge)
    assert isinstance(error, RefusedError) and error.exit_code == 3 and "memory" in error.problem
    assert not (folder / "run" / "pretrain").exists()


def test_run_whose_checkpoints_do_not_fit_on_the_disk_is_refused(folder: Path) -> None:
    with small_disk(folder / "disk", "300k") as disk:
        error = refused(folder, run=f"{disk.name}/run")
        assert isinstance(error, RefusedError) and error.exit_code == 3 and "disk" in error.problem
        assert "keep=1" in error.fix


# The command itself.


def command(*words: str) -> int:
    return main(["pretrain", "tiny.toml", "--run", "run", *words])


def test_printed_fork_command_works_as_it_is_printed(
    folder: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert command("--set", "pretrain.lr=1e-3") == 2
    error = capsys.readouterr().err
    printed = re.search(r"`bessemer (.*)`", error)
    assert printed is not None and "`pretrain.lr`" in error
    assert main(shlex.split(printed[1])) == 0
    rows = read_rows(folder / "run-fork/pretrain/metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(11, 41))
    assert max(row["lr"] for row in rows) == 1e-3


def test_run_in_use_is_refused_and_the_lock_of_a_killed_process_is_no_obstacle(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    holder = start(folder, "pretrain", "tiny.toml", "--run", "run", "--set", "pretrain.steps=100000")
    wait_for(holder, lambda: listed(folder / "run/pretrain"))
    assert command() == 3 and f"process {holder.pid} on" in capsys.readouterr().err
    holder.kill()
    holder.communicate()
    assert (folder / "run/.lock").read_text().startswith(f"process {holder.pid} on")
    assert command() == 2  # past the lock: it is the length that is refused
    assert "`pretrain.steps`" in capsys.readouterr().err
