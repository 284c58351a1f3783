"""Rows and events of a stage: the contract's keys and units, over several attempts."""

import json
import resource
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from making_processes import fill, small_disk
from making_runs import QUIET, TinyRows, assert_same_training, run_job, stage_plan, tiny_model
from torch import Tensor, nn

from bessemer.data.loader import MicroBatch
from bessemer.energy.metering import meter
from bessemer.energy.metering.meter import PowerMeter
from bessemer.energy.power import assumed_cpu_power
from bessemer.errors import WriteError
from bessemer.log import Console
from bessemer.parallel.engine import Engine, summed_loss
from bessemer.rundir import read_rows
from bessemer.train import metering
from bessemer.train.gauge import Gauge
from bessemer.train.record import Recorder
from bessemer.train.silence import Silence
from bessemer.train.state import StepStats, TrainState

CONTRACT = {
    "attempt", "step", "tokens", "time_s", "loss", "grad_norm", "lr", "tokens_per_s", "mfu", "step_time_s",
    "memory_bytes", "power_w", "energy_j", "layout",
}  # fmt: skip
ADDED = {
    "samples",
    "energy_low_j",
    "energy_high_j",
    "energy_basis",
    "energy_parts_j",
    "energy_gaps",
    "energy_gap_s",
    "energy_phases_j",
    "time_phases_s",
    "waiting_for_data_s",
}


def slow_loss(model: nn.Module, part: MicroBatch) -> Tensor:
    time.sleep(0.01)
    return summed_loss(model, part)


def one_process() -> Engine:
    return Engine(tiny_model(), summed_loss)


def test_rows_have_the_keys_and_units_of_the_contract(tmp_path: Path) -> None:
    began_s = time.monotonic()
    run_job(tmp_path, stage_plan(steps=4, batch_rows=4, micro_batch=2), loss=slow_loss)
    whole_s = time.monotonic() - began_s
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert row.keys() == CONTRACT | ADDED
        assert row["attempt"] == 1 and row["tokens"] == 64 * row["step"] and row["samples"] == 4 * row["step"]
        assert row["tokens_per_s"] == pytest.approx(64 / row["step_time_s"])
        assert 0.02 < row["step_time_s"] < whole_s
        assert 50e6 < row["memory_bytes"] <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        assert row["power_w"] > 0 and row["energy_low_j"] < row["energy_j"] < row["energy_high_j"]
        assert row["mfu"] is None and row["layout"] == "replicate=1"  # nobody counted this job's FLOPs
    assert sum(row["step_time_s"] for row in rows) == pytest.approx(rows[-1]["time_s"], abs=1e-5)
    assert rows[-1]["time_s"] <= whole_s
    assert rows[-1]["energy_j"] > rows[0]["energy_j"]


def test_the_peak_of_memory_is_of_the_stage_and_not_of_what_came_before(tmp_path: Path) -> None:
    before = torch.ones(100_000_000)  # as the measuring of a new machine, and the making of data
    del before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    run_job(tmp_path, stage_plan(steps=2))
    assert all(row["memory_bytes"] < peak - 200e6 for row in read_rows(tmp_path / "metrics.jsonl"))


def test_mfu_is_model_flops_of_a_step_over_the_peak(tmp_path: Path) -> None:
    plan = stage_plan(steps=2)
    gauge = Gauge(torch.device("cpu"), flops_per_token=1e6, peak_flops=1e9)
    writer = Recorder(tmp_path, plan, gauge, QUIET, one_process())
    time.sleep(0.05)  # building and loading belong to no step
    writer.begin("start", 0)
    time.sleep(0.01)
    state, stats = TrainState(step=1, tokens=64), StepStats(1.0, 1.0, 1.0, tokens=64)
    writer.end_of_step(state, stats)
    writer.write(state, stats, {})
    writer.close()
    (row,) = read_rows(tmp_path / "metrics.jsonl")
    assert 0.01 <= row["step_time_s"] < 0.05
    assert row["mfu"] == pytest.approx(64 * 1e6 / row["step_time_s"] / 1e9)


def test_stage_on_an_accelerator_has_its_own_peak_and_meters_the_device_by_uuid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = {"cuda:1": 900}
    monkeypatch.setattr(metering, "meter_name", lambda device: f"GPU-of-{device}")
    monkeypatch.setattr(
        torch.accelerator, "reset_peak_memory_stats", lambda device: peaks.update({str(device): 5})
    )
    monkeypatch.setattr(torch.accelerator, "max_memory_allocated", lambda device: peaks[str(device)])
    metered = []
    monkeypatch.setattr(
        metering,
        "PowerMeter",
        lambda *args, accelerators, **more: metered.extend(accelerators) or PowerMeter(),
    )
    writer = Recorder(tmp_path, stage_plan(), Gauge(torch.device("cuda", 1)), QUIET, one_process())
    state, stats = TrainState(step=1, tokens=64), StepStats(1.0, 1.0, 1.0, tokens=64)
    writer.end_of_step(state, stats)
    writer.write(state, stats, {})
    writer.close()
    assert read_rows(tmp_path / "metrics.jsonl")[0]["memory_bytes"] == 5
    assert metered == ["GPU-of-cuda:1"]


def test_rows_between_which_steps_lie_give_their_mean_time(tmp_path: Path) -> None:
    run_job(tmp_path, stage_plan(steps=8, log_every=3), loss=slow_loss)
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [3, 6, 8]
    total_s = 3 * rows[0]["step_time_s"] + 3 * rows[1]["step_time_s"] + 2 * rows[2]["step_time_s"]
    assert total_s == pytest.approx(rows[-1]["time_s"], abs=1e-5)


def test_validation_loss_stands_in_the_row_of_its_step_only(tmp_path: Path) -> None:
    run_job(tmp_path, stage_plan(steps=4, validate_every=2), validation=TinyRows(3, seed=1))
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if "validation_loss" in row] == [2, 4]
    assert rows[1]["validation_loss"] > 0


def test_attempts_are_counted_and_time_and_energy_go_on(tmp_path: Path) -> None:
    for steps in (2, 4, 6):
        run_job(tmp_path, stage_plan(steps=steps), loss=slow_loss)
    rows, events = read_rows(tmp_path / "metrics.jsonl"), read_rows(tmp_path / "events.jsonl")
    assert [row["attempt"] for row in rows] == [1, 1, 2, 2, 3, 3]
    assert [row["time_s"] for row in rows] == sorted(row["time_s"] for row in rows)
    assert [row["energy_j"] for row in rows] == sorted(row["energy_j"] for row in rows)
    assert rows[-1]["time_s"] > 6 * 0.02
    told = [(row["attempt"], row["kind"], row["step"]) for row in events]
    assert told == [
        (1, "start", 0), (1, "checkpoint", 2), (1, "done", 2),
        (2, "resume", 2), (2, "checkpoint", 4), (2, "done", 4),
        (3, "resume", 4), (3, "checkpoint", 6), (3, "done", 6),
    ]  # fmt: skip
    assert events[3]["checkpoint"] == "step-00000002" and events[1]["folder"] == "step-00000002"
    assert all({"time", "attempt", "kind", "step"} <= row.keys() for row in events)
    assert [row["time"] for row in events] == sorted(row["time"] for row in events)


def test_row_torn_by_a_kill_is_cut_off_before_the_next_attempt_writes(tmp_path: Path) -> None:
    run_job(tmp_path, stage_plan(steps=2))
    for name in ("metrics.jsonl", "events.jsonl"):
        with open(tmp_path / name, "ab") as file:
            file.write(b'{"attempt": 1, "step": 3, "lo')
    run_job(tmp_path, stage_plan(steps=4))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    assert [row["attempt"] for row in read_rows(tmp_path / "events.jsonl")][-1] == 2


def test_disk_that_fills_up_between_saves_is_a_write_error_and_nothing_is_lost(tmp_path: Path) -> None:
    plan = stage_plan(steps=60, save_every=20)
    run_job(tmp_path / "never", plan)
    with small_disk(tmp_path / "disk") as disk:
        calls, fillers = iter(range(1000)), []

        def loss(model: nn.Module, part: MicroBatch) -> Tensor:
            if next(calls) == 50:  # step 26: rows fill the page that they have, and then find no other
                fillers.append(fill(disk, leave=0))
            return summed_loss(model, part)

        with pytest.raises(WriteError, match=r"cannot write .*metrics\.jsonl") as caught:
            run_job(disk / "stage", plan, loss=loss)
        assert caught.value.exit_code == 73 and "space" in caught.value.fix
        fillers[0].unlink()
        run_job(disk / "stage", plan)
        assert_same_training(disk / "stage", tmp_path / "never", 60)


class EightRanks(Engine):
    """The first of eight, all of which keep a core busy; the others' CPU time counts from their beginning."""

    def each_rank(self, values: list[float]) -> list[list[float]]:
        return [values, *[[0.0, time.monotonic(), 0.0]] * 7]


def test_ranks_that_tell_their_cpu_time_with_rare_rows_lose_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    for module in (meter, metering):
        monkeypatch.setattr(module, "busy_seconds", lambda: clock[0])
    monkeypatch.setattr(metering, "PowerMeter", partial(PowerMeter, powercap=tmp_path / "no counters"))
    gauge = Gauge(torch.device("cpu"), cores=8)
    writer = Recorder(tmp_path, stage_plan(), gauge, QUIET, EightRanks(tiny_model(), summed_loss))
    state, stats = TrainState(tokens=64), StepStats(1.0, 1.0, 1.0, tokens=64)
    writer.begin("start", 0)
    for step in range(1, 21):
        clock[0], state.step = 10.0 * step, step
        writer.end_of_step(state, stats)
        if step % 10 == 0:
            writer.write(state, stats, {})
    writer.close()
    busy = assumed_cpu_power(8, 8.0).value
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["energy_j"] for row in rows] == pytest.approx([100 * busy, 200 * busy])
    assert [row["power_w"] for row in rows] == pytest.approx([busy, busy])


def test_cpu_time_of_another_rank_counts_from_where_its_steps_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[float]] = []

    class Told(Engine):
        def each_rank(self, values: list[float]) -> list[list[float]]:
            told.append(values)
            return [values]

    busy_s = [50.0]
    monkeypatch.setattr(metering, "busy_seconds", lambda: busy_s[0])
    rank = Silence(Gauge(torch.device("cpu")), Told(tiny_model(), summed_loss))
    busy_s[0] = 53.0
    rank.write(TrainState(), StepStats(1.0, 1.0, 1.0, tokens=64), {})
    assert [values[1] for values in told] == [3.0]


def test_the_log_of_the_console_is_not_the_recorders_to_close(tmp_path: Path) -> None:
    console = Console(quiet=True)
    console.also_to(tmp_path / "log")
    Recorder(tmp_path / "stage", stage_plan(), Gauge(torch.device("cpu")), console, one_process()).close()
    console.line("after the end")
    console.also_to(None)
    assert "after the end" in (tmp_path / "log").read_text() and not (tmp_path / "stage/logs").exists()
