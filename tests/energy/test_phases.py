"""A meter read at the borders of phases: by a counter that is moved by hand, each joule is of one phase."""

import json
import math
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from making_meters import Clock, Powercap, add

from bessemer.energy.metering.machines import summed, to_numbers
from bessemer.energy.metering.meter import EnergyReading, NodeSources, PowerMeter
from bessemer.energy.metering.phases import PhasedMeter
from bessemer.rundir import Row

NOTHING = NodeSources(hwmon=Path("/nonexistent"), ipmi=False)


class Machine:
    """One package of a CPU, and its meter."""

    def __init__(self, folder: Path, clock: Clock, earlier: Row | None = None, name: str = "one") -> None:
        powercap = Powercap(folder / name)
        self.counter = powercap.zone("intel-rapl:0", "package-0")
        self.clock = clock
        row = earlier or {}
        before = [row.get(f"energy_{end}j", 0.0) for end in ("", "low_", "high_")]
        start = EnergyReading(*before, row.get("energy_basis", "measured"))
        meter = PowerMeter(start, powercap=powercap.links, node=NOTHING, earlier=row)
        self.meter = PhasedMeter(meter, row)

    def draws(self, watts: float, seconds: float) -> None:
        self.clock.passes(seconds)
        add(self.counter, watts * seconds)

    def row(self) -> Row:
        reading = self.meter.read()
        energy = reading.energy
        own = {"power_w": reading.power_w, "energy_j": energy.joules, "energy_basis": energy.basis}
        ends = {"energy_low_j": energy.low, "energy_high_j": energy.high}
        return json.loads(json.dumps({**own, **ends, **self.meter.meter.columns, **self.meter.columns}))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_each_joule_is_of_one_phase_and_all_add_up(tmp_path: Path, clock: Clock) -> None:
    one = Machine(tmp_path, clock)
    one.draws(50.0, 2.0)
    one.meter.started()
    one.draws(100.0, 10.0)
    with one.meter.phase("paused") as paused:
        one.draws(20.0, 5.0)
        with one.meter.phase("saving") as saving:
            one.draws(60.0, 1.0)
        one.draws(20.0, 5.0)
    one.draws(100.0, 3.0)
    row = one.row()
    assert row["energy_phases_j"] == pytest.approx(
        {"starting": 100.0, "steps": 1300.0, "paused": 200.0, "saving": 60.0}
    )
    assert row["time_phases_s"] == pytest.approx(
        {"starting": 2.0, "steps": 13.0, "paused": 10.0, "saving": 1.0}
    )
    assert sum(row["energy_phases_j"].values()) == pytest.approx(row["energy_j"])
    assert (paused.joules, paused.seconds) == pytest.approx((200.0, 10.0))
    assert saving.joules == pytest.approx(60.0)


def test_power_of_a_row_leaves_beginning_and_pauses_out(tmp_path: Path, clock: Clock) -> None:
    one = Machine(tmp_path, clock)
    one.draws(5.0, 100.0)
    one.meter.started()
    one.draws(100.0, 9.0)
    with one.meter.phase("paused"):
        one.draws(5.0, 100.0)
    with one.meter.phase("saving"):
        one.draws(50.0, 1.0)
    assert one.row()["power_w"] == pytest.approx(95.0)
    one.draws(80.0, 1.0)
    assert one.row()["power_w"] == pytest.approx(80.0)


def test_phase_that_ends_by_an_error_is_booked(tmp_path: Path, clock: Clock) -> None:
    one = Machine(tmp_path, clock)
    one.meter.started()
    with suppress(KeyboardInterrupt), one.meter.phase("validation"):
        one.draws(10.0, 3.0)
        raise KeyboardInterrupt
    one.draws(10.0, 1.0)
    assert one.row()["energy_phases_j"] == pytest.approx({"starting": 0.0, "validation": 30.0, "steps": 10.0})


def test_phases_go_on_in_the_next_attempt_and_are_unknown_where_the_first_had_none(
    tmp_path: Path, clock: Clock
) -> None:
    one = Machine(tmp_path, clock)
    one.draws(10.0, 1.0)
    one.meter.started()
    one.draws(10.0, 4.0)
    row = one.row()
    again = Machine(tmp_path, clock, row, name="again")
    again.draws(10.0, 2.0)
    again.meter.started()
    assert again.row()["energy_phases_j"] == pytest.approx({"starting": 30.0, "steps": 40.0})
    del row["energy_phases_j"], row["time_phases_s"]
    old = Machine(tmp_path, clock, row, name="old")
    old.draws(10.0, 1.0)
    told = old.row()
    assert told["energy_phases_j"] is told["time_phases_s"] is None
    assert told["energy_j"] == pytest.approx(60.0)


def test_two_machines_are_summed_part_by_part_and_phase_by_phase(tmp_path: Path, clock: Clock) -> None:
    first, other = Machine(tmp_path, clock), Machine(tmp_path, clock, name="other")
    first.meter.started()
    other.meter.started()
    for seconds, share in ((10.0, 1.0), (2.0, 0.5)):
        with ExitStack() as phases:
            if share < 1.0:
                for machine in (first, other):
                    phases.enter_context(machine.meter.phase("validation"))
            clock.passes(seconds)
            add(first.counter, 100.0 * share * seconds)
            add(other.counter, 300.0 * share * seconds)
    rows = [first.row(), other.row()]
    told = summed([to_numbers(rows[0]), to_numbers(None), to_numbers(rows[1], with_node=True)], rows[0], 2)
    assert told["energy_j"] == pytest.approx(1100.0 + 3300.0)
    assert told["energy_low_j"] == pytest.approx(0.95 * 4400.0)
    assert told["power_w"] == pytest.approx(4400.0 / 12.0)
    assert told["energy_phases_j"] == pytest.approx({"starting": 0.0, "steps": 4000.0, "validation": 400.0})
    assert told["time_phases_s"] == rows[0]["time_phases_s"]  # both are in the same phase
    assert told["energy_parts_j"]["cpu"]["value"] == pytest.approx(4400.0)
    assert told["energy_parts_j"]["cpu"]["by_basis"]["measured"] == pytest.approx([4400.0, 4180.0, 4620.0])
    assert (told["energy_machines"], told["energy_machines_with_node_meter"]) == (2, 1)
    assert told["energy_basis"] == "measured"


def test_what_one_machine_does_not_know_is_unknown_of_the_sum(tmp_path: Path, clock: Clock) -> None:
    one = Machine(tmp_path, clock)
    one.meter.started()
    one.draws(100.0, 10.0)
    known = one.row()
    part = {"value": None, "low": None, "high": None, "basis": "assumed", "by_basis": {}}
    unknown = {
        **known,
        **dict.fromkeys(("energy_j", "energy_low_j", "energy_high_j", "power_w")),
        "energy_basis": "assumed",
        "energy_parts_j": {**known["energy_parts_j"], "accelerator": part},
        "energy_phases_j": {"starting": 0.0, "steps": None},
        "energy_gaps": 2,
    }
    told = summed([to_numbers(known), to_numbers(unknown)], known, 2)
    assert told["energy_j"] is told["power_w"] is told["energy_phases_j"]["steps"] is None
    assert told["energy_phases_j"]["starting"] == 0.0 and told["energy_basis"] == "assumed"
    assert told["energy_parts_j"]["accelerator"]["value"] is None
    assert told["energy_parts_j"]["cpu"]["value"] == pytest.approx(2000.0)
    assert told["energy_gaps"] == 2 and not any(
        math.isnan(value) for value in told.values() if isinstance(value, float)
    )
