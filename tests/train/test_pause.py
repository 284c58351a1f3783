"""Pausing for the grid in real runs: saved, standing still, going on bitwise; what a signal does.

The clock is the real one: the files of hours cover today, and change while the run goes on. Several ranks:
tests/distributed/test_ranks_paused.py.
"""

import json
import os
import signal
import threading
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from making_processes import finish, start, wait_for
from making_runs import assert_same_training, curve, events, place, pretrained, write_recipe

from bessemer.checkpoint.folder import listed, step_of
from bessemer.checkpoint.saver import Saver
from bessemer.cli.main import main
from bessemer.energy.grid.hourly import HOUR_S, hour_text
from bessemer.errors import RecipeError, StoppedError
from bessemer.log import Console
from bessemer.recipe.load import load
from bessemer.rundir import read_rows
from bessemer.train import pause
from bessemer.train.pretrain import pretrain

STEPS = 200
DIRTY, CLEAN = 900.0, 50.0
KEYS = ("energy.intensity=hours.csv", "energy.pause_above_g_per_kwh=300.0")
LENGTH = (f"pretrain.steps={STEPS}", "pretrain.save_every=150", "pretrain.validate_every=100")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of several runs on the same prepared data."""
    return write_recipe(tmp_path_factory.mktemp("paused")).parent


def write_hours(folder: Path, grams: float | None) -> str:
    """Of this hour and those around it, renamed into place; None: of none of them. The first without."""
    now = int(time.time() // HOUR_S)
    hours = range(now - 2, now + 6) if grams is not None else range(now - 9, now - 6)
    rows = "".join(f"{hour_text(hour)},{CLEAN if grams is None else grams}\n" for hour in hours)
    (folder / "new.csv").write_text(f"time,g_per_kwh\n{rows}")
    os.replace(folder / "new.csv", folder / "hours.csv")
    return hour_text(hours[-1] + 1)


def test_pause_saves_stands_still_and_goes_on_bitwise_where_it_stopped(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command itself; the file of hours says clean, then dirty, then clean."""
    pretrained(folder, *LENGTH, run="never")
    stage = folder / "run/pretrain"
    write_hours(folder, CLEAN)
    settings = [word for key in (*LENGTH, *KEYS) for word in ("--set", key)]
    process = start(folder, "pretrain", "tiny.toml", "--run", "run", *settings)
    wait_for(process, lambda: len(curve(stage)) > 3)
    first_unknown = write_hours(folder, DIRTY)
    wait_for(process, lambda: events(stage, "pause"))
    step = curve(stage)[-1][0]
    assert 3 < step < STEPS and step_of(listed(stage)[0]) == step
    (told,) = events(stage, "pause")
    assert (told["step"], told["until"]) == (step, first_unknown)
    (folder / "new.csv").write_text("time,g_per_kwh\n")  # renewed at once, and not whole: told once
    os.replace(folder / "new.csv", folder / "hours.csv")
    wait_for(process, lambda: events(stage, "intensity"))
    assert curve(stage)[-1][0] == step and process.poll() is None
    write_hours(folder, CLEAN)
    code, _, error = finish(process)
    assert code == 0, error
    assert f"step {step}: saved, and paused until {first_unknown}: the grid is at 900 g CO2e per kWh" in error
    assert f"step {step}: going on after a pause of" in error
    assert "hours.csv is no file of hourly grid intensity any more (no rows): the hours read before" in error
    assert_same_training(stage, folder / "never/pretrain", STEPS)
    (resumed,) = events(stage, "resume_after_pause")
    assert resumed["step"] == step and resumed["seconds"] > 1.0 and resumed["joules"] > 0.0
    assert len(events(stage, "intensity")) == 1
    _check_account(folder, resumed, capsys)


def _check_account(folder: Path, resumed: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Its time is no step's, its joules are told apart; with the hours that the run saw, the file is gone."""
    rows = read_rows(folder / "run/pretrain/metrics.jsonl")
    began, done = (events(folder / "run/pretrain", kind)[0]["time"] for kind in ("start", "done"))
    assert rows[-1]["time_s"] < done - began - resumed["seconds"]
    assert sum(row["step_time_s"] for row in rows) == pytest.approx(rows[-1]["time_s"], abs=1e-3)
    assert rows[-1]["energy_phases_j"]["paused"] == pytest.approx(resumed["joules"])
    (folder / "hours.csv").unlink()
    capsys.readouterr()
    assert main(["energy", str(folder / "run"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    told = document["pauses"]
    assert told["count"] == 1 and told["joules"] == pytest.approx(resumed["joules"])
    assert told["hours"] * 3600.0 == pytest.approx(resumed["seconds"], abs=0.5)
    assert told["kg_co2e_saved"]["value"] is not None
    assert document["stages"]["pretrain"]["carbon_from"] == "hourly intensity"


def test_signal_in_a_pause_stops_at_once_and_the_next_attempt_pauses_before_its_first_step(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_hours(folder, DIRTY)
    stage = folder / "signalled/pretrain"
    killer = threading.Timer(0.0, _signal_in_pause, [stage])
    killer.start()
    with pytest.raises(StoppedError, match="at step 0 of 3, and saved") as caught:
        pretrained(folder, "pretrain.steps=3", *KEYS, run="signalled")
    killer.join()
    assert caught.value.exit_code == 75 and "SIGTERM" in caught.value.found
    (ended,) = events(stage, "stop_in_pause")
    assert ended["seconds"] < 10.0 and curve(stage) == []
    capsys.readouterr()
    longest = "energy.pause_most_hours=0.0003"
    pretrained(folder, "pretrain.steps=3", *KEYS, longest, run="signalled", console=Console())
    begun, resumed = events(stage, "pause")[-1], events(stage, "resume_after_pause")[-1]
    assert begun["step"] == resumed["step"] == 0 and 1.0 < resumed["seconds"] < 20.0
    assert len(events(stage, "pause")) == 2 and len(curve(stage)) == 3
    assert "(energy.pause_most_hours)" in capsys.readouterr().err


def _signal_in_pause(stage: Path) -> None:
    while not events(stage, "pause"):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)


def test_hours_that_the_file_does_not_cover_run_and_that_is_said_once(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_hours(folder, None)
    pretrained(folder, "pretrain.steps=3", *KEYS, run="uncovered", console=Console())
    stage = folder / "uncovered/pretrain"
    assert not events(stage, "pause") and len(curve(stage)) == 3
    assert [row["g_per_kwh"] for row in events(stage, "grid")] == [None]
    assert capsys.readouterr().err.count("intensity is not known for") == 1


def test_hours_of_the_day_pause_without_any_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute that has begun, and the one after it: cut short by the longest pause."""
    monkeypatch.setattr(pause, "_POLL_S", 0.05)
    minute = int(time.time() // 60) % 1440
    begin, end = (f"{at // 60:02d}:{at % 60:02d}" for at in (minute, (minute + 2) % 1440))
    hours = f'energy.pause_hours=["{begin}-{end}"]'
    pretrained(folder, "pretrain.steps=2", hours, "energy.pause_most_hours=0.0001", run="scheduled")
    stage = folder / "scheduled/pretrain"
    (begun,) = events(stage, "pause")
    assert begun["reason"] == f"pause hours {begin}-{end} UTC"
    assert len(curve(stage)) == 2 and not events(stage, "grid")


def test_program_of_the_users_pauses_too_where_it_may_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pause, "_POLL_S", 0.05)
    command = 'energy.intensity_command=["echo", "640"]'
    keys = ["pretrain.steps=2", command, KEYS[1], "energy.pause_most_hours=1e-4"]
    with pytest.raises(RecipeError, match="a program of the recipe's own") as caught:
        pretrained(folder, *keys, run="asked")
    assert "--allow-code" in caught.value.fix and not (folder / "asked").exists()
    where = replace(place(folder, "asked"), allow_code=True)
    pretrain(load(str(folder / "tiny.toml"), keys), where)
    (begun,) = events(folder / "asked/pretrain", "pause")
    assert "640 g CO2e per kWh, above 300" in begun["reason"]
    assert [row["g_per_kwh"] for row in events(folder / "asked/pretrain", "grid")] == [640.0]


def test_the_hour_in_which_the_last_step_ends_is_seen_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour passes between two looks: what was drawn in the last one has its carbon."""
    write_hours(folder, CLEAN)
    began_s, looks = time.time(), count()
    later = SimpleNamespace(time=lambda: began_s + HOUR_S * next(looks), sleep=time.sleep)
    monkeypatch.setattr(pause, "time", later)
    pretrained(folder, "pretrain.steps=2", "energy.intensity=hours.csv", run="hours")
    seen = [row["hour"] for row in events(folder / "hours/pretrain", "grid")]
    assert seen == [hour_text(int(began_s // HOUR_S) + number) for number in range(3)]


def test_waiting_for_a_save_before_a_pause_is_saving(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, waits = Saver.wait, [0]

    def slow(saver: Saver) -> None:
        waits[0] += 1
        time.sleep(0.2)
        real(saver)

    monkeypatch.setattr(Saver, "wait", slow)
    monkeypatch.setattr(pause, "_POLL_S", 0.05)
    write_hours(folder, DIRTY)
    pretrained(folder, "pretrain.steps=2", *KEYS, "energy.pause_most_hours=1e-5", run="waited")
    (done,) = events(folder / "waited/pretrain", "done")
    assert events(folder / "waited/pretrain", "pause") and waits[0] > 2
    assert done["time_phases_s"]["saving"] >= 0.2 * (waits[0] - 1)  # the last is that of closing


def test_nothing_is_begun_with_a_file_that_is_none(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    with pytest.raises(RecipeError, match="no file of hourly grid intensity"):
        pretrained(tmp_path, *KEYS)
    assert not (tmp_path / "run").exists()
