"""What runs teach the next prediction, and what they do not. No torch."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from test_calibrated import FORMULA, PLAN, SHAPE, facts, laid

from bessemer.planner.calibrated import taught
from bessemer.planner.calibrated.step_time import modelled_basis, step_seconds, step_time
from bessemer.planner.calibrated.taught import note_run, step_key, stored_taught
from bessemer.planner.machine.facts import Facts
from bessemer.planner.plan import Estimate, StagePlan


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def learn(plan: StagePlan, ratio: float, *, hidden: int = 256, known: Facts | None = None) -> float:
    """A run of this plan took `ratio` of what the calibration says; returns what it took."""
    known = known or facts()
    shape = replace(SHAPE, hidden=hidden)
    found = step_seconds(shape, plan, known)
    assert found is not None
    key = step_key(shape, plan, "cpu", 2 if plan.layout.world == 1 else 1)
    note_run("a CPU", key, ratio * found.value, found.value, modelled_basis(found, known), 20)
    return ratio * found.value


def predicted(plan: StagePlan, hidden: int = 256, known: Facts | None = None) -> Estimate:
    known = replace(known or facts(), taught=stored_taught("a CPU"))
    return step_time(replace(SHAPE, hidden=hidden), plan, known, FORMULA).best


def ratio_of(plan: StagePlan, hidden: int = 256) -> float:
    """Of the prediction to that of the calibration alone."""
    found, value = step_seconds(replace(SHAPE, hidden=hidden), plan, facts()), predicted(plan, hidden).value
    assert found is not None and value is not None
    return value / found.value


def test_the_same_step_is_predicted_as_it_was_measured() -> None:
    took = learn(PLAN, 1.4)
    found = predicted(PLAN)
    assert found.basis == "measured" and found.value == pytest.approx(took)
    assert found.low is not None and found.high is not None and found.low < took < found.high
    learn(PLAN, 1.5), learn(PLAN, 1.44)
    assert ratio_of(PLAN) == pytest.approx(1.44)  # the middle of the newest three


def test_where_compiling_is_left_open_the_run_that_was_made_decides() -> None:
    took = learn(PLAN, 1.4)
    found = predicted(replace(PLAN, compile="auto"))
    assert found.basis == "measured" and found.value == pytest.approx(took)


def test_a_device_without_a_calibration_learns_too() -> None:
    known = replace(facts(), calibration=None)
    note_run("a CPU", step_key(SHAPE, PLAN, "cpu", 2), 7.0, 9.0, "no calibration", 20)
    assert predicted(PLAN, known=known).value == 7.0
    longer = replace(PLAN, batch_rows=32)
    assert predicted(longer, known=known).value == pytest.approx(9.0 * 7.0 / 9.0)


def test_other_widths_learn_less_the_further_they_are_away_and_between_two_a_mean() -> None:
    learn(PLAN, 1.4)
    near, far = ratio_of(PLAN, 384), ratio_of(PLAN, 2048)
    assert 1.0 < far < near < 1.4
    learn(PLAN, 1.0, hidden=1024)
    assert ratio_of(PLAN, 512) == pytest.approx(1.4**0.5)
    assert predicted(PLAN, 512).basis == "modelled"


def test_another_way_of_computing_learns_nothing() -> None:
    learn(PLAN, 1.4)
    for other in (laid("tensor=2"), laid("replicate=2"), replace(PLAN, compile=True)):
        assert ratio_of(other) == pytest.approx(1.0)
    learn(laid("tensor=2"), 1.2)
    assert ratio_of(laid("tensor=2")) == pytest.approx(1.2) and ratio_of(laid("pipeline=2")) == pytest.approx(
        1.0
    )


def test_another_stack_or_calibration_ignores_what_was_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    learn(PLAN, 1.4)
    wider = replace(PLAN, batch_rows=32)
    assert ratio_of(wider) == pytest.approx(1.4)
    calibration = facts().calibration
    assert calibration is not None
    newer = facts(replace(calibration, date="2026-02-02"))
    alone = step_seconds(SHAPE, wider, newer)
    assert alone is not None and predicted(wider, known=newer).value == alone.value
    assert predicted(PLAN, known=newer).basis == "measured"  # a step that was timed is what it is
    for name, value in (("installed_torch", lambda: "3.0"), ("__version__", "9.9")):
        with monkeypatch.context() as patch:
            patch.setattr(taught, name, value)
            assert stored_taught("a CPU").rows == ()


def test_what_is_only_planned_for_learns_nothing() -> None:
    learn(PLAN, 1.4)
    planned = replace(facts(), ceilings=None, calibration=None, taught=stored_taught("a CPU"))
    assert step_time(SHAPE, PLAN, planned, FORMULA).best == FORMULA


def test_a_damaged_file_is_nothing_learnt(tmp_path: Path) -> None:
    learn(PLAN, 1.4)
    (path,) = (tmp_path / "bessemer").glob("steps-*.json")
    path.write_text(path.read_text().replace('"way"', '"wy"'))
    assert stored_taught("a CPU").rows == ()
    learn(PLAN, 1.3)
    assert ratio_of(PLAN) == pytest.approx(1.3)


def test_runs_that_end_together_all_count() -> None:
    key = step_key(SHAPE, PLAN, "cpu", 2)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: note_run("a CPU", key, 1.0 + number, 1.0, "b", 20), range(24)))
    assert sorted(row.measured_s for row in stored_taught("a CPU").rows) == [1.0 + n for n in range(24)]
