"""Work beside training as an account reads it: what metering/beside.py kept, as attempts of a stage."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from bessemer.energy.accounting.ledger import StageLedger
from bessemer.energy.metering.beside import DATA, EVALUATE, EXPORT
from bessemer.energy.power import Band
from bessemer.energy.reading import Drawn, Tally, worst
from bessemer.rundir import Row, read_object, read_rows

_SUMS = ("energy_j", "energy_low_j", "energy_high_j", "energy_gap_s", "energy_gaps", "seconds")


@dataclass(frozen=True)
class Work:
    """All work of one kind."""

    ledger: StageLedger
    counts: bool  # in this run


def works(run: Path, data: Sequence[Path]) -> dict[str, Work]:
    """By kind. data: the folders that the run trains on."""
    rows = read_rows(run / "energy.jsonl")
    found = {kind: [row for row in rows if row["kind"] == kind] for kind in (DATA, EVALUATE, EXPORT)}
    counts = dict.fromkeys(found, True)
    if not found[DATA]:
        told = [read_object(folder / "energy.json") for folder in data]
        found[DATA], counts[DATA] = [row for row in told if row is not None], False
    return {kind: Work(_ledger(own), counts[kind]) for kind, own in found.items() if own}


def _ledger(rows: Sequence[Row]) -> StageLedger:
    """As the rows of a stage, each of an attempt of its own."""
    told = [
        {**sums, "attempt": number, "step": number, "time_s": sums["seconds"]}
        for number, sums in enumerate(accumulate(rows, _added), start=1)
    ]
    begins = [
        {"kind": "start", "attempt": number, "time": row["time"], "step": number}
        for number, row in enumerate(rows, start=1)
    ]
    return StageLedger(told, begins)


def _added(before: Row, row: Row) -> Row:
    tally = Tally(before["energy_parts_j"])
    for component, told in row["energy_parts_j"].items():
        if told["value"] is None:
            tally.lose(component)
        for basis, band in told["by_basis"].items():
            tally.add(Drawn(component, Band(*band), basis))
    return {
        **{name: _sum(before[name], row[name]) for name in _SUMS},
        "energy_basis": worst(before["energy_basis"], row["energy_basis"]),
        "energy_parts_j": tally.to_json(),
    }


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other
