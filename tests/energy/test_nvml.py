"""The real nvidia-ml-py on a shared object that stands in for the driver, in processes of their own: a
process loads NVML once and for all."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bessemer.energy.metering.meter import NodeSources, PowerMeter

pytestmark = pytest.mark.skipif(importlib.util.find_spec("pynvml") is None, reason="needs nvidia-ml-py")
ONE, TWO = "GPU-11111111-aaaa", "GPU-22222222-bbbb"
PRELUDE = f"""
import json, os, sys, time
from pathlib import Path
from bessemer.energy.metering.meter import NodeSources, PowerMeter

now = [1000.0]
time.monotonic = lambda: now[0]
rows = dict()

def say(uuid, name="NVIDIA H100 80GB HBM3", mj=5_000_000, mw=400_000, busy=100, limit=700_000):
    rows[uuid] = f"{{uuid}},{{name}},{{mj}},{{mw}},{{busy}},{{limit}}\\n"
    Path(os.environ["FAKE_NVML"]).write_text("".join(rows.values()))

def meter_of(*devices, **more):
    none = NodeSources(hwmon=Path("/nonexistent"), ipmi=False)
    return PowerMeter(accelerators=devices, powercap=Path("/nonexistent"), node=none, **more)

def board(meter, seconds=10.0):
    now[0] += seconds
    meter.read()
    return meter.breakdown["accelerator"]

ONE, TWO = {ONE!r}, {TWO!r}
"""
Run = Callable[[str], Any]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).with_name("fake_nvml.c")
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-Wl,-soname,libnvidia-ml.so.1"]
    subprocess.run(["cc", *flags, "-o", str(folder / "libnvidia-ml.so.1"), str(source)], check=True)
    return folder


@pytest.fixture
def run(library: Path, tmp_path: Path) -> Run:
    """A script, which prints a JSON text, on devices as the script says them."""

    def running(script: str) -> Any:
        environment = {**os.environ, "LD_LIBRARY_PATH": str(library), "FAKE_NVML": str(tmp_path / "devices")}
        words = [sys.executable, "-c", PRELUDE + script]
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return running


def test_energy_counter_of_the_named_device_is_read(run: Run) -> None:
    told = run("""
say(ONE); say(TWO, mj=9_000_000)
meter = meter_of(TWO)
say(ONE, mj=8_000_000); say(TWO, mj=9_007_000)
print(json.dumps([board(meter), meter.parts, meter.missing, meter.gaps.count]))
""")
    assert told[0]["value"] == pytest.approx(7.0) and told[0]["basis"] == "measured"
    assert [told[0]["low"], told[0]["high"]] == pytest.approx([6.65, 7.35])
    assert told[1][0] == {"name": f"NVML device {TWO}", "basis": "measured", "component": "accelerator"}
    assert told[2:] == [[], 0]


def test_device_without_a_counter_has_its_watts_integrated(run: Run) -> None:
    told = run("""
say(ONE, mj=-1, mw=300_000)
meter = meter_of(ONE)
for watts in (500, 500, 100):
    say(ONE, mj=-1, mw=watts * 1000)
    now[0] += 2.0
    meter.keep_up()
print(json.dumps([board(meter, 4.0), meter.parts[0]["name"], meter.gaps.count]))
""")
    assert told[0]["value"] == pytest.approx(2 * 400 + 2 * 500 + 2 * 300 + 4 * 100)
    assert (told[0]["basis"], told[1], told[2]) == ("measured", f"NVML power of {ONE}", 0)


def test_device_without_watts_is_modelled_by_its_utilisation(run: Run) -> None:
    told = run("""
say(ONE, mj=-1, mw=-1, busy=50)
meter = meter_of(ONE)
print(json.dumps([board(meter), meter.parts[0]["basis"]]))
""")
    assert told[0]["value"] == pytest.approx(700 * (0.12 + 0.5 * 0.75) * 10.0)
    assert told[0]["basis"] == told[1] == "modelled"


def test_device_of_which_only_the_name_is_known_is_assumed_by_its_limit(run: Run) -> None:
    told = run("""
say(ONE, mj=-1, mw=-1, busy=-1, limit=-1)
say(TWO, mj=-1, mw=-1, busy=-1, limit=-1, name="Quadro Unheard-of")
meter = meter_of(ONE)
print(json.dumps([board(meter), meter_of(TWO).missing]))
""")
    assert told[0]["basis"] == "assumed" and told[0]["low"] < 7000 * 0.8 == told[0]["value"] < told[0]["high"]
    assert told[1] == [f"accelerator {TWO}"]


def test_counter_that_goes_backwards_is_a_gap_bridged_by_watts(run: Run) -> None:
    told = run("""
say(ONE, mj=5_000_000)
meter = meter_of(ONE)
say(ONE, mj=1_000)           # the driver was loaded anew
first = board(meter, 0.5)
say(ONE, mj=2_000_000)
print(json.dumps([first, board(meter), vars(meter.gaps)]))
""")
    assert told[0]["value"] == pytest.approx(200.0)
    assert told[1]["value"] == pytest.approx(200.0 + 1999.0)
    assert told[2] == {"count": 1, "seconds": 0.5}


def test_counter_that_never_moves_is_no_zero(run: Run) -> None:
    told = run("""
say(ONE, mj=0, mw=250_000)
meter = meter_of(ONE)
print(json.dumps([board(meter), vars(meter.gaps)]))
""")
    assert told == [told[0], {"count": 1, "seconds": 10.0}] and told[0]["value"] == pytest.approx(2500.0)


def test_device_that_is_lost_in_the_run_is_bridged_by_its_band_and_marked(run: Run) -> None:
    told = run("""
say(ONE, mj=5_000_000)
meter = meter_of(ONE)
say(ONE, mj=5_500_000)
board(meter)
say(ONE, mj=-2, mw=-2, busy=-2, limit=-2)
board(meter)
board(meter)
print(json.dumps([meter.breakdown["accelerator"], vars(meter.gaps), meter.read().energy.basis]))
""")
    by_basis = told[0]["by_basis"]
    assert by_basis["measured"][0] == pytest.approx(500.0) and by_basis["assumed"][0] == pytest.approx(
        11200.0
    )
    assert told[1] == {"count": 1, "seconds": 20.0} and told[2] == "assumed"


def test_device_that_is_lost_and_unknown_to_the_catalogue_makes_the_sum_unknown(run: Run) -> None:
    told = run("""
say(ONE, name="Quadro Unheard-of")
meter = meter_of(ONE)
say(ONE, mj=-2, mw=-2, busy=-2, limit=-2, name="Quadro Unheard-of")
lost = board(meter)
say(ONE, mj=9_000_000, name="Quadro Unheard-of")
board(meter)
say(ONE, mj=9_900_000, name="Quadro Unheard-of")
print(json.dumps([lost, board(meter), meter.read().energy.joules, vars(meter.gaps)]))
""")
    assert told[0]["value"] is None and told[1]["value"] is None and told[2] is None
    assert told[3] == {"count": 1, "seconds": 20.0}


def test_while_the_counter_answers_nothing_else_is_asked(run: Run) -> None:
    told = run("""
import ctypes
say(ONE)
meter = meter_of(ONE)
counts = ctypes.CDLL("libnvidia-ml.so.1").fakeCalls
before = counts()
for step in range(20):
    say(ONE, mj=5_000_000 + step * 1000 + 1000)
    board(meter, 0.1)
print(json.dumps(counts() - before))
""")
    assert told == 20


def test_unreachable_driver_leaves_the_band_of_a_named_device_only(run: Run) -> None:
    told = run("""
meter = meter_of(ONE, device_name="H100")
print(json.dumps([board(meter), meter.missing, meter_of(ONE).missing]))
""")
    assert told[0]["basis"] == "assumed" and told[0]["value"] == pytest.approx(5600.0)
    assert told[1:] == [[], [f"accelerator {ONE}"]]


SERIAL = "11a2b3c4d5e6f708"
AMD = "GPU-" + SERIAL.encode().hex()


class AmdSmiError(Exception):
    pass


def test_amd_device_is_found_by_its_serial_and_its_counter_has_a_unit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: dict[str, Any] = {"energy_accumulator": 1000, "counter_resolution": 15.3}

    def lost(handle: str) -> dict[str, Any]:
        if handle == "lost" or not told:
            raise AmdSmiError
        return told

    smi = SimpleNamespace(
        AmdSmiException=AmdSmiError,
        amdsmi_init=lambda: None,
        amdsmi_get_processor_handles=lambda: ["another", "ours"],
        amdsmi_get_gpu_asic_info=lambda handle: {
            "asic_serial": f"0x{SERIAL.upper()}" if handle == "ours" else "0x1",
            "market_name": "AMD Instinct MI300X",
        },
        amdsmi_get_energy_count=lost,
        amdsmi_get_power_info=lambda handle: {"current_socket_power": 500, "average_socket_power": "N/A"},
    )
    monkeypatch.setitem(sys.modules, "amdsmi", smi)
    none = NodeSources(hwmon=Path("/nonexistent"), ipmi=False)
    meter = PowerMeter(accelerators=[AMD, ONE], powercap=Path("/nonexistent"), node=none)
    assert meter.parts[0]["name"] == f"amdsmi device {AMD}" and meter.missing == [f"accelerator {ONE}"]
    told["energy_accumulator"] += 2_000_000
    meter.read()
    by_basis = meter.breakdown["accelerator"]["by_basis"]
    assert by_basis["measured"][0] == pytest.approx(30.6)
