"""Levers in whole runs: refused where they can do nothing, moved while a stage trains, back at its end."""

import argparse
import importlib.util
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from making_boards import ONE, STEP_S, TWO, Boards, build_library
from making_runs import QUIET, SMALLEST, curve, events, place, pretrained, write_recipe

from bessemer.cli import doctor
from bessemer.energy.levers import governor as governors
from bessemer.energy.levers.governor import Governor
from bessemer.energy.levers.record import records, take
from bessemer.errors import RecipeError, RefusedError, UserError
from bessemer.finetune.task import prepare_finetune
from bessemer.formulas.layout import ONE_PROCESS, Layout
from bessemer.hardware import machine, store_ceilings, stored_ceilings, usable_cores
from bessemer.log import Console
from bessemer.measure.facts import gather
from bessemer.planner.calibrated.step_time import threads_of
from bessemer.recipe.load import load
from bessemer.train import run as running
from bessemer.train.job import Job
from bessemer.train.pretrain import begin_pretrain
from bessemer.train.record import Recorder
from bessemer.train.run import run_stage
from bessemer.train.state import TrainState

TESTS = Path(__file__).parents[1]
BATCH_TOKENS = SMALLEST["batch_tokens"]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def governor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the only policy."""
    folder = tmp_path / "cpufreq" / "policy0"
    folder.mkdir(parents=True)
    (folder / "scaling_available_governors").write_text("performance powersave\n")
    (folder / "scaling_governor").write_text("performance\n")
    monkeypatch.setattr(governors, "CPUFREQ", folder.parent)
    return folder / "scaling_governor"


@pytest.fixture(scope="module")
def folder(cache: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a recipe, and data that is prepared once."""
    known = stored_ceilings(machine().cpu, 1)
    assert known is not None
    store_ceilings(replace(known, threads=usable_cores()))  # not to be measured
    folder = tmp_path_factory.mktemp("recipe")
    write_recipe(folder)
    return folder


def refused(folder: Path, *settings: str) -> UserError:
    with pytest.raises(UserError) as caught:
        pretrained(folder, *settings, run="refused")
    assert not (folder / "refused").exists()
    return caught.value


def test_power_limit_without_an_accelerator_is_an_error(folder: Path) -> None:
    for value in ("auto", "300"):
        error = refused(folder, f"energy.power_limit={value}")
        assert isinstance(error, RecipeError) and "has no effect" in error.problem
        assert 'energy.power_limit="off"' in error.fix


def test_lever_that_this_machine_cannot_have_is_refused_before_any_data_is_prepared(
    tmp_path: Path, governor: Path
) -> None:
    write_recipe(tmp_path, task=True, ready=False)
    files = sorted(tmp_path.rglob("*"))
    for setting in ("power_limit=300", "governor=schedutil", f"threads={usable_cores() + 1}"):
        loaded = load(str(tmp_path / "tiny.toml"), [f"energy.{setting}"])
        for start in (
            partial(begin_pretrain, loaded, place(tmp_path)),
            partial(prepare_finetune, loaded, place(tmp_path), str(tmp_path), None),
        ):
            with pytest.raises(UserError, match=r"no effect|no such governor|more threads"):
                start()
    assert sorted(tmp_path.rglob("*")) == files


def test_stage_that_is_done_is_not_asked_for_levers_again(folder: Path) -> None:
    pretrained(folder, "pretrain.steps=1", run="done")
    again = pretrained(folder, "pretrain.steps=1", "energy.power_limit=auto", run="done")
    assert again["already_done"]


def test_allowance_of_time_without_a_search_is_an_error(folder: Path) -> None:
    error = refused(folder, "energy.slower_at_most=0.1")
    assert isinstance(error, RecipeError) and error.fix == "remove energy.slower_at_most"


def test_governor_that_this_machine_does_not_have_is_refused(folder: Path, governor: Path) -> None:
    error = refused(folder, "energy.governor=schedutil")
    assert isinstance(error, RefusedError) and error.wanted == "one of performance, powersave"


def test_more_threads_than_cores_are_refused(folder: Path) -> None:
    cores = usable_cores()
    error = refused(folder, f"energy.threads={cores + 1}")
    assert isinstance(error, RefusedError) and error.fix.startswith(f"set energy.threads={cores},")
    error = refused(folder, "energy.threads=2", f"parallel.layout=shard={cores}")
    assert isinstance(error, RefusedError) and error.fix.startswith("set energy.threads=1,")


def test_threads_are_used_in_the_stage_and_only_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int | None] = []
    before = torch.get_num_threads()
    monkeypatch.setattr(running, "train", lambda *_: seen.append(torch.get_num_threads()))
    monkeypatch.setattr(running, "run_workers", lambda *_, threads, **__: seen.append(threads))
    pretrained(folder, f"energy.threads={usable_cores()}", run="one")
    pretrained(folder, "energy.threads=1", "parallel.layout=shard=2", run="two")
    pretrained(folder, "parallel.layout=shard=2", run="two-alone")
    assert seen == [usable_cores(), 1, None] and torch.get_num_threads() == before


def test_prediction_is_for_the_threads_that_are_asked_for(folder: Path) -> None:
    for asked in (1, usable_cores()):
        recipe = load(str(folder / "tiny.toml"), [f"energy.threads={asked}"]).recipe
        facts = gather(recipe, folder, torch.device("cpu"))
        assert facts.ceilings is not None and facts.ceilings.threads == asked
        assert threads_of(ONE_PROCESS, facts) == threads_of(Layout(shard=4), facts) == asked


def test_governor_is_set_while_a_stage_trains_and_changes_no_number(
    folder: Path, governor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, train = [], running.train

    def watched(job: Job, state: TrainState) -> object:
        assert isinstance(job.record, Recorder) and job.record._watch is not None
        seen.append((governor.read_text(), job.record._watch.governor))
        return train(job, state)

    monkeypatch.setattr(running, "train", watched)
    pretrained(folder, "pretrain.steps=3", run="plain")
    pretrained(folder, "pretrain.steps=3", "energy.governor=powersave", run="governed")
    assert seen == [("performance\n", None), ("powersave\n", "powersave")]
    assert governor.read_text() == "performance\n"
    assert curve(folder / "governed/pretrain") == curve(folder / "plain/pretrain")
    assert not list(records())


def test_governor_is_back_after_a_run_that_fails(
    folder: Path, governor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*parts: object) -> None:
        assert governor.read_text() == "powersave\n"
        raise RuntimeError("as a mistake of ours would")

    monkeypatch.setattr(running, "train", failing)
    with pytest.raises(RuntimeError):
        pretrained(folder, "energy.governor=powersave", run="failing")
    assert governor.read_text() == "performance\n"


def left_behind(governor: Path) -> None:
    """As by a run that was killed together with its guard."""
    lever = Governor(governor.parents[1])
    holding = take(lever.kind, lever.name)
    record = {"kind": lever.kind, "name": lever.name, "before": lever.read(), "process": 7}
    holding.write(record)
    holding.close()
    lever.choose("powersave")


def test_next_start_puts_back_what_was_left(
    folder: Path, governor: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left_behind(governor)
    seen: list[str] = []
    monkeypatch.setattr(running, "train", lambda *_: seen.append(governor.read_text()))
    pretrained(folder, run="next", console=Console())
    assert seen == ["performance\n"]
    assert "put back: governor of cpu, left by process 7" in capsys.readouterr().err


def test_doctor_puts_back_what_was_left_and_says_so(governor: Path) -> None:
    left_behind(governor)
    told = doctor.run(argparse.Namespace(calibrate=False, console=Console(quiet=True)))
    assert governor.read_text() == "performance\n"
    assert told["put_back"] == ["put back: governor of cpu, left by process 7"]


# A job on this machine's CPU that holds a board, which is a row of a file.
ATTEMPTS = """
from pathlib import Path
from making_runs import events, make_job, stage_plan
from bessemer.log import Console
from bessemer.train import levers
from bessemer.train.ranks import ALONE

FOLDER, BOARD, told, console = Path(%r), %r, [], Console()
console.line, levers.meter_name = told.append, lambda device: BOARD


def attempt(power_limit, work=lambda tune: None):
    job, state = make_job(FOLDER, stage_plan())
    try:
        asked = {"governor": None, "slower_at_most": 0.05, "power_limit": power_limit}
        tune = levers.begin_tune(asked, job, 3, ALONE, console)
        work(tune)
        now_w = levers.Board(BOARD).limit_w
        tune.close()
    finally:
        job.close()
    return [now_w, levers.Board(BOARD).limit_w]
"""
TOLD = """
import os
from bessemer.errors import RefusedError
from bessemer.formulas.layout import ONE_PROCESS
from bessemer.recipe.schema import Energy


def find(tune):  # as a search does
    tune._tell.event("power_limit", 9, found="measured", device="NVIDIA H100 80GB HBM3", layout="replicate=1",
                     slower_at_most=0.05, watts=450.0)

limits = [attempt(300), attempt("auto", find), attempt("auto")]
levers.Board(BOARD).limit(400)  # by an administrator
limits += [attempt("auto")]
levers.Board(BOARD).limit(700)
rows, lines = events(FOLDER, "power_limit"), told[:]
told.clear()

limits_file, refused_for = Path(os.environ["FAKE_NVML_LIMITS"]), []
limits_file.write_text(limits_file.read_text().replace(",1,", ",0,"))  # from now on nobody may
for start in (lambda: attempt(300), lambda: levers.check_boards(Energy(power_limit=300), ONE_PROCESS, None)):
    try:
        start()
    except RefusedError as error:
        refused_for.append(error.problem)
levers.check_boards(Energy(power_limit="auto"), ONE_PROCESS, None)
print(json.dumps([limits, lines, rows, attempt("auto"), told, refused_for]))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    if importlib.util.find_spec("pynvml") is None:
        pytest.skip("needs nvidia-ml-py")
    folder = tmp_path_factory.mktemp("boards")
    boards = Boards(folder, build_library(folder), ONE)
    boards.environment["PYTHONPATH"] += os.pathsep + str(TESTS)
    answer: list[Any] = boards.run(ATTEMPTS % (str(folder / "stage"), ONE) + TOLD)
    return answer


def test_limit_in_watts_is_set_and_told_and_one_that_was_found_is_taken_up(told: list[Any]) -> None:
    limits, lines, rows = told[:3]
    assert limits == [[300, 700], [700, 700], [450, 700], [400, 400]]
    assert [row["found"] for row in rows] == ["asked", "measured", "earlier", "earlier"]
    assert (rows[0]["watts"], rows[0]["full_w"], rows[0]["step"]) == (300, 700, 3)
    assert lines[0].startswith("power limit: not found")
    assert lines[1:] == [
        "power limit: 450 of 700 W, as an earlier attempt has found",
        "power limit: 400 of 400 W, as an earlier attempt has found",
    ]


def test_without_rights_auto_goes_on_at_full_power_and_watts_are_refused(told: list[Any]) -> None:
    limits, lines, refused_for = told[3:]
    assert limits == [700, 700] and refused_for == ["no rights to set a power limit"] * 2
    assert lines[0] == (
        'power limit: left as it is, not "auto": no rights to set a power limit: '
        f"the driver refuses it to this user for {ONE}"
    )


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("pynvml") is None, reason="needs nvidia-ml-py")
def test_ranks_of_a_run_find_a_limit_together_and_train_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boards = Boards(tmp_path, build_library(tmp_path), ONE, TWO)
    for name, value in boards.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([boards.environment["PYTHONPATH"], str(TESTS)]))
    loaded = load(str(folder / "tiny.toml"), ["parallel.layout=shard=2", "energy.threads=1"])
    for run, asked in (("two-plain", "off"), ("two-found", "auto")):
        ready = begin_pretrain(loaded, place(folder, run))
        tune = {"power_limit": asked, "slower_at_most": 0.9, "governor": None, "threads": 1}
        run_stage(replace(ready, machine=replace(ready.machine, tune=tune)), QUIET, "making_boards")
    (told,) = events(folder / "two-found/pretrain", "power_limit")
    # Here a step takes no longer under a limit (its clock goes on by hand), so the lowest saves most.
    assert told["found"] == "measured" and told["watts"] < 700 and len(told["windows"]) > 2
    assert told["watts"] == min(window["limit_w"] for window in told["windows"])
    for window in told["windows"]:
        assert window["step_time_s"] == pytest.approx(STEP_S, rel=1e-6)
        joules = 2 * window["limit_w"] * STEP_S  # of both boards
        assert window["joules_per_token"] == pytest.approx(joules / BATCH_TOKENS, rel=0.01)
    assert curve(folder / "two-found/pretrain") == curve(folder / "two-plain/pretrain")
    assert (boards.limit_w(ONE), boards.limit_w(TWO)) == (700, 700) and not list(records())

    boards.forbid(TWO)
    ready = begin_pretrain(loaded, place(folder, "two-unable"))
    tune = {"power_limit": "auto", "slower_at_most": 0.9, "governor": None, "threads": 1}
    run_stage(replace(ready, machine=replace(ready.machine, tune=tune)), QUIET, "making_boards")
    said = (folder / "two-unable/pretrain/logs/rank-00000.log").read_text()
    assert f"rank 1: no rights to set a power limit: the driver refuses it to this user for {TWO}" in said
    assert not events(folder / "two-unable/pretrain", "power_limit") and not list(records())
