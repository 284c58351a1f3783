"""The energy of a row, summed over several machines: each one's columns as numbers that ranks can exchange.

Bands add up, off by their most at once. A basis is the worst of all, gaps are counted together; seconds of
phases are the first machine's, as all machines are in the same phase. What one machine does not know is
unknown of the sum (NaN on the way). A machine that reads its whole node beside one that does not: the sum
has its node, and the account (energy/accounting/ledger.py) is told of how many machines that holds.
"""

import math
from collections.abc import Sequence
from typing import Any

from bessemer.energy.reading import ACCELERATOR, BASES, CPU, MEMORY, NODE, OTHER, PHASES
from bessemer.rundir import Row

_COMPONENTS = (ACCELERATOR, CPU, MEMORY, NODE, OTHER)
_SUMS = ("power_w", "energy_j", "energy_low_j", "energy_high_j", "energy_gaps", "energy_gap_s")
_ENDS = ("value", "low", "high")
_ABSENT, _KNOWN, _UNKNOWN = 0.0, 1.0, 2.0
# Added up: whether it tells at all, whether by a meter of its node, sums, joules of phases, bands by basis.
_ADDED = 2 + len(_SUMS) + len(PHASES) + len(_COMPONENTS) * len(BASES) * len(_ENDS)
# The largest counts: basis of the sum, what is known of each component.
_LARGEST = 1 + len(_COMPONENTS)


def to_numbers(row: Row | None, *, with_node: bool = False) -> list[float]:
    """row: a machine's columns; None: of a rank that meters nothing. with_node: by a meter of the node."""
    if row is None:
        return [0.0] * (_ADDED + _LARGEST)
    parts, phases = row["energy_parts_j"], row["energy_phases_j"]
    numbers = [1.0, float(with_node), *(_number(row[name]) for name in _SUMS)]
    numbers += [math.nan if phases is None else _number(phases.get(name, 0.0)) for name in PHASES]
    for name in _COMPONENTS:
        by_basis = parts.get(name, {}).get("by_basis", {})
        numbers += [end for basis in BASES for end in by_basis.get(basis, (0.0, 0.0, 0.0))]
    numbers.append(float(BASES.index(row["energy_basis"])))
    return [*numbers, *(_state(parts.get(name)) for name in _COMPONENTS)]


def summed(told: Sequence[Sequence[float]], own: Row, machines: int) -> Row:
    """told: `to_numbers` of every rank; own: the first machine's columns."""
    columns = list(zip(*told, strict=True))
    added = [sum(column) for column in columns[:_ADDED]]
    basis, *states = [max(column) for column in columns[_ADDED:]]
    answers, with_node, *rest = added
    assert answers == machines, f"{answers} of {machines} machines have a meter"
    sums = {name: _told(value) for name, value in zip(_SUMS, rest, strict=False)}
    rest = rest[len(_SUMS) :]
    phases = {name: _told(value) for name, value in zip(PHASES, rest, strict=False)}
    began = own["energy_phases_j"]
    return {
        **own,
        **sums,
        "energy_gaps": round(sums["energy_gaps"] or 0.0),
        "energy_basis": BASES[int(basis)],
        "energy_phases_j": None if began is None else {name: phases[name] for name in began},
        "energy_parts_j": _parts(rest[len(PHASES) :], states),
        "energy_machines": machines,
        "energy_machines_with_node_meter": int(with_node),
    }


def _parts(bands: Sequence[float], states: Sequence[float]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    each = len(BASES) * len(_ENDS)
    for number, (name, state) in enumerate(zip(_COMPONENTS, states, strict=True)):
        own = bands[number * each : (number + 1) * each]
        by_basis = {
            basis: list(own[at * len(_ENDS) : (at + 1) * len(_ENDS)]) for at, basis in enumerate(BASES)
        }
        by_basis = {basis: band for basis, band in by_basis.items() if any(band)}
        if state != _ABSENT:
            ends = [sum(band) for band in zip(*by_basis.values(), strict=True)] or [0.0] * len(_ENDS)
            found[name] = {
                **{end: value if state == _KNOWN else None for end, value in zip(_ENDS, ends, strict=True)},
                "basis": max(by_basis, key=BASES.index) if by_basis else BASES[-1],
                "by_basis": by_basis,
            }
    return dict(sorted(found.items()))


def _state(part: dict[str, Any] | None) -> float:
    if part is None:
        return _ABSENT
    return _UNKNOWN if part["value"] is None else _KNOWN


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _told(number: float) -> float | None:
    return None if math.isnan(number) else number
