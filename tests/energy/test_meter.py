import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from bessemer.energy.grid.regions import _regions, region
from bessemer.energy.metering.meter import EnergyReading, PowerMeter
from bessemer.energy.power import assumed_accelerator_power, assumed_cpu_power
from bessemer.errors import RecipeError

NOWHERE = Path("/nonexistent")


def rapl(root: Path, folder: str, name: str, microjoules: int, wrap: int = 10**9) -> Path:
    path = root / folder
    path.mkdir(parents=True, exist_ok=True)
    (path / "name").write_text(name + "\n")
    (path / "max_energy_range_uj").write_text(f"{wrap}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    return path / "energy_uj"


def test_counter_is_measured_and_summed_over_packages_without_their_parts(tmp_path: Path) -> None:
    files = [rapl(tmp_path, "intel-rapl:0", "package-0", 0), rapl(tmp_path, "intel-rapl:1", "package-1", 0),
             rapl(tmp_path, "intel-rapl:0:0", "dram", 0), rapl(tmp_path, "intel-rapl:0:1", "core", 0),
             rapl(tmp_path, "intel-rapl:2", "psys", 0),
             rapl(tmp_path, "intel-rapl-mmio:0", "package-0", 0)]  # fmt: skip
    meter = PowerMeter(cores=2, powercap=tmp_path)
    for file in files:
        file.write_text("2000000")
    reading = meter.read()
    assert reading.energy.joules == 6.0 and reading.energy.basis == "measured"
    assert reading.power_w is not None and reading.power_w > 0
    assert meter.read().energy.joules == 6.0  # nothing used, nothing added


def test_counter_that_wraps_goes_on(tmp_path: Path) -> None:
    file = rapl(tmp_path, "intel-rapl:0", "package-0", 900_000_000, wrap=999_999_999)
    meter = PowerMeter(powercap=tmp_path)
    file.write_text("100000000")
    assert meter.read().energy.joules == pytest.approx(200.0)


def test_energy_of_earlier_attempts_is_carried_on_with_its_basis(tmp_path: Path) -> None:
    file = rapl(tmp_path, "intel-rapl:0", "package-0", 0)
    meter = PowerMeter(EnergyReading(100.0, 50.0, 200.0, "assumed"), powercap=tmp_path)
    file.write_text("5000000")
    energy = meter.read().energy
    assert (energy.joules, energy.basis) == (105.0, "assumed")
    assert (energy.low, energy.high) == pytest.approx((54.75, 205.25))  # RAPL within 5 %


def test_cpu_without_a_counter_is_assumed_with_a_band() -> None:
    meter = PowerMeter(cores=2, powercap=NOWHERE)
    time.sleep(0.02)
    reading = meter.read()
    energy = reading.energy
    assert energy.basis == "assumed"
    assert 0 < energy.low < energy.joules < energy.high
    assert 4.0 <= reading.power_w <= 14.0
    assert meter.parts == [{"name": "CPU by watts per core", "basis": "assumed", "component": "cpu"}]


def test_accelerator_without_a_meter_makes_the_energy_unknown() -> None:
    meter = PowerMeter(cores=2, accelerators=(0, 1), powercap=NOWHERE)
    assert meter.missing == ["accelerator 0", "accelerator 1"]
    assert meter.read().energy.joules is None


def test_accelerator_is_read_by_its_uuid_and_an_unknown_one_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    joules = {"GPU-a": 100.0, "GPU-b": 500.0}

    class NotFound(Exception):
        pass

    def by_uuid(uuid: str) -> str:
        if uuid not in joules:
            raise NotFound
        return uuid

    nvml = SimpleNamespace(
        NVMLError=NotFound,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: sorted(joules)[index],
        nvmlDeviceGetHandleByUUID=by_uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: 1000.0 * joules[handle],
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    rest = PowerMeter(powercap=NOWHERE)
    for device, used_j in (("GPU-b", 70.0), (1, 70.0), ("GPU-a", 0.0)):
        meter = PowerMeter(accelerators=[device], powercap=NOWHERE)
        joules["GPU-b"] += 70.0
        assert not meter.missing and meter.parts[0]["name"] == f"NVML device {device}"
        assert meter.read().energy.joules == pytest.approx(used_j + (rest.read().energy.joules or 0), abs=5)
    assert PowerMeter(accelerators=["mps:0"], powercap=NOWHERE).missing == ["accelerator mps:0"]


def test_reading_costs_under_a_millisecond(tmp_path: Path) -> None:
    rapl(tmp_path, "intel-rapl:0", "package-0", 0)
    for meter in (PowerMeter(powercap=tmp_path), PowerMeter(cores=2, powercap=NOWHERE)):
        begin_s = time.perf_counter()
        for _ in range(50):
            meter.read()
        assert (time.perf_counter() - begin_s) / 50 < 1e-3


def test_assumed_power_grows_with_what_is_busy_and_stays_ordered() -> None:
    idle, busy = assumed_cpu_power(8, 0.0), assumed_cpu_power(8, 8.0)
    assert idle.low < idle.value < idle.high and idle.value < busy.value
    node = assumed_accelerator_power(700.0, 250.0, 8)
    assert node.low < 8400 / 8 * 0.9 < node.high  # measured node of 8 H100s at its maximum: 8.4 kW


def test_region_is_found_by_code_and_name_and_a_wrong_one_is_an_error() -> None:
    assert region("DEU") == region("germany")
    assert region("gcp:europe-west1").pue == 1.09
    low, high = region("WLD").band
    assert low < 473 < high
    with pytest.raises(RecipeError, match="GBR"):
        region("GBRR")


def test_counter_that_wraps_several_times_between_readings_is_kept_up_with(tmp_path: Path) -> None:
    file = rapl(tmp_path, "intel-rapl:0", "package-0", 900_000_000, wrap=999_999_999)
    meter = PowerMeter(powercap=tmp_path)
    for microjoules in (100_000_000, 50_000_000):
        file.write_text(str(microjoules))
        meter.keep_up()
    file.write_text("150000000")
    assert meter.read().energy.joules == pytest.approx(200.0 + 950.0 + 100.0)
    assert meter.read().energy.joules == pytest.approx(1250.0)


def test_parts_and_gaps_of_earlier_attempts_are_carried_on(tmp_path: Path) -> None:
    file = rapl(tmp_path, "intel-rapl:0", "package-0", 0)
    meter = PowerMeter(powercap=tmp_path)
    file.write_text("5000000")
    meter.read()
    meter.gaps.count, meter.gaps.seconds = 2, 7.5
    row = json.loads(json.dumps(meter.columns))
    again = PowerMeter(powercap=tmp_path, earlier=row)
    file.write_text("8000000")
    again.read()
    assert again.breakdown["cpu"]["value"] == pytest.approx(8.0)
    assert (again.columns["energy_gaps"], again.columns["energy_gap_s"]) == (2, 7.5)
    assert PowerMeter(powercap=tmp_path, earlier={"step": 3}).breakdown == {}


def test_every_region_has_an_intensity_above_zero_and_names_near_a_wrong_one_are_told() -> None:
    regions = set(_regions().values())
    assert len(regions) > 200 and all(1.0 < entry.g_co2e_per_kwh < 1500.0 for entry in regions)
    with pytest.raises(RecipeError) as caught:
        region("gcp:europe-west99")
    assert caught.value.fix.count("gcp:europe-west") == 3
