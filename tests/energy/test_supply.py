import time
from pathlib import Path

import pytest
from making_meters import Clock, Powercap, add, chip, program

from bessemer.energy.metering.meter import NodeSources, PowerMeter
from bessemer.energy.readers import program as asking
from bessemer.errors import RecipeError

NOWHERE = Path("/nonexistent")
IPMI = """
    Instantaneous power reading:                   WATTS Watts
    Minimum during sampling period:                  3 Watts
    Maximum during sampling period:                999 Watts
    Average power reading over sample period:      211 Watts
    IPMI timestamp:                           Sat Nov 28 10:00:00 2026
    Sampling period:                          00000001 Seconds.
    Power reading state is:                   activated
"""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def meter_of(hwmon: Path = NOWHERE, powercap: Path = NOWHERE, **more: object) -> PowerMeter:
    sources = NodeSources(hwmon=hwmon, ipmi=bool(more.pop("ipmi", False)), **more)
    return PowerMeter(cores=2, powercap=powercap, node=sources)


def test_node_reading_is_the_sum_and_what_its_parts_leave_is_other(tmp_path: Path, clock: Clock) -> None:
    tree = Powercap(tmp_path)
    package = tree.zone("intel-rapl:0", "package-0")
    acpi = chip(tmp_path / "hwmon", 0, "power_meter", power1_average="300000000", power1_accuracy="2.0%")
    chip(tmp_path / "hwmon", 1, "amdgpu", power1_average="90000000")
    chip(tmp_path / "hwmon", 2, "pmbus", power1_label="pin", power1_input="333000000")
    meter = meter_of(tmp_path / "hwmon", tree.links)
    (acpi / "power1_average").write_text("500000000\n")
    add(package, 1000.0)
    clock.passes(10.0)
    energy = meter.read().energy
    assert (energy.joules, energy.basis) == (4000.0, "measured")  # of 300 and 500 W the mean
    assert (energy.low, energy.high) == pytest.approx((3920.0, 4080.0))  # its own accuracy
    values = {name: told["value"] for name, told in meter.breakdown.items()}
    assert values == {"node": 4000.0, "cpu": 1000.0, "other": 3000.0}
    assert meter.parts[0]["component"] == "node"


def test_of_several_supplies_the_input_sides_are_added(tmp_path: Path, clock: Clock) -> None:
    for number in (0, 1):
        chip(tmp_path, number, "dps650ab", power1_label="pin", power1_input="210000000",
             power2_label="pout1", power2_input="200000000")  # fmt: skip
    meter = meter_of(tmp_path)
    clock.passes(2.0)
    assert meter.read().energy.joules == pytest.approx(840.0)


def test_supply_that_fails_is_bridged_by_its_parts_and_the_rest_so_far(tmp_path: Path, clock: Clock) -> None:
    tree = Powercap(tmp_path)
    package = tree.zone("intel-rapl:0", "package-0")
    supply = chip(tmp_path / "hwmon", 0, "corsairpsu", power1_label="power total", power1_input="400000000")
    meter = meter_of(tmp_path / "hwmon", tree.links)
    for text in ("400000000", "-5"):
        (supply / "power1_input").write_text(text)
        add(package, 1000.0)
        clock.passes(10.0)
        energy = meter.read().energy
    assert energy.joules == pytest.approx(8000.0) and energy.basis == "modelled"
    assert meter.breakdown["node"]["by_basis"]["measured"][0] == 4000.0
    assert (meter.gaps.count, meter.gaps.seconds) == (1, 10.0)


def test_supply_that_fails_from_the_first_reading_on_leaves_the_sum_unknown(
    tmp_path: Path, clock: Clock
) -> None:
    supply = chip(tmp_path, 0, "power_meter", power1_average="400000000")
    meter = meter_of(tmp_path)
    (supply / "power1_average").unlink()
    clock.passes(10.0)
    reading = meter.read()
    assert reading.power_w is None and reading.energy.joules is None
    assert meter.breakdown["node"]["value"] is None and meter.breakdown["cpu"]["value"] > 0


def test_chips_that_are_parts_are_no_node(tmp_path: Path) -> None:
    chip(tmp_path, 0, "amdgpu", power1_average="90000000", power1_label="slowPPT")
    chip(tmp_path, 1, "ina226", power1_input="1000000")
    chip(tmp_path, 2, "ir35221", power1_label="pin", power1_input="70000000")  # a regulator of the CPU's
    assert [part["component"] for part in meter_of(tmp_path).parts] == ["cpu"]


def wait_for(file: Path) -> None:
    for _ in range(500):
        if file.exists():
            time.sleep(0.02)  # from its last word to its end
            return
        time.sleep(0.01)
    raise AssertionError(f"{file} never came")


def test_ipmi_is_asked_without_waiting_for_its_answer(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = tmp_path / "answer"
    answer.write_text(IPMI.replace("WATTS", "200"))
    done = tmp_path / "done"
    program(tmp_path / "bin", "ipmitool", f'test "$*" = "dcmi power reading" || exit 1\n'
            f'cat {answer}\ntouch {done}')  # fmt: skip
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    meter = meter_of(ipmi=True)
    assert meter.parts[0] == {"name": "IPMI power reading", "basis": "measured", "component": "node"}
    answer.write_text(IPMI.replace("WATTS", "400"))
    done.unlink()
    clock.passes(10.0)
    assert meter.read().energy.joules == pytest.approx(2000.0)  # asked now; the answer is not here yet
    wait_for(done)
    clock.passes(1.0)
    assert meter.read().energy.joules == pytest.approx(2000.0 + 300.0)
    meter.close()


@pytest.mark.parametrize("body", ["echo 'Could not open device at /dev/ipmi0' >&2\nexit 1", "echo busy"])
def test_ipmi_that_is_closed_to_us_is_no_meter(
    tmp_path: Path, body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "bin", "ipmitool", body)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert [part["component"] for part in meter_of(ipmi=True).parts] == ["cpu"]


def test_command_of_the_users_goes_before_all_other_meters_of_the_node(tmp_path: Path, clock: Clock) -> None:
    chip(tmp_path / "hwmon", 0, "power_meter", power1_average="300000000")
    words = [str(program(tmp_path, "watts", 'echo "$1 W"')), "120; rm -rf /"]
    with pytest.raises(RecipeError, match=r"energy\.command tells no watts") as caught:
        meter_of(tmp_path / "hwmon", command=words)
    assert "120; rm -rf /" in caught.value.found  # a word, which no shell took apart
    meter = meter_of(tmp_path / "hwmon", command=[words[0], "120"])
    clock.passes(5.0)
    assert meter.read().energy.joules == pytest.approx(600.0)
    meter.close()


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("exit 3", "nothing, exit 3"),
        ("echo -4", "-4"),
        ("echo 0", "0"),
        ("echo nan", "nan"),
        ("sleep 8", "no answer"),
        ("echo 100\nexit 1", "100"),
    ],
)
def test_command_that_tells_no_watts_is_an_error_with_what_it_said(
    tmp_path: Path, body: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "LONGEST_S", 0.3)
    begin_s = time.perf_counter()
    with pytest.raises(RecipeError) as caught:
        meter_of(command=[str(program(tmp_path, "watts", body))])
    assert time.perf_counter() - begin_s < 4.0  # also of a program whose child lives on
    assert told in caught.value.found and "prints" not in caught.value.found


def test_command_that_is_not_there_is_an_error() -> None:
    with pytest.raises(RecipeError, match="No such file"):
        meter_of(command=["/nonexistent/watts"])


def test_command_that_hangs_in_the_run_is_ended_and_leaves_a_gap(tmp_path: Path, clock: Clock) -> None:
    slow = tmp_path / "slow"
    words = [str(program(tmp_path, "watts", f"test -e {slow} && sleep 8\necho 100"))]
    meter = meter_of(command=words)
    slow.touch()
    clock.passes(10.0)
    assert meter.read().energy.joules == pytest.approx(1000.0)
    clock.passes(6.0)
    energy = meter.read().energy
    assert energy.joules == pytest.approx(1600.0, rel=0.1) and energy.basis == "assumed"
    assert (meter.gaps.count, meter.gaps.seconds) == (1, 6.0)
    meter.close()
