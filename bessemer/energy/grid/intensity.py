"""Carbon of a kilowatt-hour now and in the hours to come: from a file that changes, or from a program.

A file of hourly figures (hourly.py) is read again when it changes, as forecasts are renewed while a
run goes on; where the new one is no such file, that is told and the old one counts on. A program knows the
present only: it is asked at most every five minutes and never waited for, but for its first answer before
training, and its last answer counts for an hour.
What is not known is None, never 0.
Cost of a look: 1.3 µs, a stat of the file (2 cores, 2026-11-28); of starting the program:
energy/readers/program.py.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from bessemer.energy.grid.hourly import HOUR_S, MOST_G, Hourly, hour_of, read_hourly
from bessemer.energy.readers.program import Program
from bessemer.errors import RecipeError
from bessemer.rundir import Row

_EVERY_S, _LONGEST_S = 300.0, 30.0  # of a program: between two starts, and until it is given up
_KEPT_S = 3600.0
Stamp = tuple[int, int] | None  # of a file: None: there is none


class Intensity(Protocol):
    """Grams CO2e of a kilowatt-hour. Times are seconds since 1970."""

    def now(self, time_s: float) -> float | None:
        """None: not known."""

    def next_below(self, time_s: float, grams: float) -> float | None:
        """From when on it is `grams` or less, or not known any more; None: nobody can tell."""

    def news(self) -> list[str]:
        """What went wrong with it since this was last asked."""

    def close(self) -> None: ...


class HourlyFile:
    def __init__(self, path: Path) -> None:
        """RecipeError where there is no such file."""
        self._path = path
        self._seen = _stamp(path)
        self._hours: Hourly = read_hourly(path)
        self._news: list[str] = []

    def now(self, time_s: float) -> float | None:
        self._read_again()
        return self._hours.grams.get(int(time_s // HOUR_S))

    def next_below(self, time_s: float, grams: float) -> float | None:
        """An hour that the file does not have ends the wait: where nothing is known, a run goes on."""
        hour = int(time_s // HOUR_S)
        if self._hours.grams.get(hour, 0.0) <= grams:
            return time_s
        while self._hours.grams.get(hour, 0.0) > grams:
            hour += 1
        return float(hour * HOUR_S)

    def news(self) -> list[str]:
        news, self._news = self._news, []
        return news

    def close(self) -> None:
        pass

    def _read_again(self) -> None:
        stamp = _stamp(self._path)
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._hours = read_hourly(self._path)
        except RecipeError as error:
            self._news.append(f"{error.problem} any more ({error.found}): the hours read before count on")


class Command:
    """A program of the user's that prints grams."""

    def __init__(self, words: Sequence[str]) -> None:
        """RecipeError where it prints none."""
        self._words = " ".join(words)
        self._program = Program(words, _grams, every_s=_EVERY_S, longest_s=_LONGEST_S)
        self._last: tuple[float, float] | None = None  # (when, grams)
        self._fails, self._news = False, list[str]()
        if self._program.number() is None:
            self.close()
            raise RecipeError(
                "energy.intensity_command tells no intensity",
                found=f"{self._words}: {self._program.said}",
                wanted="a program and its words that print one number, grams CO2e of a kilowatt-hour (above "
                f"0, at most {MOST_G:.0f}), within {_LONGEST_S:.0f} s",
                fix="run it by hand, or leave energy.intensity_command out",
            )

    def now(self, time_s: float) -> float | None:
        grams = self._program.number()
        if grams is not None:
            self._last, self._fails = (time_s, grams), False
        elif not self._fails:
            self._fails = True
            self._news.append(f"{self._words} told no intensity ({self._program.said})")
        if self._last is not None and time_s - self._last[0] > _KEPT_S:
            self._last = None
        return None if self._last is None else self._last[1]

    def next_below(self, time_s: float, grams: float) -> float | None:
        return time_s if self._last is None or self._last[1] <= grams else None

    def news(self) -> list[str]:
        news, self._news = self._news, []
        return news

    def close(self) -> None:
        self._program.close()


def seen_hours(events: Sequence[Row]) -> dict[int, float]:
    """The hours of a stage's `grid` events: what it saw while it ran, by hour since 1970."""
    told = [row for row in events if row.get("kind") == "grid" and row.get("g_per_kwh") is not None]
    return {hour_of(row["hour"]): float(row["g_per_kwh"]) for row in told}


def _grams(text: str) -> float | None:
    words = text.split()
    try:
        grams = float(words[0]) if len(words) == 1 else 0.0
    except ValueError:
        return None
    return grams if 0.0 < grams <= MOST_G else None


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
