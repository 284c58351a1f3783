"""Predicted against measured while a run goes on: what is told, which causes, and what is learnt from it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from making_runs import (
    QUIET,
    SMALLEST,
    TinyRows,
    events,
    make_job,
    pretrained,
    stage_plan,
    write_recipe,
)

from bessemer.data.rows import Row
from bessemer.hardware import GIB, Ceilings, machine
from bessemer.log import Console
from bessemer.planner.calibrated.taught import StepKey, Taught, stored_taught
from bessemer.planner.machine.facts import Facts
from bessemer.planner.resolve import resolve
from bessemer.recipe.load import load
from bessemer.report.grades import grades
from bessemer.report.record import read_run
from bessemer.rundir import read_object, read_rows, steady_median
from bessemer.train import watch
from bessemer.train.evidence import Totals
from bessemer.train.expect import Expected, expected_of
from bessemer.train.gauge import Gauge
from bessemer.train.loop import train
from bessemer.train.watch import Told, Watch

EXPECTED = Expected(
    1.0, 0.9, 1.1, "modelled", 1.0, "d", True, 0.0, "a device", 2, StepKey("exact", "way", 256)
)


@pytest.fixture
def nobody_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else this machine does."""
    monkeypatch.setattr(watch, "core_ticks", lambda: None)


def told(
    step_s: float, expected: Expected = EXPECTED, steps: int = 30, saving: bool = False, **per_step: float
) -> list[Told]:
    """What a watch tells of steps of `step_s`, of which each adds `per_step` to a process's totals."""
    seen, found = Watch(expected), []
    threads = per_step.pop("threads", 2.0)
    if saving:
        seen.save_began()
    for number in range(1, steps + 1):
        seen.step(step_s)
        totals = Totals(**{name: value * number for name, value in per_step.items()}, threads=threads)
        found.append(seen.row([list(totals.__dict__.values())], number * step_s))
    return [each for each in found if each is not None]


@pytest.mark.usefixtures("nobody_tells")
def test_a_run_as_predicted_says_so_once() -> None:
    (only,) = told(1.1)
    assert only.kind == "as_predicted" and only.line == "a step takes 1.1 s, predicted 1 s (+10%)"


@pytest.mark.usefixtures("nobody_tells")
@pytest.mark.parametrize(
    ("seen", "cause"),
    [
        ({"data_s": 0.4}, "waiting for data, 400 ms of each step"),
        ({"waiting_s": 0.45}, "busy machine"),
        ({"faults": 300.0}, "memory is short: 300 pages a step from disk"),
        ({"recompiled": 0.5}, "code was compiled again"),
        ({"threads": 1.0}, "1 threads a process, predicted for 2"),
        ({"saving": True}, "a checkpoint was written during 10 steps"),
        ({}, "cause not known"),
        ({"data_s": 0.1, "waiting_s": 0.1, "faults": 1.0}, "cause not known"),  # too little to explain it
    ],
)
def test_a_cause_is_named_by_evidence_and_only_by_it(seen: dict[str, Any], cause: str) -> None:
    (only,) = told(1.5, **seen)
    assert only.kind == "deviation" and only.details["cause"].startswith(cause)
    assert only.line.startswith("a step takes 1.5 s, predicted 1 s (+50%): ") and cause in only.line
    others = [word for word in ("data", "memory", "threads", "compiled", "checkpoint") if word in only.line]
    assert len(others) <= 1, only.line


@pytest.mark.usefixtures("nobody_tells")
def test_a_power_limit_that_was_asked_for_is_a_cause_and_teaches_nothing() -> None:
    for how, cause in (("asked", "the power limit is 300 W"), ("found", "cause not known")):
        seen, lines = Watch(EXPECTED), []
        seen.limited(300.0, how)
        for number in range(1, 31):
            seen.step(1.5)
            lines.append(seen.row([list(Totals(threads=2.0).__dict__.values())], number * 1.5))
        (only,) = [each for each in lines if each is not None]
        assert only.kind == "deviation" and only.details["cause"] == cause
        assert seen.teach() == "the power limit was set to 300 W"


@pytest.mark.usefixtures("nobody_tells")
def test_a_governor_that_was_set_teaches_nothing() -> None:
    """The next run may be without it."""
    seen = Watch(EXPECTED)
    seen.governor = "powersave"
    for _ in range(30):
        seen.step(1.5)
    assert seen.teach() == 'the governor was set to "powersave"'


@pytest.mark.usefixtures("nobody_tells")
def test_steps_at_limits_that_are_tried_are_no_deviation() -> None:
    seen, lines = Watch(EXPECTED), []
    for number in range(1, 61):
        seen.limited(300.0 if 20 < number <= 40 else None, "searching" if 20 < number <= 40 else "found")
        seen.step(1.5 if 20 < number <= 40 else 1.0)
        lines.append(seen.row([list(Totals(threads=2.0).__dict__.values())], float(number)))
    assert [each.kind for each in lines if each is not None] == ["as_predicted"]


@pytest.mark.usefixtures("nobody_tells")
def test_a_prediction_without_calibration_is_told_to_be_one() -> None:
    for step_s in (0.5, 1.5):
        (only,) = told(step_s, replace(EXPECTED, calibrated=False))
        assert "doctor --calibrate" in only.details["cause"]
    (only,) = told(0.5, replace(EXPECTED, calibrated_busy=0.5))
    assert only.details["cause"] == "others used 50% of the cores when this machine was calibrated"


@pytest.mark.usefixtures("nobody_tells")
def test_a_change_is_told_again_and_its_end_too() -> None:
    seen = Watch(EXPECTED)
    kinds = []
    for number, step_s in enumerate([1.0] * 20 + [1.4] * 40 + [1.0] * 20, start=1):
        seen.step(step_s)
        found = seen.row([[0.0, 0.0, 0.0, 0.0, 2.0]], number)
        kinds += [(number, found.kind)] if found else []
    assert [kind for _, kind in kinds] == ["as_predicted", "deviation", "as_predicted"]
    assert [number for number, _ in kinds] == [15, 28, 68]  # when eight of the last ten say so


def expected(step_s: float) -> Expected:
    return replace(EXPECTED, step_s=step_s, threads=torch.get_num_threads())


def run_against(folder: Path, step_s: float, rows: TinyRows, console: Console = QUIET, **plan: Any) -> None:
    """A real run of the loop, of which the planner expects `step_s`."""
    job, state = make_job(folder, stage_plan(save_every=1000, **plan), rows=rows, console=console)
    object.__setattr__(job, "record", recorder(job, folder, step_s, console))
    try:
        train(job, state)
    finally:
        job.close()


def recorder(job: Any, folder: Path, step_s: float, console: Console) -> Any:
    job.record.close()
    gauge = Gauge(torch.device("cpu"), expected=expected(step_s))
    made = type(job.record)(folder, job.plan, gauge, console, job.engine)
    made.begin("start", 0)
    return made


class SlowRows(TinyRows):
    """From a disk that takes 10 ms a row."""

    def row(self, index: int) -> Row:
        time.sleep(0.01)
        return super().row(index)


def test_a_loader_that_waits_is_the_cause_of_a_slow_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_against(tmp_path, 0.01, SlowRows(10), Console(), steps=20)
    (found,) = events(tmp_path, "deviation")
    assert "waiting for data" in found["cause"] and found["evidence"]["data_s"] > 0.035
    assert found["measured_s"] > 0.04 and found["step"] == 15
    said = capsys.readouterr().err
    assert "step 15: a step takes" in said and "waiting for data" in said and "(predicted 6,400)" in said


@contextmanager
def burning(processes: int) -> Iterator[None]:
    command = [sys.executable, "-c", "while True: pass"]
    started = [subprocess.Popen(command) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="only Linux tells who uses the cores")
def test_other_processes_on_the_cores_are_the_cause_of_a_slow_run(tmp_path: Path) -> None:
    rows = TinyRows(400)
    begin_s = time.monotonic()
    run_against(tmp_path / "alone", 1000.0, rows, steps=20, batch_rows=128, micro_batch=2)
    alone_s = (time.monotonic() - begin_s) / 20
    with burning(3 * (os.cpu_count() or 1)):
        run_against(tmp_path / "busy", alone_s / 2, rows, steps=20, batch_rows=128, micro_batch=2)
    (found,) = events(tmp_path / "busy", "deviation")[:1]
    assert "other processes use" in found["cause"], found
    assert found["evidence"]["others_share"] > 0.3


def test_a_run_teaches_the_next_prediction_and_the_report_grades_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "core_ticks", lambda: None)  # a busy machine would teach nothing
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_recipe(tmp_path, sizes={**SMALLEST, "batch_tokens": 512})
    pretrained(tmp_path, run="first")
    first = measured_s(tmp_path / "first")
    rows = stored_taught(machine().cpu).rows
    assert len(rows) == 1 and rows[0].measured_s == pytest.approx(first, rel=0.05)
    pretrained(tmp_path, run="second")
    (row,) = [row for row in stored_taught(machine().cpu).rows if row not in rows]
    (told_,) = [
        each for kind in ("as_predicted", "deviation") for each in events(tmp_path / "second/pretrain", kind)
    ][:1]
    assert told_["basis"] == "measured" and told_["predicted_s"] == rows[0].measured_s
    assert row.exact == rows[0].exact and row.modelled_s  # without what the first run taught

    record = read_run(tmp_path / "second")
    by_name = {grade.quantity: grade for grade in grades(record)}
    step = by_name["step_time_s"]
    again = measured_s(tmp_path / "second")
    assert step.measured == again and step.predicted is not None and step.low is not None
    assert step.error == pytest.approx(step.predicted / again - 1)
    assert step.inside is (step.low <= again <= (step.high or 0))
    assert by_name["tokens_per_s"].measured == pytest.approx(512 / again, rel=0.2)
    hours = sum(row["step_time_s"] for row in read_rows(tmp_path / "second/pretrain/metrics.jsonl")) / 3600
    assert by_name["hours"].measured == pytest.approx(hours)
    good = by_name["goodput"].measured
    assert good is not None and 0.1 < good <= 1.0
    assert {"memory_gib", "kwh", "device_hours"} <= by_name.keys()


def test_a_disturbed_run_teaches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ticks = iter(range(1000))
    monkeypatch.setattr(watch, "core_ticks", lambda: (0, 1000 * next(ticks)))  # nobody idles
    for busy_per_step, taught_rows in ((0.0, 0), (10.0, 1)):  # of ten seconds of cores a step
        seen = Watch(EXPECTED)
        for number in range(1, 31):
            seen.step(1.0)
            seen.row([[0.0, 0.0, 0.0, 0.0, 2.0]], busy_per_step * number)
        seen.teach()
        assert len(stored_taught("a device").rows) == taught_rows


def test_a_run_that_was_disturbed_until_shortly_before_its_end_teaches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    idle_and_all, busy_s = [0, 0], 0.0
    monkeypatch.setattr(watch, "core_ticks", lambda: tuple(idle_and_all))
    seen = Watch(EXPECTED)
    for number in range(1, 101):
        step_s, own_s = (2.0, 1.0) if number <= 85 else (1.0, 2.0)  # of two cores, which never idle
        seen.step(step_s)
        idle_and_all[1] += int(2 * step_s * os.sysconf("SC_CLK_TCK"))
        busy_s += own_s
        seen.row([[0.0, 0.0, 0.0, 0.0, 2.0]], busy_s)
    assert "other processes used" in (seen.teach() or "")
    assert not stored_taught("a device").rows


def test_a_run_says_why_it_teaches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Watch, "teach", lambda _: "other processes used 40% of the cores")
    run_against(tmp_path, 0.01, TinyRows(10), Console(), steps=1)
    assert "not kept for the next prediction: other processes used 40%" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["llama-1b", "llama-8b"])
def test_a_run_on_an_accelerator_is_compared_with_what_its_plan_says(tmp_path: Path, name: str) -> None:
    device = "H100-SXM5-80GB"
    ceilings = Ceilings(device, 720.0, 50.0, 2800.0, threads=1, torch="any", date="2026-01-01")
    facts = Facts(device, "gpu", local_devices=8, cores=64, memory_bytes=79 * GIB, ceilings=ceilings,
                  taught=Taught(device))  # fmt: skip
    plan = resolve(load(name, []).recipe, facts)
    stage: Any = SimpleNamespace(kind="pretrain", folder=tmp_path / "pretrain", shape=plan.shape,
                                 plan=replace(plan.pretrain, compile=True))  # fmt: skip
    found = expected_of(stage, facts)
    assert found is not None and not found.calibrated
    assert found.step_s == found.modelled_s == pytest.approx(plan.predicted["step_time_s"].value)


def measured_s(run: Path) -> float:
    found = steady_median(read_rows(run / "pretrain" / "metrics.jsonl"), "step_time_s")
    assert found is not None and read_object(run / "plan.json") is not None
    return found
