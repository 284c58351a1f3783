"""The energy of rows by phase, over attempts, as real trainings write them; and the account of it."""

import json
import os
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from making_processes import finish, start, wait_for
from making_runs import (
    QUIET,
    TinyRows,
    events,
    make_job,
    pretrained,
    run_job,
    stage_plan,
    write_recipe,
)

from bessemer.checkpoint.saver import Saver
from bessemer.data.loader import Batches
from bessemer.energy.accounting.account import account
from bessemer.energy.accounting.readings import ENERGY_COLUMNS
from bessemer.energy.accounting.receipt import write_account
from bessemer.errors import StoppedError
from bessemer.log import Console
from bessemer.rundir import Row, read_object, read_rows
from bessemer.train import loop
from bessemer.train.record import Recorder

_SLEEP_S = 0.03


def slowed(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[int]:
    """Calls of a function take _SLEEP_S longer, and are counted."""
    real, calls = getattr(owner, name), [0]

    def slow(*args: Any, **more: Any) -> Any:
        calls[0] += 1
        time.sleep(_SLEEP_S)
        return real(*args, **more)

    monkeypatch.setattr(owner, name, slow)
    return calls


def rows_of(run: Path) -> list[Row]:
    return read_rows(run / "pretrain" / "metrics.jsonl")


def trained(run: Path, steps: int, **changes: Any) -> list[Row]:
    plan = stage_plan(**{"steps": steps, "save_every": 2, "validate_every": 3, **changes})
    run_job(run / "pretrain", plan, validation=TinyRows(3, seed=1))
    return rows_of(run)


def test_validation_and_saving_are_told_apart_from_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validations = slowed(monkeypatch, loop, "validation_loss")
    saves = slowed(monkeypatch, Saver, "save")
    began_s = time.monotonic()
    rows = trained(tmp_path, 7)
    whole_s = time.monotonic() - began_s
    for row in rows:
        phases = row["energy_phases_j"]
        assert sum(phases.values()) == pytest.approx(row["energy_j"], rel=1e-9)
    (done,) = events(tmp_path / "pretrain", "done")
    seconds = done["time_phases_s"]
    assert (validations[0], saves[0]) == (3, 4)
    for name, calls in (("validation", 3), ("saving", 4)):
        assert _SLEEP_S * calls <= seconds[name] < whole_s
    assert rows[-1]["time_s"] <= sum(seconds.values()) <= whole_s
    assert "paused" not in seconds and "sampling" not in seconds
    watts = {name: done["energy_phases_j"][name] / seconds[name] for name in seconds}
    assert watts["saving"] < watts["steps"]  # it slept, and nothing reads this machine but its CPU time


def test_account_has_phases_and_the_last_save_and_its_parts_add_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowed(monkeypatch, Saver, "save")
    last = trained(tmp_path, 3)[-1]
    told = account(tmp_path)["stages"]["pretrain"]
    (done,) = events(tmp_path / "pretrain", "done")
    assert told["energy_j"]["value"] == done["energy_j"] > last["energy_j"]
    parts = [phase["value"] for phase in told["phases_j"].values()]
    assert sum(parts) == pytest.approx(told["energy_j"]["value"])
    lows = [phase["low"] for phase in told["phases_j"].values()]
    assert sum(lows) == pytest.approx(told["energy_j"]["low"])
    assert told["phases_s"] == done["time_phases_s"]
    assert told["restarting_j"]["value"] == 0.0


def test_beginning_of_each_attempt_after_the_first_is_restarting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begins = slowed(monkeypatch, Recorder, "begin")
    for steps in (2, 4, 6):
        trained(tmp_path, steps)
    ends = [row["energy_phases_j"]["starting"] for row in events(tmp_path / "pretrain", "done")]
    assert begins == [3] and 0.0 < ends[0] < ends[1] < ends[2]
    told = account(tmp_path)
    assert told["stages"]["pretrain"]["restarting_j"]["value"] == pytest.approx(ends[2] - ends[0])
    assert told["total"]["restarting_j"] == told["stages"]["pretrain"]["restarting_j"]
    whole = [row["energy_j"] for row in [*rows_of(tmp_path), *events(tmp_path / "pretrain", "done")]]
    assert told["total"]["energy_j"]["value"] == max(whole)


def test_attempts_that_ended_in_order_lose_nothing_between_them(tmp_path: Path) -> None:
    for steps in (2, 4):
        trained(tmp_path, steps)
    first = events(tmp_path / "pretrain", "done")[0]
    after = next(row for row in rows_of(tmp_path) if row["attempt"] == 2)
    assert after["energy_j"] > first["energy_j"]
    for name, joules in first["energy_phases_j"].items():
        assert after["energy_phases_j"][name] >= joules


def test_steps_that_were_run_again_do_not_count_what_beginning_drew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowed(monkeypatch, Recorder, "begin")
    rows = trained(tmp_path, 5, save_every=100)
    for folder in (tmp_path / "pretrain" / "checkpoints").iterdir():  # as if killed before its save
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    trained(tmp_path, 5)
    told = account(tmp_path)["stages"]["pretrain"]
    drawn = rows[-1]["energy_j"] - rows[-1]["energy_phases_j"]["starting"]
    assert told["lost_j"]["value"] == pytest.approx(drawn)
    assert told["lost_j"]["value"] + told["restarting_j"]["value"] < told["energy_j"]["value"]


def test_what_a_killed_attempt_drew_after_its_last_row_is_estimated_beside_the_sums(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    steps, stage = "pretrain.steps=120", tmp_path / "run" / "pretrain"
    process = start(tmp_path, "pretrain", "tiny.toml", "--run", "run", "--store", "data", "--set", steps)
    wait_for(process, lambda: len(read_rows(stage / "metrics.jsonl")) > 5)
    process.kill()
    finish(process)
    last, seen_s = read_rows(stage / "metrics.jsonl")[-1], (stage / "metrics.jsonl").stat().st_mtime + 7.0
    os.utime(stage / "logs" / "rank-00000.log", (seen_s, seen_s))  # a step was told of, and no row written
    pretrained(tmp_path, steps)
    (resume,) = events(stage, "resume")
    assert resume["unrecorded_s"] == pytest.approx(7.0, abs=0.01)
    document = account(tmp_path / "run")
    told = document["stages"]["pretrain"]["after_kills_j"]
    assert told["value"] == told["low"] == pytest.approx(7.0 * last["power_w"], rel=0.01)
    assert told["high"] == pytest.approx(17.0 * last["power_w"], rel=0.01) and told["basis"] == "modelled"
    assert document["stages"]["pretrain"]["energy_j"]["value"] == events(stage, "done")[-1]["energy_j"]
    pretrained(tmp_path, "pretrain.steps=124")  # an attempt that ended in order leaves nothing to estimate
    assert account(tmp_path / "run")["total"]["after_kills_j"] == told


def test_run_that_began_before_there_were_phases_goes_on_without_them(tmp_path: Path) -> None:
    trained(tmp_path, 2)
    later = {"energy_phases_j", "time_phases_s", "waiting_for_data_s"}
    for name, keys in (("metrics", later), ("events", later | set(ENERGY_COLUMNS))):
        path = tmp_path / "pretrain" / f"{name}.jsonl"
        old = [{key: row[key] for key in row.keys() - keys} for row in read_rows(path)]
        path.write_text("".join(json.dumps(row) + "\n" for row in old))
    rows = trained(tmp_path, 4)
    assert rows[-1]["energy_phases_j"] is rows[-1]["time_phases_s"] is None
    told = account(tmp_path)["stages"]["pretrain"]
    assert told["energy_j"]["value"] > rows[1]["energy_j"] > 0.0
    assert told["phases_j"] is told["waiting_for_data"] is told["restarting_j"]["value"] is None


def test_waiting_for_data_is_told_in_seconds_and_as_its_share_of_the_energy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = slowed(monkeypatch, Batches, "batch")
    for steps in (3, 6):
        trained(tmp_path, steps)
    rows = rows_of(tmp_path)
    assert calls == [6] and rows[-1]["waiting_for_data_s"] >= 6 * _SLEEP_S
    told = account(tmp_path)
    waiting, energy = told["stages"]["pretrain"]["waiting_for_data"], told["stages"]["pretrain"]["energy_j"]
    assert waiting["seconds"] == rows[-1]["waiting_for_data_s"] < rows[-1]["time_s"]
    waits = [row["waiting_for_data_s"] - before for before, row in with_before(rows)]
    by_hand = sum(wait * row["power_w"] for wait, row in zip(waits, rows, strict=True))
    assert waiting["energy_j"]["value"] == pytest.approx(by_hand)
    assert waiting["energy_j"]["basis"] == "assumed"  # modelled of what is assumed
    assert waiting["energy_j"]["high"] / by_hand == pytest.approx(energy["high"] / energy["value"])
    assert told["total"]["waiting_for_data_j"] == waiting["energy_j"]


def with_before(rows: list[Row]) -> list[tuple[float, Row]]:
    return [(before.get("waiting_for_data_s", 0.0), row) for before, row in pairwise([{}, *rows])]


def test_stop_keeps_what_was_drawn_after_the_last_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowed(monkeypatch, Saver, "save")
    job, state = make_job(tmp_path / "pretrain", stage_plan(steps=9, log_every=100))
    job.stop.ask("enough")
    with pytest.raises(StoppedError):
        loop.train(job, state)
    job.close()
    (stop,) = events(tmp_path / "pretrain", "stop")
    assert not rows_of(tmp_path) and stop["energy_phases_j"]["starting"] > 0.0
    assert stop["energy_j"] == pytest.approx(sum(stop["energy_phases_j"].values()))
    run_job(tmp_path / "pretrain", stage_plan(steps=2))
    assert rows_of(tmp_path)[0]["energy_j"] > stop["energy_j"]


def test_receipt_has_the_whole_account_and_a_broken_one_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(tmp_path, 2)
    write_account(tmp_path, QUIET)  # without a receipt there is nothing to write it in
    assert not (tmp_path / "receipt.json").exists()
    (tmp_path / "receipt.json").write_text(json.dumps({"bessemer": "1"}))
    write_account(tmp_path, QUIET)
    receipt = read_object(tmp_path / "receipt.json")
    assert receipt == {"bessemer": "1", "energy": json.loads(json.dumps(account(tmp_path)))}
    (tmp_path / "recipe.toml").write_text('name = "run"\n[energy]\nregion = "NOWHERE"\n')
    write_account(tmp_path, Console())
    assert "receipt.json has no new account of energy" in capsys.readouterr().err
    assert read_object(tmp_path / "receipt.json") == receipt
