"""Carbon by the hour: a file of grid intensities, and their mean over the energy of a run.

CSV, two columns: `time` (UTC, ISO 8601, full hours) and `g_per_kwh` (CO2e). An hour that is missing is a gap
of the file and no zero: what was drawn in it is told as not covered. The mean is weighed by energy, so a run
that pauses while the grid is dirty shows it.
A grid's operator computes these figures from what its plants report: 10 % is our band.
"""

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bessemer.energy.power import Band
from bessemer.energy.quantity import UNKNOWN, Quantity
from bessemer.errors import RecipeError

HOUR_S = 3600
MOST_G = 2000.0  # lignite alone: 1,100 to 1,700
_ERROR = 0.10
_COLUMNS = ("time", "g_per_kwh")


@dataclass(frozen=True)
class Span:
    """A stretch of wall time (seconds since 1970) and what was drawn in it."""

    begin_s: float
    end_s: float
    joules: float
    is_pause: bool = False


@dataclass(frozen=True)
class Hourly:
    grams: dict[int, float]  # by hour since 1970; CO2e of a kWh

    def missing(self, spans: Iterable[Span]) -> list[str]:
        """Hours in which something was drawn, and that are not there."""
        drawn = {hour for span in spans for hour, joules in _by_hour(span) if joules > 0.0}
        return [hour_text(hour) for hour in sorted(drawn - self.grams.keys())]

    def mean(self, spans: Iterable[Span]) -> tuple[Quantity, float]:
        """(kg of a kWh, share of the energy that the file covers); UNKNOWN where it covers nothing."""
        grams = covered = whole = 0.0
        for span in spans:
            whole += span.joules
            for hour, joules in _by_hour(span):
                if hour in self.grams:
                    grams += joules * self.grams[hour]
                    covered += joules
        if covered <= 0.0:
            return UNKNOWN, 0.0
        return Quantity.of(Band.around(grams / covered / 1000.0, _ERROR), "modelled"), covered / whole


def read_hourly(path: Path) -> Hourly:
    """RecipeError: no such file, another form, an hour twice or out of order, a figure that is none."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong(path, getattr(error, "strerror", None) or "bytes that are not UTF-8 text") from error
    absent = [column for column in _COLUMNS if not rows or column not in rows[0]]
    if absent:
        raise _wrong(path, "no rows" if not rows else f"no column {', '.join(absent)}")
    grams: dict[int, float] = {}
    last = -1
    for number, row in enumerate(rows, start=1):
        hour = _hour(path, number, row["time"])
        if hour <= last:
            raise _wrong(path, f"row {number}: {row['time']} does not come after the row before it")
        grams[hour], last = _grams(path, number, row["g_per_kwh"]), hour
    return Hourly(grams)


def hour_of(text: str) -> int:
    """Hours since 1970; the inverse of `hour_text`."""
    return int(datetime.fromisoformat(text).timestamp() // HOUR_S)


def hour_text(hour: int) -> str:
    return datetime.fromtimestamp(hour * HOUR_S, UTC).strftime("%Y-%m-%dT%H:00Z")


def _by_hour(span: Span) -> Iterable[tuple[int, float]]:
    """(hour, joules), evenly over the span."""
    if span.end_s <= span.begin_s:
        yield int(span.begin_s // HOUR_S), span.joules
        return
    watts = span.joules / (span.end_s - span.begin_s)
    for hour in range(int(span.begin_s // HOUR_S), math.ceil(span.end_s / HOUR_S)):
        inside_s = min(span.end_s, (hour + 1) * HOUR_S) - max(span.begin_s, hour * HOUR_S)
        yield hour, watts * inside_s


def _hour(path: Path, number: int, text: str | None) -> int:
    try:
        time = datetime.fromisoformat((text or "").strip())
    except ValueError:
        raise _wrong(path, f"row {number}: {text!r} is no time") from None
    time = time.replace(tzinfo=UTC) if time.tzinfo is None else time
    if time.utcoffset():
        raise _wrong(path, f"row {number}: {text} is not UTC")
    seconds = time.timestamp()
    if seconds % HOUR_S:
        raise _wrong(path, f"row {number}: {text} is no full hour")
    return int(seconds // HOUR_S)


def _grams(path: Path, number: int, text: str | None) -> float:
    try:
        value = float((text or "").strip())
    except ValueError:
        value = math.nan
    if not 0.0 < value <= MOST_G:
        what = "no intensity" if not (text or "").strip() else f"{text} g per kWh"
        raise _wrong(path, f"row {number}: {what}")
    return value


def _wrong(path: Path, found: str) -> RecipeError:
    return RecipeError(
        f"{path} is no file of hourly grid intensity",
        found=found,
        wanted="a CSV file with columns time (UTC, full hours in order) and g_per_kwh (CO2e, above 0, "
        f"at most {MOST_G:.0f}); an hour that is not known is left out",
        fix="correct that row, or name another file",
    )
