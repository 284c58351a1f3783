"""Predictions graded: each quantity against what the run's own files say, in the page and as JSON."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from bessemer.cli.report import run as report_command
from bessemer.energy.accounting.account import account
from bessemer.report.build import write_report
from bessemer.report.grades import QUANTITIES, Grade, grades
from bessemer.report.planned import _verdict as verdict_of
from bessemer.report.record import read_run, read_stage


def graded(run: Path) -> dict[str, Grade]:
    return {grade.quantity: grade for grade in grades(read_run(run))}


def change_plan(run: Path, **predicted: Any) -> None:
    plan = json.loads((run / "plan.json").read_text())
    for name, value in predicted.items():
        band = {"value": value, "low": 0.9 * value, "high": 1.1 * value, "basis": "assumed"}
        plan["predicted"][name] = band
    plan["pretrain"] = {"steps": 2000}
    (run / "plan.json").write_text(json.dumps(plan))


@pytest.mark.parametrize(
    ("measured", "told"), [(25.0, "75% below the band"), (300.0, "150% above the band"), (110.0, "inside")]
)
def test_a_verdict_is_a_share_of_the_bands_nearer_end(measured: float, told: str) -> None:
    inside = 100.0 <= measured <= 120.0
    grade = Grade("mfu", "MFU", "", 110.0, 100.0, 120.0, "modelled", measured, None, inside)
    assert told in str(verdict_of(grade))


def test_a_grade_has_error_and_verdict_of_predicted_and_measured(made_run: Path) -> None:
    found = graded(made_run)
    step = found["step_time_s"]
    assert step.predicted == 2.2 and step.measured == pytest.approx(2.4, rel=0.01) and step.inside is True
    assert step.error == pytest.approx(2.2 / step.measured - 1) and step.error < 0
    memory = found["memory_gib"]
    assert memory.measured == pytest.approx(5_209_000_000 / 2**30) and memory.inside is False
    assert memory.beyond == pytest.approx(memory.measured / memory.high - 1)
    assert found["kwh"].predicted is None and found["kwh"].inside is None and found["kwh"].measured
    assert "usd" not in found and found.keys() <= QUANTITIES.keys()


def test_a_part_of_a_run_is_graded_for_the_steps_that_were_made(made_run: Path) -> None:
    change_plan(made_run, hours=1.3, device_hours=10.4)
    found = graded(made_run)
    assert found["hours"].predicted == pytest.approx(0.65) and found["step_time_s"].predicted == 2.2
    hours = found["hours"].measured
    assert hours == pytest.approx(2400 / 3600, rel=0.01) and found["hours"].inside is True
    assert found["device_hours"].measured == pytest.approx(8 * hours)  # eight devices
    write_report(made_run)
    assert "for the 50% of its steps that were made" in (made_run / "report.html").read_text()


def in_two_layouts(run: Path) -> None:
    """The second attempt goes on after step 450 on two ranks, in half the time and with half the memory."""
    plan = json.loads((run / "plan.json").read_text())
    plan["pretrain"]["layout"] = {"replicate": 2}
    (run / "plan.json").write_text(json.dumps(plan))
    path = run / "pretrain/metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    second = [row for row in rows if row["attempt"] == 2]
    for row in second:
        faster = {key: row[key] / 2 for key in ("step_time_s", "memory_bytes")}
        row |= {**faster, "tokens_per_s": 2 * row["tokens_per_s"], "layout": "replicate=2"}
    for row in second[:5]:  # the first steps of an attempt are not its pace
        row["step_time_s"] = 1.3
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_new_layouts_plan_is_compared_with_the_steps_made_in_it(made_run: Path) -> None:
    change_plan(made_run, step_time_s=1.2, hours=2000 * 1.2 / 3600, kwh=1.0, goodput=0.9)
    in_two_layouts(made_run)
    found = graded(made_run)
    assert found["step_time_s"].measured == pytest.approx(1.2, rel=0.002) and found["step_time_s"].inside
    assert found["tokens_per_s"].measured == pytest.approx(2 * 6900, rel=0.01)
    assert found["memory_gib"].measured == pytest.approx(5_209_000_000 / 2 / 2**30)
    # Of its 2,000 steps 550 were made in this layout.
    assert found["hours"].predicted == pytest.approx(550 * 1.2 / 3600)
    assert found["hours"].measured == pytest.approx(550 * 1.2 / 3600, rel=0.01)
    for quantity in ("kwh", "goodput"):  # of all steps, in whatever layout
        assert found[quantity].predicted is None and found[quantity].measured
    write_report(made_run)
    page = (made_run / "report.html").read_text()
    assert "The layout changed after step 450: they are for the 28% of its steps" in page


def test_a_new_layouts_plan_is_not_graded_before_its_first_step(made_run: Path) -> None:
    change_plan(made_run, hours=1.0)
    plan = json.loads((made_run / "plan.json").read_text())
    plan["pretrain"]["layout"] = {"replicate": 4}
    (made_run / "plan.json").write_text(json.dumps(plan))
    assert grades(read_run(made_run)) == []


def test_energy_money_and_carbon_are_those_of_the_account_building_included(made_run: Path) -> None:
    kwh = 1.5 * 61.0 * 2400 / 3.6e6  # of the meter's joules, in a building with a PUE of 1.5
    change_plan(made_run, kwh=2 * kwh, kg_co2e=2 * kwh, usd=2.0)
    with (made_run / "recipe.toml").open("a") as recipe:
        recipe.write('[cluster]\npue = 1.5\nregion = "DEU"\nusd_per_device_hour = 3.0\n')
    found = graded(made_run)
    assert found["kwh"].measured == pytest.approx(kwh) and found["kwh"].error == pytest.approx(0.0)
    assert found["kg_co2e"].measured == pytest.approx(0.3441 * kwh, rel=0.01)
    assert found["kg_co2e"].inside is False
    assert found["usd"].measured == pytest.approx(3.0 * 2400 / 3600)
    told = account(made_run)["stages"]["pretrain"]
    assert found["kwh"].measured == told["kwh_facility"] and found["usd"].measured == told["usd"]


def goodput_of(run: Path) -> float | None:
    return graded(run)["goodput"].measured


def test_goodput_is_the_time_of_counting_steps_without_pauses_that_were_asked_for(made_run: Path) -> None:
    assert read_stage(made_run / "pretrain").time_in_steps_s == pytest.approx(2400, rel=0.01)
    assert goodput_of(made_run) == pytest.approx(1.0, abs=0.01)  # 2400 s from the first event to the last
    events = made_run / "pretrain/events.jsonl"
    rows = [json.loads(line) for line in events.read_text().splitlines()]
    rows[-1]["time"] += 2400
    events.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert goodput_of(made_run) == pytest.approx(0.5, abs=0.01)
    rows.insert(2, {"time": rows[1]["time"], "attempt": 1, "kind": "stop", "step": 450})
    rows[3:] = [{**row, "time": row["time"] + 10_000} for row in rows[3:]]
    events.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # The pause after the stop, 100 s of it from before, does not count.
    assert goodput_of(made_run) == pytest.approx(2400 / 4700, abs=0.01)


def test_the_page_and_the_json_have_every_grade(made_run: Path) -> None:
    change_plan(made_run, goodput=0.9)
    events = made_run / "pretrain/events.jsonl"
    told = {"time": 1.79e9 + 500, "attempt": 1, "kind": "deviation", "step": 100, "cause": "waiting for data"}
    events.write_text(events.read_text() + json.dumps(told) + "\n")
    document = report_command(argparse.Namespace(target=made_run))
    rows = {row["quantity"]: row for row in document["predictions"]}
    assert {"step_time_s", "tokens_per_s", "memory_gib", "mfu", "hours", "kwh", "goodput"} == rows.keys()
    assert rows["memory_gib"]["inside"] is False and rows["goodput"]["predicted"] == 0.9
    assert json.loads(json.dumps(document)) == document
    page = (made_run / "report.html").read_text()
    right = sum(row["inside"] is True for row in rows.values())
    graded_ = sum(row["inside"] is not None for row in rows.values())
    assert f"{right} of {graded_} predictions hold." in page and "last: waiting for data" in page
    assert "steps left the prediction once;" in page
    for row in rows.values():
        assert row["name"] in page


def test_a_run_without_a_plan_is_not_graded(made_run: Path) -> None:
    (made_run / "plan.json").unlink()
    assert grades(read_run(made_run)) == []
