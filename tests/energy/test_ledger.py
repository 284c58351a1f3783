"""What a stage drew beside its rows: after a kill, in a pause that ended it, where nothing is read."""

import json
from pathlib import Path
from typing import Any

import pytest

from bessemer.cli.energy_tables import account as show
from bessemer.energy.accounting.account import account
from bessemer.energy.accounting.goodput import goodput
from bessemer.energy.accounting.ledger import StageLedger
from bessemer.report.energy import _phases

IDLE_J = 1e5  # of a pause of ten hours
UNKNOWN = {"energy_j": None, "energy_low_j": None, "energy_high_j": None, "power_w": None}


def energy(joules: float, **more: Any) -> dict[str, Any]:
    ends = dict.fromkeys(("energy_j", "energy_low_j", "energy_high_j"), joules)
    return {**ends, "energy_basis": "measured", "energy_parts_j": None, "energy_gaps": 0, "energy_gap_s": 0.0,
            "energy_phases_j": {}, "time_phases_s": {}, **more}  # fmt: skip


def row(step: int, kwh: float, attempt: int = 1, **more: Any) -> dict[str, Any]:
    """An hour a step."""
    return {"attempt": attempt, "step": step, "tokens": 1000 * step, "time_s": 3600.0 * step, "loss": 2.0,
            "step_time_s": 10.0, "power_w": 1000.0, **energy(3.6e6 * kwh), **more}  # fmt: skip


def event(time_s: float, kind: str, attempt: int = 1, step: int = 1, **more: Any) -> dict[str, Any]:
    return {"time": time_s, "attempt": attempt, "kind": kind, "step": step, **more}


START = event(0.0, "start", step=0)
PAUSE = event(3600.0, "pause")
GOES_ON = event(39_600.0, "resume_after_pause", seconds=36_000.0, joules=IDLE_J)


def after_kills(*events: dict[str, Any], **more: Any) -> tuple[float | None, float | None]:
    told = StageLedger([row(1, 1.0, **more)], [START, *events]).after_kills
    return told.value, told.high


def test_of_two_kills_in_a_row_the_time_between_them_is_nobodys_work() -> None:
    first, second = (
        event(at_s, "resume", attempt, unrecorded_s=seen_s)
        for at_s, attempt, seen_s in ((4000.0, 2, 5.0), (40_000.0, 3, 36_000.0))
    )
    assert after_kills(first) == after_kills(first, second) == (5000.0, 15_000.0)


def test_pause_before_a_kill_counts_with_what_it_drew_and_not_as_steps() -> None:
    killed = event(40_000.0, "resume", 2, unrecorded_s=36_005.0)
    assert after_kills(PAUSE, GOES_ON, killed) == pytest.approx((IDLE_J + 5000.0, IDLE_J + 15_000.0))
    told = after_kills(PAUSE, GOES_ON, killed, energy_machines=2)  # an event tells the first machine's
    assert told[0] == pytest.approx(2 * IDLE_J + 5000.0)
    again = row(2, 2.1, energy_phases_j={"paused": IDLE_J})  # a row after the pause has what it drew
    ledger = StageLedger([row(1, 1.0), again], [START, PAUSE, GOES_ON, {**killed, "unrecorded_s": 5.0}])
    assert ledger.after_kills.value == 5000.0


def test_pause_that_a_kill_ended_drew_as_the_other_pauses_of_the_stage_or_nobody_knows() -> None:
    heard = event(21_600.0, "grid", hour="2026-11-28T15:00Z", g_per_kwh=500.0)  # five hours in it
    killed = event(40_000.0, "resume", 2, unrecorded_s=0.0)
    assert after_kills(PAUSE, heard, killed) == (None, None)
    later = [event(50_000.0, "pause", 2), event(68_000.0, "resume_after_pause", 2, seconds=18e3, joules=9e5)]
    assert after_kills(PAUSE, heard, killed, *later)[0] == pytest.approx(50.0 * 18_000.0)


def test_what_attempts_drew_in_starting_is_unknown_where_nothing_is_read() -> None:
    dark = {**UNKNOWN, "energy_phases_j": {"starting": None, "steps": None}}
    rows = [row(1, 0.0) | dark, row(2, 0.0, 2) | dark]
    resume = event(4000.0, "resume", 2)
    assert StageLedger(rows, [START, resume]).restarting.value is None
    assert StageLedger(rows[:1], [START]).restarting.value == 0.0  # there was no other attempt


def stop_in_pause(**parts: Any) -> list[dict[str, Any]]:
    phases = {"energy_phases_j": {"paused": IDLE_J}, "time_phases_s": {"paused": 36_000.0}}
    return [
        event(39_600.0, "stop_in_pause", seconds=36_000.0, joules=IDLE_J),
        event(39_600.0, "stop", **energy(3.6e6 + IDLE_J, **phases, **parts)),
    ]


def test_server_around_the_devices_draws_on_in_a_pause_that_a_signal_ended() -> None:
    parts = {"energy_parts_j": {"cpu": {"value": 7.0}}}
    ledger = StageLedger([row(1, 1.0)], [START, PAUSE, *stop_in_pause(**parts)])
    assert ledger.held_hours == pytest.approx(11.0)
    assert ledger.beside_node_meter == pytest.approx((11.0, 7.0))
    assert ledger.metered_hours == pytest.approx(11.0)
    later = StageLedger([row(1, 1.0), row(2, 2.1, 2, time_phases_s={"paused": 36e3})], ledger.events)
    assert later.beside_node_meter[0] == pytest.approx(12.0)


def written(folder: Path, rows: list[dict[str, Any]], events: list[dict[str, Any]]) -> Path:
    stage = folder / "run" / "pretrain"
    stage.mkdir(parents=True)
    for name, told in (("metrics", rows), ("events", events)):
        (stage / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in told))
    (stage / "stage.json").write_text(json.dumps({"kind": "pretrain"}))
    (stage.parent / "receipt.json").write_text(json.dumps({"device": {"name": "Abacus", "kind": "cpu"}}))
    return stage.parent


def test_share_of_a_meter_of_the_node_is_of_steps_and_pauses(tmp_path: Path) -> None:
    """Ten hours with it; then an attempt without, of a pause of twelve hours and an hour in steps."""
    node: dict[str, Any] = {"energy_parts_j": {"node": {"value": 36e6}}}
    paused = {"time_phases_s": {"paused": 12 * 3600.0}, "energy_phases_j": {"paused": IDLE_J}}
    rows = [row(10, 10.0, **node), row(11, 11.0, 2, **node, **paused)]
    events = [START, event(37_000.0, "resume", 2, step=10)]
    scope = account(written(tmp_path, rows, events))["scope"]
    assert "by its own meter for 43% of the time" in scope["metered"]  # 10 of 23 hours
    assert scope["node"].startswith("as metered where")


def lost_and_waiting(folder: Path) -> dict[str, Any]:
    """Step 2 was made twice; half of each hour is waiting."""
    rows = [
        row(step, 1.0 * number, attempt, time_s=3600.0 * number, waiting_for_data_s=1800.0 * number)
        for number, (step, attempt) in enumerate([(1, 1), (2, 1), (2, 2)], start=1)
    ]
    resume = event(9000.0, "resume", 2, unrecorded_s=5.0)
    return account(written(folder, rows, [START, resume]))


def test_waiting_of_lost_steps_is_in_one_part_of_the_bar(tmp_path: Path) -> None:
    told = lost_and_waiting(tmp_path)["stages"]["pretrain"]
    assert told["waiting_for_data"]["energy_j"]["value"] == pytest.approx(1.5 * 3.6e6)
    parts = {part.name: part.joules / 3.6e6 for part in _phases({**told, "phases_j": None}) if part.joules}
    assert parts == pytest.approx(
        {"steps that count": 1.0, "waiting for data": 1.0, "steps that were run again": 1.0}
    )


def killed_after_a_save(folder: Path) -> dict[str, Any]:
    """Three hours at 1 kW; the second one is lost, and half of it was validation and a quarter saving."""
    spent = [{"steps": 1.0}, {"steps": 1.25, "validation": 0.5, "saving": 0.25},
             {"steps": 2.25, "validation": 0.5, "saving": 0.25}]  # fmt: skip
    rows = [
        row(step, 1.0 * number, attempt, time_s=3600.0 * number, step_time_s=3600.0,
            energy_phases_j={name: 3.6e6 * kwh for name, kwh in spent[number - 1].items()},
            time_phases_s={name: 3600.0 * kwh for name, kwh in spent[number - 1].items()})
        for number, (step, attempt) in enumerate([(1, 1), (2, 1), (2, 2)], start=1)
    ]  # fmt: skip
    ends = [event(7500.0, "resume", 2, unrecorded_s=0.0), event(14_400.0, "done", 2, step=2)]
    return account(written(folder, rows, [START, *ends]))


def test_what_was_lost_is_taken_out_of_the_phases_that_it_was_spent_on(tmp_path: Path) -> None:
    told = killed_after_a_save(tmp_path)["stages"]["pretrain"]
    lost = {name: each["value"] / 3.6e6 for name, each in told["lost_phases_j"].items() if each["value"]}
    assert lost == pytest.approx({"steps": 0.25, "validation": 0.5, "saving": 0.25})
    assert told["lost_j"]["value"] == pytest.approx(3.6e6)
    parts = {part.name: part.joules / 3.6e6 for part in _phases(told) if part.joules}
    assert parts == pytest.approx({"steps that count": 2.0, "steps that were run again": 1.0})


def began_from(run: Path, origin: Path, step: int | None) -> None:
    told = {"kind": "checkpoint", "folder": str(origin), "step": step}
    (run / "pretrain/stage.json").write_text(json.dumps({"kind": "pretrain", "origin": told}))


def test_fork_of_a_fork_tells_all_that_other_runs_have_paid_for_and_counts_none_of_it(tmp_path: Path) -> None:
    def run(name: str, first: int, steps: int) -> Path:
        rows = [row(first + made, 1.0 * made) for made in range(1, steps + 1)]
        return written(tmp_path / name, rows, [event(0.0, "start", step=first)])

    base, fork, last = run("base", 0, 4), run("fork", 3, 2), run("last", 5, 1)
    began_from(fork, base / "pretrain", 3)
    began_from(last, fork / "pretrain", 5)
    told = account(last)
    rows = told["inherited"]["pretrain"]
    found = [(each["step"], each["steps"], each["energy_j"]["value"]) for each in rows]
    assert found == [(5, 2, 7.2e6), (3, 3, 10.8e6)] and told["total"]["energy_j"]["value"] == 3.6e6
    assert account(base)["inherited"] == {}

    began_from(last, tmp_path / "gone", 5)
    (gone,) = account(last)["inherited"]["pretrain"]
    assert gone["energy_j"]["value"] is None and gone["tokens"] is None and gone["steps"] is None
    assert f"inherited {tmp_path}/gone until step 5, which took unknown, in no sum" in show(account(last))
    began_from(last, last / "other", 5)  # from another stage of its own run: that is in the account
    assert account(last)["inherited"] == {}


def goodput_of(*events: dict[str, Any], **last: Any) -> float | None:
    """Two steps of an hour."""
    rows = [row(1, 1.0, step_time_s=3600.0), row(2, 2.0, step_time_s=3600.0, **last)]
    return goodput(StageLedger(rows, [START, *events]))


def test_goodput_counts_kills_and_saves_and_neither_pauses_nor_what_was_asked_for(tmp_path: Path) -> None:
    done = event(7200.0, "done", step=2)
    assert goodput_of(done) == 1.0
    assert goodput_of(done, time_phases_s={"saving": 720.0, "validation": 720.0}) == pytest.approx(0.9)
    later = event(7200.0 + 36_000.0, "done", step=2)
    assert goodput_of(PAUSE, GOES_ON, later) == 1.0  # nothing was lost in it
    assert goodput_of(later) == pytest.approx(7200 / 43_200)
    stopped = [event(3600.0, "stop"), event(39_600.0, "resume", 2)]
    assert goodput_of(*stopped, later) == 1.0
    assert goodput_of(event(39_600.0, "resume", 2), later) == pytest.approx(7200 / 43_200)  # it was killed
    longer = [event(3600.0, "done"), event(39_600.0, "resume", 2)]  # with more steps, ten hours later
    assert goodput_of(*longer, later) == 1.0
    paused = [event(4320.0, "pause"), event(40_320.0, "resume_after_pause"), event(43_920.0, "done", step=2)]
    spent_s = {"saving": 720.0, "paused": 36_000.0}  # the save before a pause costs its time once
    assert goodput_of(*paused, time_phases_s=spent_s) == pytest.approx(7200 / 7920)
    told = killed_after_a_save(tmp_path)
    assert told["stages"]["pretrain"]["goodput"] == pytest.approx(0.5)  # two hours of four
    assert "goodput" in show(told) and "50.0%" in show(told)
    assert goodput_of() is None


def test_command_tells_what_kills_are_likely_to_have_cost_where_there_were_any(tmp_path: Path) -> None:
    text = show(lost_and_waiting(tmp_path))
    assert "kills (est.)  1.39 Wh (1.39 Wh to 4.17 Wh), in no sum" in text
    quiet = show(account(written(tmp_path / "quiet", [row(1, 1.0)], [START])))
    assert "kills" not in quiet
