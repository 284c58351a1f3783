"""Budgets that hold: a run stops at a limit, saved, and goes on from there only where that is higher.

The machine is taken for a fast one, so that the plan fits a budget that the training itself cannot keep.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from making_processes import finish, ran_here, start
from making_runs import (
    SMALL,
    assert_same_training,
    curve,
    events,
    make_job,
    own_cache,
    place,
    pretrained,
    stage_plan,
    write_recipe,
)

from bessemer.checkpoint.folder import listed, step_of
from bessemer.cli.energy_tables import account as show
from bessemer.data.loader import Batch
from bessemer.energy.accounting.account import account
from bessemer.energy.accounting.allowance import allowance_of
from bessemer.energy.grid.hourly import HOUR_S, hour_text
from bessemer.errors import RefusedError, StoppedError
from bessemer.finetune.run import _check, finetune
from bessemer.finetune.task import prepare_finetune
from bessemer.hardware import Ceilings, machine, store_ceilings
from bessemer.log import Console
from bessemer.planner.calibrated.taught import note_run, step_key
from bessemer.planner.sizing.budget import Use
from bessemer.recipe.load import load
from bessemer.rundir import read_rows
from bessemer.train import loop
from bessemer.train import record as recording
from bessemer.train.budget import BudgetWatch, check_metered
from bessemer.train.job import Job
from bessemer.train.loop import train
from bessemer.train.record import Recorder
from bessemer.train.stage import read_stage
from bessemer.train.state import StepStats, TrainState

STEPS = 40
LENGTH = ("--set", f"pretrain.steps={STEPS}", "--set", "pretrain.batch_tokens=1024")
TIGHT = "budget.hours=1.4e-4"  # 0.5 s: the plan says 0.47 s at the least, and 40 steps take over a second


@pytest.fixture(autouse=True)
def fast_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For each test anew: what one run teaches the planner, the plan of the next one would know."""
    with own_cache(tmp_path_factory.mktemp("fast")):
        store_ceilings(Ceilings(machine().cpu, 50.0, 50.0, 1e3, 1, torch.__version__, "2026-01-01"))
        yield


def spent_hours(stage: Path) -> float:
    return float(read_rows(stage / "metrics.jsonl")[-1]["time_s"]) / 3600.0


def test_run_stops_at_its_limit_is_refused_until_that_is_raised_and_ends_bitwise_as_if_never_stopped(
    tmp_path: Path,
) -> None:
    write_recipe(tmp_path, sizes=SMALL)
    settings = [word for word in LENGTH if word != "--set"]
    words, stage = ("pretrain", "tiny.toml", *LENGTH, "--run", "run"), tmp_path / "run/pretrain"
    code, out, error = finish(start(tmp_path, *words, "--set", TIGHT))
    last = curve(stage)[-1][0]
    assert code == 75 and out == "", error
    assert f"budget.hours is used up: at step {last} of {STEPS}, and saved" in error
    assert f"for the {STEPS - last} steps that are left, at this stage's own pace" in error
    assert 0 < last < STEPS and step_of(listed(stage)[0]) == last
    (event,) = events(stage, "budget")
    assert (event["name"], event["limit"], event["step"]) == ("hours", 1.4e-4, last)
    assert event["spent"] == pytest.approx(spent_hours(stage), rel=1e-3)

    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    code, out, again = ran_here(tmp_path, *words, "--set", TIGHT)
    assert code == 3 and out == "" and "budget.hours is used up" in again
    assert next(line for line in error.splitlines() if "wanted:" in line) in again
    del files[tmp_path / "run/.lock"]
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in files.items())

    raised = error.split("--set ")[1].split()[0]
    assert raised.startswith("budget.hours=") and float(raised.split("=")[1]) > 1.4e-4
    ample = f"budget.hours={100 * float(raised.split('=')[1])}"  # this machine is not ours alone
    pretrained(tmp_path, *settings, ample)
    pretrained(tmp_path, *settings, run="never")
    assert_same_training(stage, tmp_path / "never/pretrain", STEPS)


def planned(run: Path) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads((run / "plan.json").read_text())
    return plan


def taking(monkeypatch: pytest.MonkeyPatch, run: Path, times: float) -> None:
    """Steps take so many times what the plan says, one with another up to 5 % more or less: a clock by hand,
    as this machine is not ours alone."""
    clock = SimpleNamespace(now_s=0.0, time=time.time)
    clock.monotonic = lambda: clock.now_s
    step_of_the_loop = loop.train_step

    def timed(job: Job, state: TrainState, batch: Batch) -> StepStats:
        step_s = planned(run)["predicted"]["step_time_s"]["value"]
        clock.now_s += times * step_s * (1.0 + 0.05 * (-1) ** state.step)
        return step_of_the_loop(job, state, batch)

    monkeypatch.setattr(loop, "train_step", timed)
    monkeypatch.setattr(recording, "time", clock)


@pytest.mark.parametrize(
    ("known", "times", "share"),
    [(False, 1.08, 0.96), (False, 0.8, 0.71), (True, 1.03, 0.96)],
)
def test_length_that_a_budget_decides_fills_it_and_the_run_does_not_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool, times: float, share: float
) -> None:
    """Slower than likely by what the reserve holds. A quicker one gets no longer."""
    write_recipe(tmp_path)
    pretrained(tmp_path, "pretrain.steps=1", run="first")
    step_s = planned(tmp_path / "first")["predicted"]["step_time_s"]["value"]
    if known:
        stage = read_stage(tmp_path / "first/pretrain")
        key = step_key(stage.shape, stage.plan, "cpu", 1)
        note_run(machine().cpu, key, step_s, step_s, "no calibration", 50)
    hours = 45 * step_s / 3600
    taking(monkeypatch, tmp_path / "run", times)
    document = pretrained(tmp_path, "pretrain.steps=auto", f"budget.hours={hours}")
    plan = planned(tmp_path / "run")
    steps, reserve = (42, 1 / 21) if known else (40, 0.1)
    assert document["step"] == plan["pretrain"]["steps"] == steps
    assert spent_hours(tmp_path / "run/pretrain") / hours == pytest.approx(share, abs=0.005)
    assert {row["key"]: row["value"] for row in plan["derived"]}["budget.reserve"] == round(reserve, 4)
    assert not events(tmp_path / "run/pretrain", "budget")
    again = pretrained(tmp_path, "pretrain.steps=auto", f"budget.hours={hours}")
    assert again["already_done"] and again["step"] == steps


def test_fork_pays_for_its_own_steps_only_and_its_account_tells_what_it_inherited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_recipe(tmp_path)
    pretrained(tmp_path, "pretrain.steps=12", run="base")  # too few to teach the planner
    step_s = planned(tmp_path / "base")["predicted"]["step_time_s"]["value"]
    base, fork = f"{tmp_path}/base@10", tmp_path / "fork"
    taking(monkeypatch, fork, 1.0)
    hours = 11 * step_s / 3600  # for 20 steps too little even at the low end, and enough for 10
    with pytest.raises(RefusedError, match="does not fit its budget"):
        pretrained(tmp_path, "pretrain.steps=20", f"budget.hours={hours}", run="alone")
    document = pretrained(tmp_path, "pretrain.steps=20", f"budget.hours={hours}", run="fork", from_=base)
    assert document["step"] == 20
    assert spent_hours(fork / "pretrain") == pytest.approx(10 * step_s / 3600, rel=0.01)
    told, whole = account(fork), account(tmp_path / "base")
    (origin,) = told["inherited"]["pretrain"]
    row = read_rows(tmp_path / "base/pretrain/metrics.jsonl")[9]
    assert origin["from"] == str(tmp_path / "base/pretrain") and origin["step"] == origin["steps"] == 10
    assert origin["tokens"] == 10 * 128 and origin["energy_j"]["value"] == row["energy_j"]
    assert told["stages"]["pretrain"]["tokens"] == pytest.approx(10 * 128, rel=0.001)  # its clock is rounded
    assert whole["inherited"] == {}
    assert told["total"]["energy_j"] == told["stages"]["pretrain"]["energy_j"] != origin["energy_j"]
    assert told["plan"]["steps_done"] == 0.5
    assert f"inherited {tmp_path}/base/pretrain until step 10, which took" in show(told)

    longer = pretrained(
        tmp_path, "pretrain.steps=auto", f"budget.hours={15 * step_s / 3600}", run="longer", from_=base
    )
    assert longer["step"] == 10 + 13  # nine tenths of what the budget is for


def test_run_that_is_slower_by_more_than_its_reserve_stops_at_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_recipe(tmp_path)
    pretrained(tmp_path, "pretrain.steps=1", run="first")
    hours = 45 * planned(tmp_path / "first")["predicted"]["step_time_s"]["value"] / 3600
    taking(monkeypatch, tmp_path / "run", 1.25)
    with pytest.raises(StoppedError, match=r"budget\.hours is used up: at step 3\d of 40, and saved"):
        pretrained(tmp_path, "pretrain.steps=auto", f"budget.hours={hours}")
    assert spent_hours(tmp_path / "run/pretrain") / hours == pytest.approx(1.0, abs=0.04)


def test_plan_is_refused_where_even_its_low_end_is_too_much(tmp_path: Path) -> None:
    write_recipe(tmp_path, sizes=SMALL)
    with pytest.raises(RefusedError, match="does not fit its budget") as caught:
        pretrained(tmp_path, *(word for word in LENGTH if word != "--set"), "budget.hours=1e-5")
    assert caught.value.exit_code == 3 and not (tmp_path / "run/pretrain").exists()


def test_stage_that_has_begun_is_not_told_to_become_shorter(tmp_path: Path) -> None:
    write_recipe(tmp_path, sizes=SMALL)
    pretrained(tmp_path, "pretrain.steps=2")
    with pytest.raises(RefusedError, match="does not fit its budget") as caught:
        pretrained(
            tmp_path, "pretrain.steps=4000", f"budget.hours={spent_hours(tmp_path / 'run/pretrain') + 1e-4}"
        )
    assert caught.value.fix.startswith("raise it with --set budget.hours=")


def test_fine_tuning_stops_at_the_limit_that_pre_training_has_drawn_of_too(tmp_path: Path) -> None:
    write_recipe(tmp_path, task=True)
    pretrained(tmp_path, "pretrain.steps=5")
    before = spent_hours(tmp_path / "run/pretrain")
    settings = ["finetune.epochs=40", f"budget.hours={before + 5e-5}"]
    asked = load(str(tmp_path / "tiny.toml"), ["pretrain.steps=5", *settings])
    with pytest.raises(
        StoppedError, match=r"budget\.hours is used up: at step \d+ of \d+, and saved"
    ) as caught:
        finetune(asked, place(tmp_path))
    assert "of them in other stages" in caught.value.found
    stage = tmp_path / "run/finetune"
    assert step_of(listed(stage)[0]) == curve(stage)[-1][0] and events(stage, "budget")
    with pytest.raises(RefusedError, match=r"budget\.hours is used up"):
        finetune(asked, place(tmp_path))


def test_comparison_with_random_weights_counts_when_fine_tuning_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_recipe(tmp_path, task=True)
    pretrained(tmp_path, "pretrain.steps=1")
    found: list[Use] = []
    monkeypatch.setattr("bessemer.train.budget.warning", found.extend)
    compared = ["finetune.compare_scratch=true", "finetune.compare_seeds=1", "budget.hours=100"]
    loaded = load(str(tmp_path / "tiny.toml"), ["pretrain.steps=1", *compared])
    _check(prepare_finetune(loaded, place(tmp_path), None), "finetune")
    (use,) = found
    assert use.left.value and use.later.value == pytest.approx(4.3125 * use.left.value)
    assert use.later.low == 0.0  # and refuses nothing


def test_hours_are_watched_in_a_pause_too(tmp_path: Path) -> None:
    """Dirty without end: it would stand still for 14 s, of a budget of 5."""
    write_recipe(tmp_path)
    now = int(time.time() // HOUR_S)
    rows = "".join(f"{hour_text(hour)},900\n" for hour in range(now - 1, now + 3))
    (tmp_path / "hours.csv").write_text(f"time,g_per_kwh\n{rows}")
    pausing = ("energy.intensity=hours.csv", "energy.pause_above_g_per_kwh=300.0",
               "energy.pause_most_hours=0.004")  # fmt: skip
    with pytest.raises(StoppedError, match=r"budget\.hours is used up: at step 0 of 3, and saved") as caught:
        pretrained(tmp_path, "pretrain.steps=3", *pausing, "budget.hours=0.0014")
    assert "3 steps that are left, whose pace is not known yet" in caught.value.wanted
    assert "or more goes on;" in caught.value.fix
    stage = tmp_path / "run/pretrain"
    (told,), (ended,) = events(stage, "budget"), events(stage, "stop_in_pause")
    assert 0.0014 <= told["spent"] < 0.0025 and ended["seconds"] < 9.0
    with pytest.raises(RefusedError, match=r"budget\.hours is used up"):
        pretrained(tmp_path, "pretrain.steps=3", *pausing, "budget.hours=0.0014")


def test_limit_is_watched_at_the_last_known_power_when_the_meter_is_lost_and_that_is_said_once(
    tmp_path: Path,
) -> None:
    (tmp_path / "recipe.toml").write_text('name = "lost"\n[budget]\nkwh = 1.0\n')
    lines: list[str] = []
    console = Console(quiet=True)
    console.line = lines.append  # type: ignore[method-assign]
    job, state = make_job(tmp_path / "pretrain", stage_plan(steps=12), console=console)
    assert isinstance(job.record, Recorder)
    allowance = allowance_of(tmp_path / "pretrain")
    assert allowance is not None
    job.record.budget = BudgetWatch(allowance, job.plan, 1, job.stop)
    meter = job.record._metering._phased
    assert meter is not None
    wake = meter.meter.read

    def read_until(step: int) -> object:
        if len(read_rows(tmp_path / "pretrain/metrics.jsonl")) >= step:
            meter.meter.missing.append("accelerator 0")  # as one that has fallen off the bus
        return wake()

    meter.meter.read = lambda: read_until(6)  # type: ignore[method-assign, assignment, return-value]
    train(job, state)
    job.close()
    rows = read_rows(tmp_path / "pretrain/metrics.jsonl")
    assert rows[5]["energy_j"] is not None and rows[-1]["energy_j"] is None
    assert len(events(tmp_path / "pretrain", "unmetered")) == 1
    assert sum("the meter is lost" in line for line in lines) == 1
    spent = allowance.spent("kwh")
    assert spent.value is not None and spent.value > rows[5]["energy_j"] / 3.6e6 and spent.basis == "assumed"


def test_what_nothing_reads_is_refused_where_a_limit_counts_energy(tmp_path: Path) -> None:
    for limit, refused in (("kwh = 1.0", True), ("hours = 1.0", False)):
        (tmp_path / "recipe.toml").write_text(f'name = "blind"\n[budget]\n{limit}\n')
        if refused:
            with pytest.raises(RefusedError, match=r"budget\.kwh cannot be watched") as caught:
                check_metered(tmp_path / "pretrain", ["accelerator GPU-1"])
            assert "accelerator GPU-1" in caught.value.found and "nvidia-ml-py" in caught.value.fix
        else:
            check_metered(tmp_path / "pretrain", ["accelerator GPU-1"])


@pytest.mark.slow
def test_two_ranks_stop_together_and_go_on_as_if_never_stopped(tmp_path: Path) -> None:
    write_recipe(tmp_path, sizes=SMALL)
    words = ("pretrain", "tiny.toml", *LENGTH, "--set", "parallel.layout=shard=2")
    code, _, error = finish(start(tmp_path, *words, "--set", TIGHT, "--run", "run"))
    stage = tmp_path / "run/pretrain"
    last = curve(stage)[-1][0]
    assert code == 75 and f"budget.hours is used up: at step {last} of {STEPS}, and saved" in error
    assert "another rank" not in error and step_of(listed(stage)[0]) == last
    (event,) = events(stage, "budget")
    assert event["step"] == last - 1  # the others heard of it in the step after
    assert finish(start(tmp_path, *words, "--set", TIGHT, "--run", "run"))[0] == 3
    for run, budget in (("run", "budget.hours=1"), ("never", "budget.hours=2")):
        code, _, error = finish(start(tmp_path, *words, "--set", budget, "--run", run))
        assert code == 0, error
    assert_same_training(stage, tmp_path / "never/pretrain", STEPS)


@pytest.mark.slow
def test_whole_run_ends_with_75_and_does_not_go_on_to_fine_tuning(tmp_path: Path) -> None:
    write_recipe(tmp_path, sizes=SMALL, task=True)
    code, _, error = finish(start(tmp_path, "run", "tiny.toml", *LENGTH, "--set", TIGHT, "--run", "run"))
    assert code == 75 and "budget.hours is used up" in error
    assert not (tmp_path / "run/finetune").exists() and not (tmp_path / "run/evaluate").exists()
