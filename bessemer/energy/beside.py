"""Joules beside training: preparing data, evaluation, export, each metered as one piece of work.

    RUN/energy.jsonl     a row for each piece of work; what was found done already, or failed, adds none
    DATA/energy.json     what preparing this data drew, in its folder, beside what its hash covers
    DATA/energy.claimed  which run counts that: the first one that trains on it, so that runs which share
                         data add up to what was drawn
Child processes count when they have ended, as the system tells their CPU time then. While the work goes on a
thread looks at the counters, which may wrap within minutes.
Cost: a reading at each end, and one look every 20 s.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from bessemer.durable import write_json
from bessemer.energy.ledger import StageLedger
from bessemer.energy.meter import NodeSources, PowerMeter
from bessemer.energy.power import Band
from bessemer.energy.reading import Drawn, EnergyReading, Tally, worst
from bessemer.errors import UserError
from bessemer.hardware import usable_cores
from bessemer.log import Console
from bessemer.rundir import JsonLines, Row, read_object, read_rows

DATA, EVALUATE, EXPORT = "data", "evaluate", "export"
_LOOK_S = 20.0
_SUMS = ("energy_j", "energy_low_j", "energy_high_j", "energy_gap_s", "energy_gaps", "seconds")


@contextmanager
def metered(
    kind: str,
    *,
    accelerators: Sequence[int | str] = (),
    device_name: str | None = None,
    command: Sequence[str] = (),
    elsewhere: bool = False,
) -> Iterator[Row]:
    """A row for `RUN/energy.jsonl`, whole when the block has ended.

    elsewhere: machines that nobody here meters have their part in it, so that the sum is unknown.
    """
    row: Row = {"kind": kind, "time": time.time()}
    meter = PowerMeter(
        cores=usable_cores(),
        accelerators=accelerators,
        node=NodeSources(command=tuple(command)),
        device_name=device_name,
    )
    begin_s = time.monotonic()
    try:
        with _looked_at(meter):
            yield row
    finally:
        energy = EnergyReading(None, None, None, "assumed") if elsewhere else meter.read().energy
        meter.close()
        row |= {
            "seconds": round(time.monotonic() - begin_s, 3),
            "energy_j": energy.joules,
            "energy_low_j": energy.low,
            "energy_high_j": energy.high,
            "energy_basis": energy.basis,
            **meter.columns,
        }


def keep(run: Path, row: Row) -> None:
    """In the run's account."""
    rows = JsonLines(run / "energy.jsonl")
    try:
        rows.append(row)
        rows.sync()
    finally:
        rows.close()


def around_data(
    console: Console, *, elsewhere: bool = False
) -> Callable[[Path], AbstractContextManager[None]]:
    """For data/store.prepare: meters what is built there, and keeps that with the data."""

    @contextmanager
    def around(folder: Path) -> Iterator[None]:
        with metered(DATA, elsewhere=elsewhere) as row:
            yield
        with told(console, f"what preparing {folder} drew is not kept"):
            write_json(folder / "energy.json", row)

    return around


def claim(run: Path, folder: Path, console: Console) -> None:
    """Count what preparing the data in `folder` drew in this run, unless another one does."""
    with told(console, f"what preparing {folder} drew is not in this run's account"):
        row = read_object(folder / "energy.json")
        if row is None:
            return
        with suppress(OSError):  # another one does; or the store is not ours to write in, and nobody does
            with open(folder / "energy.claimed", "x", encoding="utf-8") as file:
                file.write(f"{run.resolve()}\n")
            keep(run, row)


@contextmanager
def told(console: Console, what: str) -> Iterator[None]:
    """Of an account that cannot be kept a run says so, and goes on."""
    try:
        yield
    except (UserError, OSError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        console.line(f"energy: {what}: {error}")


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


@contextmanager
def _looked_at(meter: PowerMeter) -> Iterator[None]:
    """Counters are kept up with while the work goes on."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_LOOK_S):
            meter.keep_up()

    thread = threading.Thread(target=look, name="energy", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
