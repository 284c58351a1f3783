"""What a row of metrics tells of energy: sums since its stage began, over all attempts.

An attempt that ended in order told what it drew after its last row by its last event, with the same columns.
"""

from bessemer.energy.quantity import UNKNOWN, Quantity
from bessemer.energy.reading import NODE, PAUSED
from bessemer.rundir import Row

ENERGY_COLUMNS = (
    *("energy_j", "energy_low_j", "energy_high_j", "energy_basis", "energy_parts_j"),
    *("energy_gaps", "energy_gap_s", "energy_phases_j", "time_phases_s"),
)


def newest_reading(rows: list[Row], events: list[Row]) -> Row:
    """The last row, with the energy that its attempt ended with where an event tells (`done`, `stop`)."""
    last = rows[-1] if rows else {}
    ends = [event for event in events if "energy_j" in event and attempt_of(event) >= attempt_of(last)]
    return {**last, **{name: ends[-1][name] for name in ENERGY_COLUMNS}} if ends else last


def attempt_of(row: Row) -> int:
    """{}: before any."""
    return int(row.get("attempt", 1 if row else 0))


def energy_of(row: Row) -> Quantity:
    if row.get("energy_j") is None:
        return UNKNOWN
    band = row.get("energy_low_j"), row.get("energy_high_j")
    return Quantity(row["energy_j"], *band, row.get("energy_basis") or "assumed")


def part_j(row: Row, component: str) -> float:
    """0 where there is no such part, or it is not known (then no sum is)."""
    told = (row.get("energy_parts_j") or {}).get(component) or {}
    return float(told.get("value") or 0.0)


def phase_j(row: Row, name: str) -> float:
    """0 where the row does not tell."""
    return float((row.get("energy_phases_j") or {}).get(name) or 0.0)


def phase_s(row: Row, name: str) -> float:
    """0 where the row does not tell."""
    return float((row.get("time_phases_s") or {}).get(name) or 0.0)


def time_s(row: Row) -> float:
    """In steps."""
    return float(row.get("time_s") or 0.0)


def held_s(row: Row) -> float:
    """In steps and in pauses, in which the machine around the devices draws on."""
    return time_s(row) + phase_s(row, PAUSED)


def with_node_meter(row: Row, before: Row) -> float:
    """Share of the machines that had a meter of the whole node since the reading before."""
    if part_j(row, NODE) == part_j(before, NODE):
        return 0.0
    return float(row.get("energy_machines_with_node_meter", 1) / row.get("energy_machines", 1))
