"""When to pause for the grid. The clock is a number; files and programs are real."""

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from making_meters import Clock, program

from bessemer.energy.grid.hourly import hour_text
from bessemer.energy.grid.intensity import Command, HourlyFile
from bessemer.energy.grid.pausing import PauseRule, Pausing, Schedule, open_intensity, rule_of, time_text
from bessemer.errors import RecipeError
from bessemer.planner.resolve import check_recipe
from bessemer.recipe.schema import Energy, Recipe

MIDNIGHT_S = datetime(2026, 11, 28, tzinfo=UTC).timestamp()


def at(hour: float) -> float:
    return MIDNIGHT_S + 3600.0 * hour


def hours_file(folder: Path, grams: dict[int, float], name: str = "hours.csv") -> Path:
    """grams: by hour of that day."""
    rows = [f"{hour_text(int(at(hour)) // 3600)},{value}\n" for hour, value in grams.items()]
    path = folder / name
    path.write_text("time,g_per_kwh\n" + "".join(rows))
    return path


def pausing(folder: Path, grams: dict[int, float], **keys: object) -> Pausing:
    values = {"intensity": str(hours_file(folder, grams)), **keys}
    rule = rule_of(Energy.model_validate(values), folder)
    assert rule is not None
    return Pausing(rule, open_intensity(rule))


def test_between_the_two_thresholds_it_stays_as_it_is(tmp_path: Path) -> None:
    """300 pauses, 200 goes on; 250 is neither."""
    grams = {0: 250.0, 1: 301.0, 2: 250.0, 3: 200.0, 4: 250.0, 5: 300.0, 6: 300.5}
    grid = pausing(tmp_path, grams, pause_above_g_per_kwh=300.0, resume_below_g_per_kwh=200.0)
    paused = [grid.reason(at(hour + 0.5)) is not None for hour in grams]
    assert paused == [False, True, True, False, False, False, True]


def test_with_one_threshold_it_goes_on_at_that(tmp_path: Path) -> None:
    grid = pausing(tmp_path, {0: 300.0, 1: 300.1, 2: 300.0}, pause_above_g_per_kwh=300.0)
    assert [grid.reason(at(hour)) for hour in (0, 1, 2)] == [
        None, "the grid is at 300.1 g CO2e per kWh, above 300", None,
    ]  # fmt: skip


def test_until_is_the_first_hour_that_is_clean_enough_to_go_on(tmp_path: Path) -> None:
    grams = {0: 100.0, 1: 400.0, 2: 250.0, 3: 190.0, 4: 400.0}
    grid = pausing(tmp_path, grams, pause_above_g_per_kwh=300.0, resume_below_g_per_kwh=200.0)
    assert grid.reason(at(1.25)) is not None and grid.until(at(1.25)) == at(3)
    assert time_text(at(3)) == "2026-11-28T03:00Z"
    assert grid.until(at(3.5)) == at(3.5)  # now


def test_hour_that_is_not_covered_runs_and_ends_a_pause(tmp_path: Path) -> None:
    grid = pausing(tmp_path, {1: 400.0, 3: 400.0}, pause_above_g_per_kwh=300.0)
    assert [grid.reason(at(hour)) is not None for hour in (0, 1, 2, 3, 4)] == [
        False,
        True,
        False,
        True,
        False,
    ]
    assert grid.until(at(1.5)) == at(2) and grid.until(at(3.5)) == at(4)


def test_longest_pause_ends_it_and_the_next_one_comes_after_a_clean_hour(tmp_path: Path) -> None:
    grams = dict.fromkeys(range(10), 400.0) | {6: 100.0}
    grid = pausing(tmp_path, grams, pause_above_g_per_kwh=300.0, pause_most_hours=2.5)
    assert grid.reason(at(0)) is not None and grid.until(at(0)) == at(2.5)
    assert grid.reason(at(2.49)) is not None and not grid.has_waited
    assert grid.reason(at(2.5)) is None and grid.has_waited
    assert grid.reason(at(5.0)) is None  # dirty still
    assert grid.reason(at(6.0)) is None and not grid.has_waited
    assert grid.reason(at(7.0)) is not None and grid.until(at(7.0)) == at(9.5)


def test_hours_of_the_day_are_utc_and_may_cross_midnight() -> None:
    schedule = Schedule.of(["17:00-21:00", "22:30-06:00"])
    ends = {hour: schedule.ends(at(hour)) for hour in (5.99, 6.0, 16.99, 17.0, 20.99, 21.0, 22.5, 23.0)}
    assert ends == {
        5.99: at(6), 6.0: None, 16.99: None, 17.0: at(21), 20.99: at(21), 21.0: None, 22.5: at(30),
        23.0: at(30),
    }  # fmt: skip
    assert Schedule.of(["20:00-24:00"]).ends(at(23.5)) == at(24)


def test_hours_and_threshold_together_pause_for_either(tmp_path: Path) -> None:
    grid = pausing(
        tmp_path, {16: 400.0, 17: 100.0, 19: 100.0, 21: 500.0, 22: 100.0},
        pause_above_g_per_kwh=300.0, pause_hours=["17:00-21:00"],
    )  # fmt: skip
    assert grid.reason(at(16)) == "the grid is at 400 g CO2e per kWh, above 300"
    assert grid.until(at(16)) == at(22)  # 17 to 21 by the hours, 21 by the grid
    assert grid.reason(at(18)) == "pause hours 17:00-21:00 UTC"
    assert grid.reason(at(22)) is None


def test_file_that_changes_is_read_again(tmp_path: Path) -> None:
    hours = HourlyFile(hours_file(tmp_path, {0: 100.0}))
    assert hours.now(at(0.5)) == 100.0 and hours.now(at(1.5)) is None
    os.replace(hours_file(tmp_path, {0: 120.0, 1: 333.0}, "new.csv"), tmp_path / "hours.csv")
    assert (hours.now(at(0.5)), hours.now(at(1.5)), hours.news()) == (120.0, 333.0, [])


def test_bad_new_file_is_told_once_and_the_old_one_counts_on(tmp_path: Path) -> None:
    path = hours_file(tmp_path, {0: 100.0})
    hours = HourlyFile(path)
    for text in ("time,g_per_kwh\n2026-11-28T00:00Z,-5\n", None):
        path.write_text(text) if text else path.unlink()
        assert [hours.now(at(0.5)), hours.now(at(0.6))] == [100.0, 100.0]
        (told,) = hours.news()
        assert "the hours read before count on" in told and (
            "-5 g" in told if text else "No such file" in told
        )
        assert hours.news() == []
    hours_file(tmp_path, {0: 90.0})
    assert hours.now(at(0.5)) == 90.0 and hours.news() == []


def test_program_is_asked_every_five_minutes_and_its_last_answer_counts_for_an_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, answer, asked = Clock(monkeypatch), tmp_path / "answer", tmp_path / "asked"
    answer.write_text("412.5\n")
    words = [str(program(tmp_path, "grid", f"echo >> {asked}\ncat {answer} || exit 3"))]
    grid = Command(words)
    try:
        assert grid.now(at(0)) == 412.5 and grid.next_below(at(0), 300.0) is None
        answer.unlink()
        clock.passes(299.0)
        assert grid.now(at(0.083)) == 412.5 and len(asked.read_text().splitlines()) == 1
        clock.passes(2.0)
        grid.now(at(0.084))  # starts it, and does not wait
        grid._program._process.wait()  # type: ignore[union-attr]
        assert (grid.now(at(0.09)), grid.now(at(1.08))) == (412.5, 412.5)
        (told,) = grid.news()
        assert "told no intensity" in told and grid.news() == []
        assert grid.now(at(1.1)) is None and grid.next_below(at(1.1), 300.0) == at(
            1.1
        )  # unknown is not dirty
        answer.write_text("97\n")
        clock.passes(301.0)
        grid.now(at(1.2))
        grid._program._process.wait()  # type: ignore[union-attr]
        assert grid.now(at(1.21)) == 97.0 and len(asked.read_text().splitlines()) == 3
    finally:
        grid.close()


@pytest.mark.parametrize("answer", ["echo dirty", "echo 0", "echo 3 4", "echo 344100", "exit 1"])
def test_program_that_tells_no_intensity_is_an_error_with_what_it_said(tmp_path: Path, answer: str) -> None:
    with pytest.raises(RecipeError, match="tells no intensity") as caught:
        open_intensity(PauseRule(command=[str(program(tmp_path, "grid", answer))]))
    assert answer.removeprefix("echo ") in caught.value.found


FILE = {"intensity": "hours.csv"}


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({"pause_above_g_per_kwh": 300.0}, "no intensity"),
        ({**FILE, "resume_below_g_per_kwh": 300.0}, "alone"),
        ({**FILE, "pause_above_g_per_kwh": 300.0, "resume_below_g_per_kwh": 301.0}, "301.0"),
        ({**FILE, "intensity_command": ["grid"]}, "energy.intensity and energy.intensity_command"),
        ({"pause_most_hours": 2.0}, "nothing to pause for"),
        ({"pause_hours": ["06:00-18:00", "18:00-06:00"]}, "the whole day"),
        ({"pause_hours": ["00:00-24:00"]}, "the whole day"),
        ({"pause_hours": ["17-21"]}, '"17-21"'),
        ({"pause_hours": ["17:00-25:00"]}, '"17:00-25:00"'),
        ({"pause_hours": ["17:00-17:00"]}, '"17:00-17:00"'),
    ],
)
def test_contradictions_are_refused_by_every_verb_that_checks_a_recipe(
    keys: dict[str, object], found: str
) -> None:
    recipe = Recipe.model_validate({"name": "run", "energy": keys})
    with pytest.raises(RecipeError) as caught:
        check_recipe(recipe)
    assert found in caught.value.found


def test_nothing_configured_asks_nothing(tmp_path: Path) -> None:
    assert rule_of(Energy(), tmp_path) is None
    rule = rule_of(Energy.model_validate(FILE), tmp_path)
    assert rule is not None and not rule.pauses and rule.intensity == str(tmp_path / "hours.csv")
    assert PauseRule(**rule.to_json()) == rule
