"""What one stage of a run has drawn by now of all that a budget may limit, and what a step takes.

By the account's own rules (account.py), row for row while the stage goes. Of its rows as few are kept
as give the same sums, one in half an hour: a row tells what was drawn since the stage began.
What an attempt takes until its first row (building, the first steps) is no pace, but what going on costs.
Energy that is not known any more goes on at the last known power, as assumed: a limit that nothing watches
would be none.
Cost: 0.1 ms a row after a day, 0.5 ms after a week (2 cores, 2026-11-28).
"""

from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

from bessemer.energy.accounting.ledger import StageLedger
from bessemer.energy.accounting.limits import UNITS
from bessemer.energy.accounting.place import Place
from bessemer.energy.accounting.readings import ENERGY_COLUMNS
from bessemer.energy.accounting.stage_account import at_facility
from bessemer.energy.accounting.timeline import GOES_ON, PAUSE_ENDS
from bessemer.energy.grid.hourly import Hourly
from bessemer.energy.grid.intensity import seen_hours
from bessemer.energy.power import Band
from bessemer.energy.quantity import NOTHING, Quantity, exactly
from bessemer.energy.reading import NODE
from bessemer.rundir import WARMUP_STEPS, Row, read_object, read_rows

_KEPT_S = 1800.0
_INTERVALS = 50  # whose spread is the band of what is left
_STEADY_INTERVALS = 5
_BRIDGED_ERROR = 0.25  # of energy at the last known power
_ENERGY = ("energy_j", "energy_low_j", "energy_high_j")

Spent = dict[str, Quantity]  # by the limit's name
Amounts = dict[str, float]  # the same, likely values alone; what is unknown is not there


class Spending:
    """Of one stage, from its folder and then from the rows that follow."""

    def __init__(self, folder: Path, place: Place) -> None:
        self._place = place
        self._devices = place.devices_of(read_object(folder / "stage.json") or {})
        self._events: list[Row] = []
        self._borders: set[tuple[Any, Any]] = set()  # rows to keep, as something happened after them
        self._rows: list[Row] = []
        self._power_w: float | None = None
        self._is_bridged = False
        self._pace = _Pace()
        self.spent: Spent = dict.fromkeys(UNITS, NOTHING)
        self._read(read_rows(folder / "metrics.jsonl"), read_rows(folder / "events.jsonl"))

    @property
    def bridged_w(self) -> float | None:
        """The power at which the energy of the newest row goes on; None: it is known, or nothing ever was."""
        return self._power_w if self._is_bridged else None

    @property
    def is_steady(self) -> bool:
        """Whether the pace is more than that of an attempt's first steps."""
        return self._pace.num_steady >= _STEADY_INTERVALS

    @property
    def start(self) -> Amounts:
        """What the newest attempt took until its first row: another one takes as much."""
        return self._pace.start

    def event(self, event: Row) -> None:
        kind = event.get("kind")
        if kind == "sample":
            return
        if kind == "pause" and self._pace.is_behind:
            self._measure_pace()
        if hours := seen_hours([event]):
            known = self._place.hourly.grams if self._place.hourly else {}
            self._place = replace(self._place, hourly=Hourly({**known, **hours}))
        if event.get("energy_j", 0.0) is None:  # the end of an attempt that had lost its meter
            event = {name: value for name, value in event.items() if name not in ENERGY_COLUMNS}
        self._events.append(event)
        self._borders.add((event.get("attempt"), event.get("step")))
        if kind in PAUSE_ENDS or "energy_j" in event:
            self._measure()
            self._pace.skip(self.spent)  # a pause, or the last save, is no pace
        if kind == GOES_ON:
            self._pace.is_interrupted = True

    def waiting(self, time_s: float) -> None:
        """In a pause that goes on until `time_s` at least: its hours. What it draws the next row tells."""
        self._measure({**self._events[-1], "kind": "waiting", "time": time_s})

    def add(self, row: Row) -> None:
        self._add(row, measured=True)

    def next(self, steps: int) -> Amounts:
        """What so many steps take that are like those of the last interval."""
        return {name: steps * pace for name, pace in self._pace.last.items()}

    def left(self, steps: int) -> Spent:
        """What so many steps take at the stage's own mean; the band is that of its last intervals."""
        return {
            name: Quantity.of(band.times(steps), self.spent[name].basis)
            for name, band in self._pace.bands().items()
        }

    def _read(self, rows: list[Row], events: list[Row]) -> None:
        """What is there, in the order in which it happened."""
        waiting = deque(events)
        attempts = [row.get("attempt") for row in rows]
        for number, row in enumerate(rows):
            while waiting and _is_before(waiting[0], row):
                self.event(waiting.popleft())
            # Each measurement is an account: of a long stage's first rows those around a restart are enough.
            at_restart = number == 0 or len(set(attempts[number - 1 : number + 2])) > 1
            self._add(row, measured=at_restart or number >= len(rows) - _INTERVALS)
        for event in waiting:
            self.event(event)

    def _add(self, row: Row, *, measured: bool) -> None:
        before = self._rows[-1] if self._rows else {}
        row = self._with_energy(before, row)
        self._pace.row(before, row)
        if len(self._rows) > 1 and self._is_between(self._rows[-2], before, row):
            self._rows[-1] = row
        else:
            self._rows.append(row)
        if measured or self._pace.is_interrupted:
            self._measure_pace()

    def _measure_pace(self) -> None:
        self._measure()
        self._pace.measured(self.spent)

    def _measure(self, *more: Row) -> None:
        """more: events that are in no file."""
        ledger = StageLedger(self._rows, [*self._events, *more])
        self.spent = spent_of(ledger, self._place, self._devices)
        if not self._rows:  # nothing was read yet, of which there would be something to know
            self.spent = {name: NOTHING if each.value is None else each for name, each in self.spent.items()}

    def _is_between(self, first: Row, middle: Row, last: Row) -> bool:
        """Whether the middle one tells nothing that the last one does not."""
        attempts = {row.get("attempt") for row in (first, middle, last)}
        at_border = (middle.get("attempt"), middle.get("step")) in self._borders
        return len(attempts) == 1 and not at_border and _time_s(last) - _time_s(first) < _KEPT_S

    def _with_energy(self, before: Row, row: Row) -> Row:
        """The row itself, or as if the machine had gone on at the last known power."""
        self._power_w = row.get("power_w") or self._power_w
        self._is_bridged = row.get("energy_j") is None
        if not self._is_bridged or self._power_w is None or before.get("energy_j") is None:
            return row
        joules = self._power_w * (_time_s(row) - _time_s(before))
        errors = (0.0, -_BRIDGED_ERROR, _BRIDGED_ERROR)
        ends = [before[name] + (1.0 + error) * joules for name, error in zip(_ENERGY, errors, strict=True)]
        parts, sums = dict(row.get("energy_parts_j") or {}), before.get("energy_parts_j") or {}
        if NODE in sums:  # that was the whole, so it is what goes on
            parts[NODE] = {**sums[NODE], "value": (sums[NODE].get("value") or 0.0) + joules}
        bridged = dict(zip(_ENERGY, ends, strict=True))
        return {**row, **bridged, "energy_basis": "assumed", "energy_parts_j": parts}


class _Pace:
    """What a step takes, from one measurement to the next."""

    def __init__(self) -> None:
        self.is_interrupted = False  # what a pause drew is in the next measurement, which is no pace
        self.num_steady = 0  # intervals beyond an attempt's first steps
        self.start: Amounts = {}
        self.last: Amounts = {}  # of a step, in the newest interval
        self._paces: deque[Amounts] = deque(maxlen=_INTERVALS)
        self._sums: Amounts = {}
        self._steps = self._steps_here = self._since = 0  # counted in _sums; of the attempt; not measured yet
        self._is_first = True
        self._before: Amounts = dict.fromkeys(UNITS, 0.0)

    @property
    def is_behind(self) -> bool:
        """Whether there are steps that were not measured yet."""
        return self._since > 0

    def row(self, before: Row, row: Row) -> None:
        self._is_first = before.get("attempt") != row.get("attempt")
        self.num_steady += not self._is_first and self._steps_here >= WARMUP_STEPS
        steps = _steps_between(before, row)
        self._steps_here = steps + (0 if self._is_first else self._steps_here)
        self._since += steps

    def skip(self, spent: Spent) -> None:
        """What was spent since the measurement before is no step's."""
        self._before = _amounts(spent)

    def measured(self, spent: Spent) -> None:
        now = _amounts(spent)
        drawn = {name: now[name] - self._before[name] for name in now if name in self._before}
        steps, self._since, self._before = self._since, 0, now
        if self.is_interrupted:
            self.is_interrupted = False
            return
        pace = {name: amount / steps for name, amount in drawn.items()}
        if self._is_first:
            self.start = drawn
            self.last = self.last or pace
            return
        self.last, self._steps = pace, self._steps + steps
        self._paces.append(pace)
        self._sums = {name: self._sums.get(name, 0.0) + amount for name, amount in drawn.items()}

    def bands(self) -> dict[str, Band]:
        """Of a step, by its mean; low and high without a tenth of the intervals at each end."""
        if not self._paces:
            return {name: Band(pace, pace, pace) for name, pace in self.last.items()}
        found = {}
        for name, amount in self._sums.items():
            mean = amount / self._steps
            paces = sorted(pace[name] for pace in self._paces if name in pace) or [mean]
            tenth = len(paces) // 10
            found[name] = Band(mean, min(mean, paces[tenth]), max(mean, paces[-1 - tenth]))
        return found


def _amounts(spent: Spent) -> Amounts:
    return {name: each.value for name, each in spent.items() if each.value is not None}


def spent_of(ledger: StageLedger, place: Place, devices: int) -> Spent:
    told = at_facility(ledger, place, devices)
    return {
        "hours": exactly(told.hours, "measured"),
        "device_hours": exactly(told.hours * devices, "measured"),
        "usd": told.usd,
        "kwh": told.kwh,
        "kg_co2e": told.carbon,
    }


def _steps_between(before: Row, row: Row) -> int:
    """Made since the row before: a resume and a fork begin elsewhere than where that row stands."""
    step_s = row.get("step_time_s")
    if not step_s:
        return max(1, int(row["step"]) - int(before.get("step") or 0))
    return max(1, round((_time_s(row) - _time_s(before)) / step_s))


def _is_before(event: Row, row: Row) -> bool:
    """The end of an attempt tells of all its energy, so it comes after its last row."""
    attempt, other = int(event.get("attempt") or 0), int(row.get("attempt") or 0)
    if "energy_j" in event or attempt != other:
        return attempt < other
    return int(event.get("step") or 0) < int(row["step"])


def _time_s(row: Row) -> float:
    return float(row.get("time_s") or 0.0)
