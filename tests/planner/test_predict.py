from dataclasses import replace

import pytest

from bessemer.formulas.flops import train_flops_per_token
from bessemer.hardware import Ceilings
from bessemer.planner.calibrated.step_time import between_widths
from bessemer.planner.machine.facts import Facts, cluster_facts
from bessemer.planner.plan import UNKNOWN, Estimate
from bessemer.planner.resolve import resolve
from bessemer.planner.speed import cpu_share
from bessemer.recipe.load import load, parse

CEILINGS = Ceilings("a CPU", 2.0, 0.4, 20.0, 2, "2.13.0", "2026-01-01")
CPU = Facts("a CPU", "cpu", cores=2, ceilings=CEILINGS)
RECIPE = parse('name = "a"\n[pretrain]\nsteps = 100\nbatch_tokens = 8192\n', "r", [])


def test_quantities_agree_with_each_other() -> None:
    plan = resolve(RECIPE, CPU)
    predicted = {name: row.value for name, row in plan.predicted.items()}
    assert predicted["tokens_per_s"] * predicted["step_time_s"] == pytest.approx(8192)
    per_token = train_flops_per_token(plan.shape, 1024)
    assert predicted["tflops_per_device"] * 1e12 == pytest.approx(predicted["tokens_per_s"] * per_token)
    assert predicted["mfu"] == pytest.approx(predicted["tflops_per_device"] / 2.0)
    assert predicted["hours"] * 3600 == pytest.approx(100 * predicted["step_time_s"])
    for row in plan.predicted.values():
        assert row.value is None or row.low <= row.value <= row.high


def test_unknown_stays_unknown() -> None:
    predicted = resolve(RECIPE, replace(CPU, ceilings=None)).predicted
    assert {name for name, row in predicted.items() if row.value is not None} == {"memory_gib"}
    stranger = Facts("Some New GPU", "gpu", ceilings=CEILINGS)
    predicted = resolve(RECIPE, stranger).predicted
    assert predicted["tokens_per_s"].value is not None
    assert predicted["mfu"] == predicted["usd"] == predicted["kwh"] == UNKNOWN


def test_carbon_needs_a_region_and_money_a_price() -> None:
    assert resolve(RECIPE, CPU).predicted["kg_co2e"] == UNKNOWN
    placed = parse(
        'name="a"\n[pretrain]\nsteps=100\n[cluster]\nregion="DEU"\nusd_per_device_hour=1.0', "r", []
    )
    predicted = resolve(placed, CPU).predicted
    assert predicted["kg_co2e"].value == pytest.approx(0.3441 * predicted["kwh"].value)
    assert predicted["usd"].value == predicted["device_hours"].value


def test_efficiency_runs_through_its_points_and_is_flat_outside() -> None:
    curve = ((128, 0.1), (512, 0.3))
    assert [between_widths(curve, hidden) for hidden in (64, 128, 256, 512, 4096)] == pytest.approx(
        [0.1, 0.1, 0.2, 0.3, 0.3]
    )


def test_slower_cores_reach_a_larger_share_and_the_measured_one_is_in_the_band() -> None:
    share = between_widths(CPU.curve, 512)
    assert cpu_share(share, 1.0) == pytest.approx(share)
    shares = [cpu_share(share, tflops) for tflops in (2.0, 1.0, 0.5, 0.1, 0.0)]
    assert shares == sorted(shares) and shares[-1] == pytest.approx(0.97)
    epyc = cpu_share(share, 0.205)
    assert epyc == pytest.approx(0.74, abs=0.005) and 0.7 * epyc < 0.343 / 0.41 < 1.3 * epyc


def test_llama_405b_takes_the_published_device_hours_within_its_band() -> None:
    predicted = resolve(load("llama-405b", []).recipe, cluster_facts("H100", 16384)).predicted
    hours = predicted["device_hours"]
    assert hours.low < 30.84e6 < hours.high
    assert hours.value == pytest.approx(30.84e6, rel=0.15)


def test_full_recomputation_takes_about_a_third_longer_and_less_memory() -> None:
    again = parse('name="a"\n[pretrain]\nsteps=100\nbatch_tokens=8192\nrecompute="full"', "r", [])
    plain, recomputed = resolve(RECIPE, CPU).predicted, resolve(again, CPU).predicted
    assert 1.2 < recomputed["step_time_s"].value / plain["step_time_s"].value < 1.34
    assert recomputed["memory_gib"].value < plain["memory_gib"].value


def test_estimates_turn_over_and_multiply_with_the_weaker_basis() -> None:
    one, other = Estimate(2.0, 1.0, 4.0, "modelled"), Estimate(3.0, 2.0, 5.0, "assumed")
    assert one.inverse() == Estimate(0.5, 0.25, 1.0, "modelled")
    assert one.multiplied(other) == Estimate(6.0, 2.0, 20.0, "assumed")
    assert one.multiplied(UNKNOWN) == UNKNOWN.times(3) == UNKNOWN.inverse() == UNKNOWN
