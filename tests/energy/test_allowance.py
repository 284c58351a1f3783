"""What a run has drawn of its budget, against closed forms and against the account."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from bessemer.energy.accounting.account import account
from bessemer.energy.accounting.allowance import Allowance, allowance_of
from bessemer.energy.accounting.limits import limits_of
from bessemer.energy.accounting.place import place_of
from bessemer.energy.grid.hourly import hour_text
from bessemer.errors import RefusedError
from bessemer.rundir import Row

BEGAN_S = 1_795_860_000.0
ALL = "[budget]\nhours = 1e6\ndevice_hours = 1e6\nusd = 1e6\nkwh = 1e6\nkg_co2e = 1e6\n"
PLACE = '[cluster]\npue = 1.2\nregion = "DEU"\nusd_per_device_hour = 2.0\n'


def row(step: int, watts: float, *, attempt: int = 1, step_s: float = 10.0, **more: Any) -> Row:
    """Of a stage that has drawn `watts` from its beginning on."""
    joules = watts * step_s * step
    return {"attempt": attempt, "step": step, "tokens": 1000 * step, "time_s": step_s * step, "loss": 2.0,
            "step_time_s": step_s, "tokens_per_s": 100.0, "power_w": watts, "energy_j": joules,
            "energy_low_j": 0.9 * joules, "energy_high_j": 1.1 * joules, "energy_basis": "measured",
            **more}  # fmt: skip


def lost_meter(step: int, **more: Any) -> Row:
    return row(step, 0.0, **more) | {
        "power_w": None, "energy_j": None, "energy_low_j": None, "energy_high_j": None,
        "energy_basis": "assumed"}  # fmt: skip


def write_stage(
    run: Path, rows: list[Row], name: str = "pretrain", layout: dict[str, int] | None = None
) -> Path:
    stage = run / name
    stage.mkdir(parents=True, exist_ok=True)
    (stage / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    begins = {each["attempt"]: each for each in reversed(rows)}
    events = [
        {"time": BEGAN_S + 1000 * attempt, "attempt": attempt, "kind": "start", "step": 0}
        for attempt in sorted(begins)
    ]
    (stage / "events.jsonl").write_text("".join(json.dumps(each) + "\n" for each in events))
    (stage / "stage.json").write_text(json.dumps({"plan": {"layout": layout or {}}}))
    return stage


def write_run(folder: Path, recipe: str, *, gpus: int = 0) -> Path:
    run = folder / "run"
    run.mkdir()
    (run / "recipe.toml").write_text(f'name = "run"\n{recipe}')
    device = {"name": "H100-SXM-80GB" if gpus else "Abacus", "kind": "gpu" if gpus else "cpu"}
    (run / "receipt.json").write_text(json.dumps({"device": device}))
    return run


def begun(run: Path, stage: str = "pretrain") -> Allowance:
    found = allowance_of(run / stage)
    assert found is not None
    return found


def told(allowance: Allowance) -> dict[str, float | None]:
    return {name: allowance.spent(name).value for name in allowance.limits}


def test_each_limit_counts_hours_watts_pue_region_and_price(tmp_path: Path) -> None:
    run = write_run(tmp_path, ALL + PLACE)
    write_stage(run, [])
    allowance = begun(run)
    assert told(allowance) == dict.fromkeys(limits_of(place_of(run, None, None, None).recipe), 0.0)
    for step in range(1, 361):  # an hour at 3 kW
        allowance.row(row(step, 3000.0))
    expected = {"hours": 1.0, "device_hours": 1.0, "usd": 2.0, "kwh": 3.6, "kg_co2e": 3.6 * 0.3441}
    assert told(allowance) == pytest.approx(expected, rel=0.001)


def test_around_accelerators_the_node_counts_and_own_machines_pay_by_the_kilowatt_hour(
    tmp_path: Path,
) -> None:
    tariff = "[energy]\ntariff_usd_per_kwh = 0.5\namortisation_usd_per_device_hour = 1.0\n"
    run = write_run(tmp_path, ALL + tariff + '[cluster]\npue = 2.0\nregion = "DEU"\n', gpus=8)
    write_stage(run, [], layout={"shard": 8})
    allowance = begun(run)
    for step in range(1, 361):
        allowance.row(row(step, 5000.0))
    kwh = 2.0 * (5.0 + 8 * 0.250)  # as the catalogue has the node around an H100
    assert told(allowance)["kwh"] == pytest.approx(kwh)
    assert told(allowance)["usd"] == pytest.approx(0.5 * kwh + 8 * 1.0)
    assert told(allowance)["device_hours"] == pytest.approx(8.0)


def test_it_counts_what_the_account_counts_over_stages_restarts_and_a_days_rows(tmp_path: Path) -> None:
    """A day of steps in two attempts, one with a meter of the whole node; and another stage before."""
    run = write_run(tmp_path, ALL + PLACE, gpus=8)
    write_stage(run, [row(step, 4000.0) for step in range(1, 100)], "first", {"shard": 8})
    rows, node_j, whole_j = [], 0.0, 0.0
    for number in range(1, 2161):
        second = number > 750
        whole_j += 40.0 * (7000.0 if second else 5000.0 + 10 * (number % 7))
        node_j += 280_000.0 * second
        parts = {"cpu": {"value": 12_000.0 * number, "by_basis": {}}}
        if second:
            parts["node"] = {"value": node_j, "by_basis": {}}
        rows.append(
            row(number - 20 * second, 1.0, attempt=1 + second)
            | {"time_s": 40.0 * number, "energy_j": whole_j, "energy_low_j": whole_j,
               "energy_high_j": whole_j,
               "energy_parts_j": parts}
        )  # fmt: skip
    write_stage(run, rows[:100], layout={"shard": 8})
    going = begun(run)
    for each in rows[100:]:
        if each["attempt"] == 2 and each["time_s"] == 30_040.0:
            going.event({"time": BEGAN_S + 2000, "attempt": 2, "kind": "resume", "step": 730})
        going.row(each)
    write_stage(run, rows, layout={"shard": 8})
    read = begun(run)
    whole = account(run)["total"]
    assert told(going) == pytest.approx(told(read))
    for name, key in (("kwh", "kwh_facility"), ("kg_co2e", "kg_co2e"), ("usd", "usd")):
        assert told(going)[name] == pytest.approx(whole[key]["value"], rel=1e-9)
        assert going.spent(name).high == pytest.approx(whole[key]["high"], rel=1e-9)
    assert told(going)["hours"] == pytest.approx((86_400 + 990) / 3600)


@pytest.mark.parametrize("every", [1, 7])
def test_it_stops_one_interval_before_the_limit_and_never_after(tmp_path: Path, every: int) -> None:
    run = write_run(tmp_path, "[budget]\nkwh = 0.1\n")  # 360 kJ: 36 steps of 10 s at 1 kW
    write_stage(run, [])
    allowance = begun(run)
    for step in range(every, 100, every):
        allowance.row(row(step, 1000.0))
        if allowance.reached(every) is not None:
            break
    spent = allowance.spent("kwh").value
    assert spent is not None and 0.1 - every / 360 - 1e-9 <= spent <= 0.1
    assert step == 36 - 36 % every


def test_error_tells_limit_spent_what_is_left_and_a_budget_that_suffices(tmp_path: Path) -> None:
    run = write_run(tmp_path, "[budget]\nkwh = 0.1\nhours = 0.11\n")
    write_stage(run, [row(step, 500.0) for step in range(1, 40)], "first")  # 195 kJ, 390 s
    write_stage(run, [])
    allowance = begun(run)
    for step in range(1, 13):
        allowance.row(row(step, 1000.0))
    error = allowance.stopped("kwh", 12, 40)
    assert error.exit_code == 75 and "at step 12 of 40, and saved" in error.problem
    assert "budget.kwh = 0.1, of which 0.0875 kWh are spent, 0.0542 of them in other stages" in error.found
    assert "0.0778 kWh (0.0778 to 0.0778) more for the 28 steps that are left" in error.wanted
    raised = dict(word.split("=") for word in error.fix.split() if word.startswith("budget."))
    assert set(raised) == {"budget.kwh", "budget.hours"}
    # What is spent, the 28 steps, and once more what the attempt took until its first row.
    assert 0.0875 + 29 / 360 <= float(raised["budget.kwh"]) <= 0.0875 + 29 / 360 + 0.002
    assert float(raised["budget.hours"]) >= (390 + 120 + 290) / 3600


def test_energy_goes_on_at_the_last_known_power_when_the_meter_is_lost(tmp_path: Path) -> None:
    run = write_run(tmp_path, "[budget]\nkwh = 1.0\n")
    rows = [row(step, 1000.0) for step in range(1, 11)] + [lost_meter(step) for step in range(11, 21)]
    write_stage(run, [])
    allowance = begun(run)
    for each in rows:
        assert allowance.bridged_w is None or each["step"] > 11
        allowance.row(each)
    write_stage(run, rows)
    for found in (allowance, begun(run)):  # also when it is read again
        spent = found.spent("kwh")
        assert spent.value == pytest.approx(200 * 1000.0 / 3.6e6) and spent.basis == "assumed"
        assert spent.low == pytest.approx((0.9 * 100 + 0.75 * 100) * 1000.0 / 3.6e6)
        assert found.bridged_w == 1000.0
    (run / "recipe.toml").write_text('name = "run"\n[budget]\nhours = 1.0\n')
    assert begun(run).bridged_w is None  # no limit counts energy


def stopped_at(stage: Path, **event: Any) -> None:
    with (stage / "events.jsonl").open("a") as events:
        events.write(json.dumps({"time": BEGAN_S, "attempt": 1, "kind": "budget", **event}) + "\n")


def test_stage_that_stopped_at_a_limit_goes_on_only_where_it_is_higher(tmp_path: Path) -> None:
    run = write_run(tmp_path, "[budget]\nkwh = 0.1\n")
    stage = write_stage(run, [row(step, 1000.0) for step in range(1, 36)])
    begun(run).check_goes_on(1)
    stopped_at(stage, name="kwh", spent=begun(run).spent("kwh").value, limit=0.1)
    with pytest.raises(RefusedError, match=r"budget\.kwh is used up") as caught:
        begun(run).check_goes_on(1)
    assert caught.value.exit_code == 3 and "0.0972 kWh are spent" in caught.value.found
    (run / "recipe.toml").write_text('name = "run"\n[budget]\nkwh = 0.101\n')
    begun(run).check_goes_on(1)
    with pytest.raises(RefusedError, match="what is left does not fit"):
        begun(run).check_goes_on(5)  # by its own pace
    (run / "recipe.toml").write_text('name = "run"\n[budget]\nkwh = 0.1\n[cluster]\npue = 2.0\n')
    with pytest.raises(RefusedError):
        begun(run).check_goes_on(1)
    (run / "recipe.toml").write_text('name = "run"\n[budget]\nhours = 1.0\n')
    begun(run).check_goes_on(1)


@pytest.mark.parametrize(
    ("recipe", "told_fix"),
    [
        ("[budget]\nkg_co2e = 1.0\n", "energy.region"),
        ("[budget]\nusd = 1.0\n", "cluster.usd_per_device_hour"),
    ],
)
def test_limit_that_nothing_can_be_counted_of_is_refused_with_the_fix(
    tmp_path: Path, recipe: str, told_fix: str
) -> None:
    run = write_run(tmp_path, recipe)
    write_stage(run, [])
    with pytest.raises(RefusedError, match="cannot be watched") as caught:
        begun(run).check_watchable()
    assert told_fix in caught.value.fix
    (run / "recipe.toml").write_text(f'name = "run"\n{recipe}{PLACE}')
    begun(run).check_watchable()


def test_stage_whose_energy_nobody_knows_cannot_be_budgeted(tmp_path: Path) -> None:
    run = write_run(tmp_path, "[budget]\nkwh = 1.0\n")
    write_stage(run, [lost_meter(1)], "first")
    write_stage(run, [])
    with pytest.raises(RefusedError, match="cannot be watched"):
        begun(run).check_watchable()


def test_settings_of_the_fix_are_toml(tmp_path: Path) -> None:
    run = write_run(tmp_path, "[budget]\nkwh = 1e-6\n")
    write_stage(run, [row(1, 1.0), row(2, 1.0)])
    fix = begun(run).stopped("kwh", 2, 10).fix
    setting = next(word for word in fix.split() if word.startswith("budget."))
    assert tomllib.loads(setting)["budget"]["kwh"] > 2 * 10 / 3.6e6


def test_pauses_count_as_hours_and_are_no_pace(tmp_path: Path) -> None:
    run = write_run(tmp_path, "[budget]\nhours = 2.2\n")
    stage = write_stage(run, [row(step, 100.0) for step in range(1, 21)])
    went_on = {"time": BEGAN_S + 8400, "attempt": 1, "kind": "resume_after_pause", "step": 20}
    paused = {"time": BEGAN_S + 1200, "attempt": 1, "kind": "pause", "step": 20}
    going = begun(run)
    for event in (paused, went_on):
        going.event(event)
    with (stage / "events.jsonl").open("a") as events:
        events.write(json.dumps(paused) + "\n" + json.dumps(went_on) + "\n")
    for found in (going, begun(run)):
        found.row(row(21, 100.0))
        assert told(found)["hours"] == pytest.approx(2.0 + 210 / 3600)
        assert found.reached(1) is None and found.reached(1100) == "hours"
        left = found.left(100)["hours"]
        assert [left.value, left.high] == pytest.approx([1000 / 3600] * 2)
        raised = found.stopped("hours", 20, 120).fix.split("budget.hours=")[1].split()[0]
        assert float(raised) == pytest.approx(2.34)  # the pause is spent already, and not to come again


def test_what_a_pause_draws_is_spent_and_no_pace_also_when_it_is_read_again(tmp_path: Path) -> None:
    run = write_run(tmp_path, "[budget]\nhours = 1e3\nkwh = 0.111\n")  # 400 kJ
    stage = write_stage(run, [])
    paused = {"time": BEGAN_S + 1200, "attempt": 1, "kind": "pause", "step": 20}
    went_on = {"time": BEGAN_S + 8400, "attempt": 1, "kind": "resume_after_pause", "step": 20}
    drawn = dict.fromkeys(("energy_j", "energy_low_j", "energy_high_j"), 360_000.0)
    rows = [row(step, 0.1) for step in range(1, 201)]
    rows[20:] = [each | {name: each[name] + more for name, more in drawn.items()} for each in rows[20:]]
    going = begun(run)
    for each in rows[:20]:
        going.row(each)
    for event in (paused, went_on):
        going.event(event)
    for each in rows[20:]:
        going.row(each)
        assert going.reached(1) is None, each["step"]
    write_stage(run, rows)
    with (stage / "events.jsonl").open("a") as events:
        events.write(json.dumps(paused) + "\n" + json.dumps(went_on) + "\n")
    for found in (going, begun(run)):
        assert told(found) == pytest.approx({"hours": 2.0 + 2000 / 3600, "kwh": 360_200 / 3.6e6})
        left = found.left(100)
        assert left["kwh"].value == pytest.approx(100 / 3.6e6)
        assert left["hours"].value == pytest.approx(1000 / 3600)


def test_carbon_counts_by_the_hours_that_are_told_while_it_goes(tmp_path: Path) -> None:
    run = write_run(tmp_path, '[budget]\nkg_co2e = 10.0\n[cluster]\nregion = "DEU"\n')
    stage = write_stage(run, [])
    rows = [row(step, 3000.0, step_s=60.0) for step in range(1, 121)]
    write_stage(run, rows[:1])
    grid = [
        {"attempt": 1, "kind": "grid", "step": 60 * number, "hour": hour_text(int(BEGAN_S // 3600) + number),
         "g_per_kwh": grams}
        for number, grams in enumerate((50.0, 900.0, 100.0, 100.0))
    ]  # fmt: skip
    going = begun(run)
    for event in grid:
        going.event(event)
    for each in rows[1:]:
        going.row(each)
    write_stage(run, rows)
    with (stage / "events.jsonl").open("a") as events:
        events.writelines(json.dumps(event) + "\n" for event in grid)
    document = account(run)["stages"]["pretrain"]
    assert document["carbon_from"] == "hourly intensity"
    assert told(going)["kg_co2e"] == pytest.approx(document["kg_co2e"])


def test_limit_that_is_not_known_any_more_is_told(tmp_path: Path) -> None:
    run = write_run(tmp_path, "[budget]\nkwh = 5.0\nhours = 1.0\n")
    write_stage(run, [])
    allowance = begun(run)
    assert allowance.unknown == []
    allowance.row(lost_meter(1))  # nothing was ever known of its power
    assert allowance.unknown == ["kwh"]
