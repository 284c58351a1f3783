import math
import random

import pytest

from bessemer.formulas.goodput import (
    between_failures_s,
    daly_interval_s,
    first_order_goodput,
    goodput,
    reliability,
    restart_seconds,
    save_seconds,
    young_interval_s,
)


def simulated_goodput(interval_s: float, save_s: float, restart_s: float, between_s: float) -> float:
    """Second by second, as a job lives it: work, save, fail at random, restart (which may fail too)."""
    chance = random.Random(7)
    clock_s = worked_s = 0.0
    next_failure_s = chance.expovariate(1.0 / between_s)
    for _ in range(40_000):
        end_s = clock_s + interval_s + save_s
        while next_failure_s < end_s:  # this piece of work is lost, and begins again after a restart
            clock_s = next_failure_s
            next_failure_s = clock_s + chance.expovariate(1.0 / between_s)
            while next_failure_s < clock_s + restart_s:
                clock_s = next_failure_s
                next_failure_s = clock_s + chance.expovariate(1.0 / between_s)
            clock_s += restart_s
            end_s = clock_s + interval_s + save_s
        clock_s, worked_s = end_s, worked_s + interval_s
    return worked_s / clock_s


@pytest.mark.parametrize(
    ("devices", "save_s", "restart_s", "share"),
    [(16_384, 30, 600, 0.87), (16_384, 5, 120, 0.959), (100_000, 30, 600, 0.49), (100_000, 5, 120, 0.86),
     (100_000, 60, 900, 0.25)],
)  # fmt: skip
def test_first_order_goodput_has_the_known_figures(
    devices: int, save_s: float, restart_s: float, share: float
) -> None:
    between_s = between_failures_s(devices)
    interval_s = young_interval_s(save_s, between_s)
    assert first_order_goodput(interval_s, save_s, restart_s, between_s) == pytest.approx(share, abs=0.005)


def test_llama_3_is_interrupted_every_three_hours() -> None:
    assert between_failures_s(16_384) / 3600.0 == pytest.approx(3.09, abs=0.005)


@pytest.mark.parametrize(
    ("devices", "save_s", "restart_s"),
    [(16_384, 30, 600), (16_384, 5, 120), (100_000, 30, 600), (100_000, 60, 900), (1_000, 300, 3600)],
)
def test_goodput_is_what_a_simulated_job_comes_to(devices: int, save_s: float, restart_s: float) -> None:
    between_s = between_failures_s(devices)
    interval_s = daly_interval_s(save_s, between_s)
    found = simulated_goodput(interval_s, save_s, restart_s, between_s)
    assert goodput(interval_s, save_s, restart_s, between_s) == pytest.approx(found, rel=0.012)


@pytest.mark.parametrize("save_s", [1.0, 30.0, 300.0, 1500.0])
def test_daly_interval_loses_least(save_s: float) -> None:
    between_s = 2000.0
    best = max(goodput(1.02**power, save_s, 60.0, between_s) for power in range(500))
    chosen = goodput(daly_interval_s(save_s, between_s), save_s, 60.0, between_s)
    assert chosen == pytest.approx(best, rel=2e-3)


def test_saving_that_takes_longer_than_the_time_between_failures_still_has_an_interval() -> None:
    assert daly_interval_s(500.0, 100.0) == 100.0
    assert 0.0 < goodput(100.0, 500.0, 10.0, 100.0) < 0.01


def test_first_order_is_never_above_the_exact_share() -> None:
    for devices in (8, 512, 16_384, 131_072):
        for save_s, restart_s in ((1, 60), (30, 600), (120, 1800)):
            between_s = between_failures_s(devices)
            interval_s = young_interval_s(save_s, between_s)
            exact = goodput(interval_s, save_s, restart_s, between_s)
            assert first_order_goodput(interval_s, save_s, restart_s, between_s) <= exact


def test_asynchronous_saving_blocks_for_the_copy_alone() -> None:
    gigabytes = 4e9
    copied, written = save_seconds(gigabytes), save_seconds(gigabytes, asynchronous=False)
    assert copied.value == pytest.approx(1.0 + 4.0 / 20.0)
    assert written.value == pytest.approx(copied.value + 4.0 / 0.12)
    for taken in (copied, written, restart_seconds(gigabytes), restart_seconds(gigabytes, 0.01)):
        assert 0.0 < taken.low < taken.value < taken.high
    assert restart_seconds(gigabytes, 0.01).value == pytest.approx(600.0 + 400.0)


def test_llama_405b_keeps_more_than_nine_tenths_of_its_time() -> None:
    # arXiv:2407.21783, section 3.3.4: "higher than 90% effective training time" on 16,384 GPUs.
    found = reliability(16_384, 12 * 405e9 / 16_384)
    assert 0.9 < found.goodput.value < 0.96
    assert found.goodput.low < found.goodput.value < found.goodput.high < 1.0
    assert found.expected_failures(54 * 24) == pytest.approx(419, rel=0.01)


def test_more_devices_fail_more_often_and_save_more_often() -> None:
    jobs = [reliability(devices, 1e9) for devices in (64, 1024, 16_384, 131_072)]
    assert [job.goodput.value for job in jobs] == sorted((job.goodput.value for job in jobs), reverse=True)
    assert [job.interval_s for job in jobs] == sorted((job.interval_s for job in jobs), reverse=True)


def test_checkpoints_do_not_overtake_the_storage_they_are_written_to() -> None:
    slow = reliability(131_072, 200e9)
    assert slow.interval_s >= 200.0 / 0.12
    assert math.isfinite(slow.goodput.value) and slow.goodput.low >= 0.0
