"""What pausing saved, against figures computed by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from bessemer.cli.energy_tables import account as told_account
from bessemer.energy.accounting.account import account
from bessemer.energy.accounting.ledger import StageLedger
from bessemer.energy.accounting.readings import ENERGY_COLUMNS
from bessemer.energy.accounting.savings import saved_by_pauses, without_pauses
from bessemer.energy.grid.hourly import Hourly, Span, hour_of
from bessemer.energy.quantity import Quantity

TEN = hour_of("2026-11-28T10:00Z")
TEN_S = 3600.0 * TEN


def row(
    step: int, hours_in_steps: float, kwh: float, attempt: int = 1, paused_kwh: float = 0.0
) -> dict[str, Any]:
    joules = 3.6e6 * kwh
    return {"attempt": attempt, "step": step, "tokens": 1000 * step, "time_s": 3600.0 * hours_in_steps,
            "loss": 2.0, "tokens_per_s": 1.0, "step_time_s": 1800.0, "energy_j": joules,
            "energy_low_j": 0.9 * joules, "energy_high_j": 1.1 * joules, "energy_basis": "measured",
            "energy_phases_j": {"paused": 3.6e6 * paused_kwh}}  # fmt: skip


def event(kind: str, at: float, step: int, attempt: int = 1, **details: Any) -> dict[str, Any]:
    """at: hour of that day."""
    return {"time": TEN_S + 3600.0 * (at - 10), "attempt": attempt, "kind": kind, "step": step, **details}


# Half an hour at 1 kW from ten o'clock on; an hour and a half of nothing at 100 W; half an hour at 1 kW.
ROWS = [row(1, 0.5, 0.5), row(2, 1.0, 1.15, paused_kwh=0.15)]
EVENTS = [
    event("start", 10.0, 0),
    event("pause", 10.5, 1, reason="dirty", until=None),
    event("resume_after_pause", 12.0, 1, seconds=5400.0, joules=0.15 * 3.6e6),
]
HOURS = Hourly({TEN: 500.0, TEN + 1: 600.0, TEN + 2: 100.0})


def saved(
    rows: list[dict[str, Any]],
    events: list[dict[str, Any]],
    hours: Hourly | None = HOURS,
    pue: float = 1.0,
) -> dict[str, Any]:
    ledger = StageLedger(rows, events)
    told = saved_by_pauses([(ledger, ledger.energy.times(pue / 3.6e6))], hours)
    assert told is not None
    return told


def values(told: dict[str, Any]) -> tuple[float | None, ...]:
    return tuple(told[name]["value"] for name in ("kg_co2e", "kg_co2e_without", "kg_co2e_saved"))


def test_carbon_as_it_was_and_as_it_would_have_been() -> None:
    """Was: 0.5 kWh at 500 g, 0.05 at 500, 0.1 at 600, 0.5 at 100; would have been: a kWh at 500."""
    told = saved(ROWS, EVENTS)
    assert values(told) == pytest.approx((0.25 + 0.025 + 0.06 + 0.05, 0.5, 0.115))
    assert (told["count"], told["hours"], told["joules"]) == (1, 1.5, 0.15 * 3.6e6)
    assert values(saved(ROWS, EVENTS, pue=1.5)) == pytest.approx((0.5775, 0.75, 0.1725))


def test_the_difference_is_off_by_as_large_a_share_as_what_it_is_of() -> None:
    """Meter 10 %, grid 10 %: the same in both, so that 0.115 lies between 0.81 and 1.21 times that."""
    told = saved(ROWS, EVENTS)["kg_co2e_saved"]
    assert (told["low"], told["high"]) == pytest.approx((0.115 * 0.81, 0.115 * 1.21))
    assert told["basis"] == "modelled"


def test_pause_that_costs_more_than_it_saves_is_told_as_such() -> None:
    """The grid does not get cleaner, and the devices draw on: 0.15 kWh at 500 g."""
    told = saved(ROWS, EVENTS, Hourly(dict.fromkeys(range(TEN, TEN + 3), 500.0)))
    assert values(told) == pytest.approx((0.575, 0.5, -0.075))
    assert told["kg_co2e_saved"]["low"] < -0.075 < told["kg_co2e_saved"]["high"] < 0.0


def test_hour_that_is_not_covered_makes_all_of_it_unknown() -> None:
    told = saved(ROWS, EVENTS, Hourly({TEN: 500.0, TEN + 2: 100.0}))  # of the pause alone
    assert values(told) == (None, None, None) and "covers 91% of the energy" in told["unknown_because"]
    told = saved(ROWS, EVENTS, None)
    assert values(told) == (None, None, None) and "no hourly" in told["unknown_because"]
    assert told["hours"] == 1.5 and told["joules"] == 0.15 * 3.6e6  # these are known


def test_work_that_would_have_been_done_in_an_hour_without_a_figure_is_unknown() -> None:
    events = [EVENTS[0], EVENTS[1], event("resume_after_pause", 13.0, 1, seconds=9000.0, joules=0.0)]
    rows = [ROWS[0], row(2, 1.5, 1.5)]
    covered = {TEN: 500.0, TEN + 2: 1.0, TEN + 3: 100.0}
    assert values(saved(rows, events, Hourly(covered))) == (None, None, None)
    told = saved(rows, events, Hourly(covered | {TEN + 1: 600.0}))  # half of the last hour's work in each
    assert values(told) == pytest.approx((0.25 + 0.1, 0.25 + 0.25 + 0.3, 0.45))


def test_stretches_follow_without_gaps_in_each_attempt() -> None:
    spans = [Span(0, 10, 1.0), Span(10, 50, 2.0, is_pause=True), Span(50, 55, 3.0),
             Span(55, 65, 4.0, is_pause=True), Span(65, 70, 5.0)]  # fmt: skip
    assert without_pauses(spans) == [Span(0, 10, 1.0), Span(10, 15, 3.0), Span(15, 20, 5.0)]
    rows = [*ROWS, row(3, 1.5, 1.65, attempt=2, paused_kwh=0.15)]
    events = [*EVENTS, event("resume", 20.0, 2, attempt=2)]
    attempts = StageLedger(rows, events).spans_by_attempt()
    assert attempts is not None and [len(spans) for spans in attempts] == [3, 1]
    assert attempts[1] == [Span(TEN_S + 36000, TEN_S + 37800, pytest.approx(0.5 * 3.6e6))]
    assert [span.is_pause for span in attempts[0]] == [False, True, False]
    assert StageLedger(rows, events).between_attempts_s == pytest.approx(7.5 * 3600)


def test_pause_before_the_first_step_and_one_that_a_signal_ended_count() -> None:
    ended = dict.fromkeys(ENERGY_COLUMNS) | row(1, 0.5, 0.8, paused_kwh=0.3)
    ended = {name: ended[name] for name in ENERGY_COLUMNS}
    events = [
        event("start", 10.0, 0),
        event("pause", 10.0, 0),
        event("resume_after_pause", 11.0, 0, seconds=3600.0, joules=0.1 * 3.6e6),
        event("pause", 11.5, 1),
        event("grid", 12.0, 1, hour="2026-11-28T12:00Z", g_per_kwh=100.0),
        event("stop_in_pause", 12.5, 1, seconds=3600.0, joules=0.2 * 3.6e6),
        event("stop", 12.5, 1, **ended),
    ]
    ledger = StageLedger([row(1, 0.5, 0.6, paused_kwh=0.1)], events)
    assert [(pause.step, pause.end_s - pause.begin_s) for pause in ledger.pauses] == [
        (0, 3600.0),
        (1, 3600.0),
    ]
    assert ledger.held_hours == 2.5 and ledger.hours == 0.5
    told = saved(ledger.rows, events)
    # 0.1 kWh at 500, 0.5 at 600, the last pause's 0.2 half at 600 and half at 100; or 0.5 at 500.
    assert values(told) == pytest.approx((0.05 + 0.3 + 0.06 + 0.01, 0.25, -0.17))


def test_attempt_that_only_paused_has_cost_what_it_drew() -> None:
    ended = dict.fromkeys(ENERGY_COLUMNS) | row(1, 0.0, 0.2, paused_kwh=0.2)
    ended = {name: ended[name] for name in ENERGY_COLUMNS}
    events = [EVENTS[0], event("pause", 10.0, 0), event("stop_in_pause", 11.0, 0, joules=0.2 * 3.6e6)]
    told = saved([], [*events, event("stop", 11.0, 0, **ended)])
    assert values(told) == pytest.approx((0.1, 0.0, -0.1)) and told["joules"] == 0.2 * 3.6e6


def test_pause_in_which_it_was_killed_lasts_until_it_was_heard_last() -> None:
    events = [*EVENTS[:2], event("grid", 11.0, 1), event("resume", 15.0, 1, attempt=2)]
    (pause,) = StageLedger(ROWS[:1], events).pauses
    assert (pause.end_s - pause.begin_s, pause.ended_by) == (1800.0, "")


def write(folder: Path, recipe: str, events: list[dict[str, Any]]) -> Path:
    stage = folder / "run/pretrain"
    stage.mkdir(parents=True)
    for name, rows in (("metrics", ROWS), ("events", events)):
        (stage / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    (folder / "run/recipe.toml").write_text(f'name = "run"\n{recipe}\n')
    (folder / "run/receipt.json").write_text(json.dumps({"recipe_folder": str(folder)}))
    return folder / "run"


def grid_events() -> list[dict[str, Any]]:
    return [event("grid", hour, 1, hour=f"2026-11-28T{hour}:00Z", g_per_kwh=HOURS.grams[TEN + hour - 10])
            for hour in (10, 11, 12)]  # fmt: skip


def test_account_has_it_with_the_hours_that_the_run_saw(tmp_path: Path) -> None:
    run = write(tmp_path, '[energy]\nintensity = "hours.csv"\npause_above_g_per_kwh = 400.0',
                sorted([*EVENTS, *grid_events()], key=lambda each: each["time"]))  # fmt: skip
    document = account(run)
    assert values(document["pauses"]) == pytest.approx((0.385, 0.5, 0.115))
    assert document["stages"]["pretrain"]["kg_co2e"] == pytest.approx(0.385)
    line = "pauses    1, 1h30m in all, in which it drew 150 Wh; 385 g CO2e instead of 500 g: saved 115 g ("
    assert line in told_account(document)


def test_account_takes_hours_that_the_run_did_not_see_from_the_recipes_file(tmp_path: Path) -> None:
    run = write(tmp_path, '[energy]\nintensity = "hours.csv"', [*EVENTS, *grid_events()[:1]])
    (tmp_path / "hours.csv").write_text(
        "time,g_per_kwh\n2026-11-28T10:00Z,1\n2026-11-28T11:00Z,600\n2026-11-28T12:00Z,100\n"
    )
    assert account(run)["stages"]["pretrain"]["kg_co2e"] == pytest.approx(0.385)
    (tmp_path / "hours.csv").write_text("time,g_per_kwh\n")  # being written
    told = account(run)
    assert told["stages"]["pretrain"]["kg_co2e"] is None
    assert "covers" in told["pauses"]["unknown_because"]


def test_what_was_drawn_in_a_pause_is_unknown_where_the_rows_do_not_tell_it_apart() -> None:
    """A run that began before rows had phases, and paused in a later attempt."""
    told = saved([{**each, "energy_phases_j": None} for each in ROWS], EVENTS)
    assert values(told) == (None, None, None) and told["joules"] is None
    assert (told["count"], told["hours"]) == (1, 1.5)


def test_unknown_energy_makes_all_of_it_unknown() -> None:
    unknown = Quantity(None, None, None, "assumed")
    told = saved_by_pauses([(StageLedger(ROWS, EVENTS), unknown)], HOURS)
    assert told is not None and values(told) == (None, None, None)
    assert saved_by_pauses([(StageLedger(ROWS, EVENTS[:1]), unknown)], HOURS) is None
