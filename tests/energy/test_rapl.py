import os
import subprocess
import sys
from pathlib import Path

import pytest
from making_meters import Clock, Powercap, add

from bessemer.energy.metering.meter import NodeSources, PowerMeter
from bessemer.energy.power import assumed_cpu_power

NO_NODE = NodeSources(hwmon=Path("/nonexistent"), ipmi=False)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def meter_of(tree: Powercap, cores: int = 2) -> PowerMeter:
    return PowerMeter(cores=cores, powercap=tree.links, node=NO_NODE)


def test_of_a_whole_tree_packages_and_their_memory_count_once(tmp_path: Path, clock: Clock) -> None:
    tree = Powercap(tmp_path)
    counted = [tree.zone("intel-rapl:0", "package-0"), tree.zone("intel-rapl:0:0", "dram"),
               tree.zone("intel-rapl:1", "package-1"), tree.zone("intel-rapl:1:0", "dram")]  # fmt: skip
    left_out = [tree.zone("intel-rapl:0:1", "core"), tree.zone("intel-rapl:0:2", "uncore"),
                tree.zone("intel-rapl:2", "psys"), tree.zone("intel-rapl-mmio:0", "package-0"),
                tree.zone("intel-rapl:3", "package-1"), tree.zone("intel-rapl:3:0", "dram")]  # fmt: skip
    meter = meter_of(tree)
    for counter in [*counted, *left_out]:
        add(counter, 50.0)
    clock.passes(1.0)
    reading = meter.read()
    assert (reading.energy.joules, reading.power_w, reading.energy.basis) == (200.0, 200.0, "measured")
    assert {name: told["value"] for name, told in meter.breakdown.items()} == {"cpu": 100.0, "memory": 100.0}
    assert [(part["component"], part["basis"]) for part in meter.parts] == [("cpu", "measured")]


def test_counter_is_followed_over_many_wraps(tmp_path: Path, clock: Clock) -> None:
    tree = Powercap(tmp_path)
    counter = tree.zone("intel-rapl:0", "package-0", wrap=65_712_999_613)  # 65.7 kJ, as on older parts
    meter = meter_of(tree)
    for _ in range(60):  # an hour at 300 W: 1,080 kJ, sixteen wraps
        add(counter, 300.0 * 60.0, wrap=65_712_999_613)
        clock.passes(60.0)
        meter.keep_up()
    assert meter.read().energy.joules == pytest.approx(300.0 * 3600.0, rel=1e-9)
    assert meter.gaps.count == 0


def test_counter_that_was_reset_is_a_gap_and_not_a_wrap(tmp_path: Path, clock: Clock) -> None:
    tree = Powercap(tmp_path)
    counter = tree.zone("intel-rapl:0", "package-0", microjoules=90_000_000_000)
    meter = meter_of(tree)
    counter.write_text("1000000\n")  # as a wrap it would be 172 kJ in ten seconds
    clock.passes(10.0)
    energy = meter.read().energy
    idle = assumed_cpu_power(2, 0.0)
    assert energy.basis == "assumed" and idle.value * 10 <= energy.joules <= idle.value * 10 + 100
    assert (meter.gaps.count, meter.gaps.seconds) == (1, 10.0)
    add(counter, 500.0)
    clock.passes(10.0)
    assert meter.read().energy.joules == pytest.approx(energy.joules + 500.0)
    assert (meter.gaps.count, meter.gaps.seconds) == (1, 10.0)
    assert set(meter.breakdown["cpu"]["by_basis"]) == {"measured", "assumed"}


def test_counter_that_vanishes_for_a_while_is_bridged_and_the_gap_is_counted(
    tmp_path: Path, clock: Clock
) -> None:
    tree = Powercap(tmp_path)
    counter = tree.zone("intel-rapl:0", "package-0")
    meter = meter_of(tree)
    hidden = counter.rename(counter.with_name("hidden"))
    for _ in range(3):
        clock.passes(5.0)
        assert meter.read().energy.joules is not None
    hidden.rename(counter)
    clock.passes(5.0)
    meter.read()  # only its beginning is known: what it counted meanwhile may have wrapped
    before = meter.breakdown["cpu"]["by_basis"].get("measured", [0.0])[0]
    add(counter, 70.0)
    clock.passes(5.0)
    meter.read()
    assert meter.breakdown["cpu"]["by_basis"]["measured"][0] - before == pytest.approx(70.0)
    assert (meter.gaps.count, meter.gaps.seconds) == (1, 20.0)


def test_package_counter_that_stands_still_is_no_zero(tmp_path: Path, clock: Clock) -> None:
    tree = Powercap(tmp_path)
    tree.zone("intel-rapl:0", "package-0", microjoules=123)
    meter = meter_of(tree)
    clock.passes(30.0)
    energy = meter.read().energy
    assert energy.joules >= assumed_cpu_power(2, 0.0).value * 30 and energy.basis == "assumed"
    assert meter.gaps.seconds == 30.0


def test_memory_that_is_not_fitted_may_stand_still(tmp_path: Path, clock: Clock) -> None:
    tree = Powercap(tmp_path)
    package = tree.zone("intel-rapl:0", "package-0")
    tree.zone("intel-rapl:0:0", "dram")
    meter = meter_of(tree)
    add(package, 90.0)
    clock.passes(30.0)
    assert meter.read().energy.joules == 90.0 and meter.gaps.count == 0


CLOSED = """
import sys
from pathlib import Path
from bessemer.energy.metering.meter import NodeSources, PowerMeter
none = NodeSources(hwmon=Path("/nonexistent"), ipmi=False)
meter = PowerMeter(cores=2, powercap=Path(sys.argv[1]), node=none)
print(meter.parts[0]["basis"], meter.hints)
"""


def test_counter_that_only_root_may_read_is_told_with_how_to_open_it(tmp_path: Path) -> None:
    """In a process without root's rights, which the kernel's own check of modes needs."""
    tree = Powercap(tmp_path)
    for counter in (tree.zone("intel-rapl:0", "package-0"), tree.zone("intel-rapl:0:0", "dram")):
        counter.chmod(0o400)
    folder = tmp_path
    while folder != folder.parent and folder.name != "tmp":
        folder.chmod(0o755)
        folder = folder.parent
    words = [sys.executable, "-c", CLOSED, str(tree.links)]
    if os.getuid() == 0:
        words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *words]
    else:
        for counter in tmp_path.rglob("energy_uj"):
            counter.chmod(0o000)
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert told.startswith("assumed") and "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj" in told
