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
from pathlib import Path

from bessemer.durable import write_json
from bessemer.energy.metering.meter import NodeSources, PowerMeter
from bessemer.energy.reading import EnergyReading
from bessemer.errors import UserError
from bessemer.hardware import usable_cores
from bessemer.log import Console
from bessemer.rundir import JsonLines, Row, read_object, read_rows

DATA, EVALUATE, EXPORT = "data", "evaluate", "export"
_LOOK_S = 20.0


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
        # Killed between the claim and its row, the run finds its own claim again.
        if row is not None and _is_claimed(folder / "energy.claimed", run) and not _is_kept(run, row):
            keep(run, row)


def _is_claimed(claimed: Path, run: Path) -> bool:
    """By this run, now or before."""
    own = f"{run.resolve()}\n"
    try:
        with suppress(FileExistsError), open(claimed, "x", encoding="utf-8") as file:
            file.write(own)
        return claimed.read_text(encoding="utf-8") == own
    except OSError:  # the store is not ours to write in: nobody counts it
        return False


def _is_kept(run: Path, row: Row) -> bool:
    return any(
        kept["kind"] == DATA and kept["time"] == row["time"] for kept in read_rows(run / "energy.jsonl")
    )


@contextmanager
def told(console: Console, what: str) -> Iterator[None]:
    """Of an account that cannot be kept a run says so, and goes on."""
    try:
        yield
    except (UserError, OSError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        console.line(f"energy: {what}: {error}")


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
