"""Calibrating: real measurements of small sizes, stored, told, and used."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from making_ranks import Pool

from bessemer.cli.doctor_speeds import calibration_text
from bessemer.measure import calibrate as measure
from bessemer.measure import calibrate_pair, probes
from bessemer.measure.calibrate import calibrate
from bessemer.measure.calibrate_pair import exchange_table, layout_anchor
from bessemer.measure.probes import Probes, best_s
from bessemer.planner.calibrated.tables import (
    EXCHANGES,
    PARTS,
    Anchor,
    Calibration,
    stored_calibration,
    table_of_json,
)

CPU = torch.device("cpu")
SMALL: dict[str, tuple[tuple[int, ...], ...]] = {
    "linear": ((64, 512), (64, 256), (64, 256)),
    "attention": ((4, 8), (32, 64), (32, 64)),
    "masked": ((4, 8), (32, 64), (32, 64)),
    "embedding": ((64, 256), (2**14, 2**16)),
    "call": (),
}


@pytest.fixture(autouse=True)
def small_and_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small sizes for a short time, and the user's cache left alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    grids = {part: SMALL.get(part, ((2**15, 2**17),)) for part in PARTS}
    monkeypatch.setattr(probes, "_GRIDS", grids)
    monkeypatch.setattr(probes, "_ENOUGH_S", 0.001)
    monkeypatch.setattr(probes, "_ANCHORS", ((64, 1), (128, 1)))


@pytest.fixture(scope="module")
def pair() -> Iterator[Pool]:
    pool = Pool()
    yield pool
    pool.close()


def test_a_calibration_of_this_cpu_is_whole_stored_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_together", lambda device: ([], {}))  # has a test of its own
    found = calibrate(CPU)
    assert stored_calibration(found.device) == found
    threads = {1, torch.get_num_threads()}
    assert {(each.processes, each.threads, each.dtype) for each in found.speeds} == {
        (1, count, dtype) for count in threads for dtype in ("fp32", "bf16")
    }
    for each in found.speeds:
        assert each.tables.keys() == PARTS.keys() and [row.hidden for row in each.anchors] == [64, 128]
        linear = each.tables["linear"]
        assert linear.at(512, 256, 256) > linear.at(64, 64, 64) > 0
        assert 1e-4 < 6e-12 * 512 * 256 * 256 / linear.at(512, 256, 256) < 100  # TFLOP/s
    assert found.torch == torch.__version__ and 0 < found.took_s < 60 and 0 <= found.busy_share <= 1
    text = calibration_text(found)
    assert "1 x 1 bf16" in text and "matmul large" in text and found.device in text


def test_what_was_set_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_together", lambda device: ([], {}))
    monkeypatch.setattr(measure, "Probes", _Idle)
    before = torch.get_num_threads()
    calibrate(CPU)
    assert torch.get_num_threads() == before


class _Idle:
    def __init__(self, device: torch.device, dtype: str) -> None:
        self._dtype = dtype

    def speeds(self, processes: int, threads: int) -> Any:
        assert torch.get_num_threads() == threads
        return probes.Speeds(processes, threads, self._dtype, {})


def test_the_best_of_several_is_taken_and_long_work_is_done_only_twice() -> None:
    def calls_of(*sleeps_s: float) -> tuple[float, int]:
        left, calls = list(sleeps_s), []

        def work() -> None:
            calls.append(1)
            time.sleep(left.pop(0))

        return best_s(work, CPU, 0.0), len(calls)

    best, calls = calls_of(0.09, 0.0, 0.08)
    assert best < 0.08 and calls == 3
    best, calls = calls_of(0.13, 0.11)
    assert best >= 0.11 and calls == 2


def exchange_times(rank: int, kind: str) -> dict[str, Any]:
    sizes = (2**10, 2**20)
    calibrate_pair._BYTES["cpu"] = sizes
    table = exchange_table(kind, CPU, rank)
    return {"json": json.dumps({"axes": table.axes, "seconds": table.seconds, "powers": table.powers})}


@pytest.mark.parametrize("kind", EXCHANGES)
def test_exchanges_between_two_processes_are_timed_alike_on_both(kind: str, pair: Pool) -> None:
    one, other = (json.loads(each["json"]) for each in pair.run(exchange_times, 2, kind=kind))
    assert one == other, "both agree on the slower"
    table = table_of_json(one)
    assert 0 < table.at(2**10) < table.at(2**20) < 1.0


def anchor_times(rank: int, layout: str) -> dict[str, Any]:
    return asdict(layout_anchor(layout, 64, "fp32"))


@pytest.mark.parametrize("layout", ["shard=2", "shard=2,expert=2"])
def test_steps_of_two_processes_are_timed_alike_on_both(layout: str, pair: Pool) -> None:
    one, other = (Anchor(**each) for each in pair.run(anchor_times, 2, layout=layout))
    assert one == other and 0 < one.seconds < 10.0 and one.layout == layout
    assert (one.experts > 0) == ("expert" in layout)


def test_busy_cores_are_told_with_a_calibration() -> None:
    calm = Calibration("a CPU", "cpu", "t", "2026-01-01", 2, (), {}, 0.05, 20.0)
    assert "quiet" not in calibration_text(calm)
    busy = Calibration("a CPU", "cpu", "t", "2026-01-01", 2, (), {}, 0.4, 20.0)
    assert "Other processes used 40% of the cores" in calibration_text(busy)


def test_each_part_takes_longer_on_larger_sizes() -> None:
    """None measures nothing."""
    made = Probes(CPU, "fp32")
    for part, axes in PARTS.items():
        if not axes:
            continue
        least, most = (4, 32, 32)[: len(axes)], (16, 256, 256)[: len(axes)]
        if part not in ("linear", "attention", "masked"):
            least, most = (64, 2**14)[-len(axes) :], (64, 2**20)[-len(axes) :]
        work = getattr(made, f"_{part}")
        assert best_s(work(*least), CPU, 0.02) < best_s(work(*most), CPU, 0.02), part
