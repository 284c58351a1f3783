"""What a stage of a run drew, from its rows: in all, by phase, in steps that were lost, waiting, and when.

energy_j of a row counts from the stage's beginning over all attempts, so a row drew what it has more than the
row before it in the file. Steps that a later attempt ran again were lost: their energy is told apart and
stays in the sum; so does what each attempt after the first drew until its first step. An attempt that ended
in order told what it drew after its last row by its last event. Known of none: what one that was killed drew
after its last row, and what any draws before its meter begins (imports).
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from bessemer.energy.accounting.kills import after_kills
from bessemer.energy.accounting.readings import (
    attempt_of,
    energy_of,
    held_s,
    newest_reading,
    part_j,
    phase_j,
    time_s,
    with_node_meter,
)
from bessemer.energy.accounting.timeline import Paused, pauses_of, spans_by_attempt
from bessemer.energy.grid.hourly import Span
from bessemer.energy.quantity import NOTHING, UNKNOWN, Quantity
from bessemer.energy.reading import BESIDE_STEPS, CPU, MEMORY, STARTING, worst
from bessemer.rundir import Row, counting_rows


@dataclass(frozen=True)
class StageLedger:
    """rows: all of a stage's, in the order of the file; events: the stage's."""

    rows: list[Row]
    events: list[Row]

    @property
    def last(self) -> Row:
        return self.rows[-1] if self.rows else {}

    @property
    def newest(self) -> Row:
        """The last row, with the energy that its attempt ended with."""
        return newest_reading(self.rows, self.events)

    @property
    def energy(self) -> Quantity:
        return energy_of(self.newest)

    @property
    def hours(self) -> float:
        """In steps, of all attempts, lost ones included."""
        return float(self.last.get("time_s") or 0.0) / 3600.0

    @property
    def parts(self) -> dict[str, Any] | None:
        """By component, as PowerMeter.breakdown has them; None: rows from before there was one."""
        parts = self.newest.get("energy_parts_j")
        return parts if isinstance(parts, dict) else None

    @property
    def beside_node_meter(self) -> tuple[float, float]:
        """(hours in which no meter read the whole node, joules of CPU and memory in them).

        An attempt may have such a meter and the next one not: the node's sum, carried over, stands still.
        """
        hours = cpu_j = 0.0
        readings = [reading for pair in self.pairs() for reading in pair]
        for before, after in pairwise([*readings, self.newest]):
            share = 1.0 - with_node_meter(after, before)
            hours += share * (held_s(after) - held_s(before)) / 3600.0
            cpu_j += share * sum(part_j(after, name) - part_j(before, name) for name in (CPU, MEMORY))
        return hours, cpu_j

    @property
    def metered_hours(self) -> float:
        """In steps and in pauses, as the readings tell."""
        return held_s(self.newest) / 3600.0

    @property
    def held_hours(self) -> float:
        """In which the devices were this stage's: in steps and in pauses."""
        return self.hours + sum(pause.end_s - pause.begin_s for pause in self.pauses) / 3600.0

    @property
    def pauses(self) -> list[Paused]:
        return pauses_of(self.events)

    @property
    def tokens(self) -> float | None:
        """Trained on in this stage, each step once."""
        counting = counting_rows(self.rows)
        if not counting or counting[-1].get("tokens") is None:
            return None
        return float(counting[-1]["tokens"]) - _tokens_before(counting[0])

    @property
    def lost(self) -> Quantity:
        """Energy of rows whose steps a later attempt ran again, with their validations, saves and waits; what
        begins and pauses drew is no step's."""
        kept = {id(row) for row in counting_rows(self.rows)}
        joules: float | None = 0.0
        for row, drawn, beside in zip(self.rows, self._drawn(), self._beside_steps(), strict=True):
            if id(row) not in kept:
                joules = None if joules is None or drawn is None else joules + drawn - beside
        return self._share(joules)

    @property
    def lost_phases(self) -> dict[str, Quantity] | None:
        """`lost` by what it was spent on. None: rows that do not tell."""
        if self.phases is None or self.lost.value is None:
            return None
        kept = {id(row) for row in counting_rows(self.rows)}
        lost = [pair for pair in self.pairs() if id(pair[1]) not in kept]
        return {
            name: self._share(sum(phase_j(row, name) - phase_j(before, name) for before, row in lost))
            for name in self.phases
            if name not in BESIDE_STEPS
        }

    @property
    def phases(self) -> dict[str, Quantity] | None:
        """By what it was spent on (energy/metering/phases.py). None: rows that do not tell."""
        told = self.newest.get("energy_phases_j")
        return {name: self._share(joules) for name, joules in told.items()} if told is not None else None

    @property
    def phases_s(self) -> dict[str, float] | None:
        told = self.newest.get("time_phases_s")
        return None if told is None else dict(told)

    @property
    def restarting(self) -> Quantity:
        """What attempts after the first drew until their first step. UNKNOWN: rows that do not tell."""
        if self.phases is None:
            return UNKNOWN if self.rows else NOTHING
        if self.energy.value is None:
            is_later = any(attempt_of(told) > 1 for told in (*self.rows, *self.events))
            return UNKNOWN if is_later else NOTHING
        first = self._until_attempt(2)
        return self._share(phase_j(self.newest, STARTING) - phase_j(first, STARTING))

    @property
    def after_kills(self) -> Quantity:
        """What attempts that were killed are likely to have drawn after their last row: beside the sum."""
        return after_kills(self.rows, self.events)

    @property
    def waiting(self) -> tuple[float, Quantity] | None:
        """(seconds that steps waited for data, what was drawn in them). None: rows that do not tell.

        By the mean power of each row: nothing meters the wait itself, which is shorter than a reading.
        """
        if not self.rows or any(row.get("waiting_for_data_s") is None for row in self.rows):
            return None
        return float(self.last["waiting_for_data_s"]), self._waited({id(row) for row in self.rows})

    @property
    def waiting_lost(self) -> Quantity:
        """What of `waiting` is in `lost` too."""
        if self.waiting is None:
            return UNKNOWN
        kept = {id(row) for row in counting_rows(self.rows)}
        return self._waited({id(row) for row in self.rows} - kept)

    @property
    def between_attempts_s(self) -> float | None:
        """Wall time from the last row of an attempt to the beginning of the next: not metered."""
        spans = self.spans()
        if spans is None:
            return None
        return sum(max(0.0, after.begin_s - before.end_s) for before, after in pairwise(spans))

    def spans(self) -> list[Span] | None:
        """The rows' energy in wall time; None where a row tells none, or an attempt not when it began."""
        attempts = self.spans_by_attempt()
        return None if attempts is None else [span for spans in attempts for span in spans]

    def spans_by_attempt(self) -> list[list[Span]] | None:
        """What was drawn in a pause has a span of its own."""
        return spans_by_attempt(self.pairs(), self.events, self._until_attempt)

    def _waited(self, those: set[int]) -> Quantity:
        """Drawn in waiting of those rows, by their ids."""
        joules: float | None = 0.0
        for before, row in pairwise([{}, *self.rows]):
            if id(row) not in those:
                continue
            waited_s = row["waiting_for_data_s"] - before.get("waiting_for_data_s", 0.0)
            power_w = row.get("power_w")
            joules = None if joules is None or power_w is None else joules + waited_s * power_w
        told = self._share(joules)
        return replace(told, basis=worst(told.basis, "modelled"))

    def _share(self, joules: float | None) -> Quantity:
        """Joules of the sum, with its band and basis."""
        if joules == 0.0:
            return NOTHING
        whole = self.energy
        return UNKNOWN if joules is None or not whole.value else whole.times(joules / whole.value)

    def _beside_steps(self) -> list[float]:
        """What each row has more of beginning and pausing than the row before."""
        return [
            sum(phase_j(row, name) - phase_j(before, name) for name in BESIDE_STEPS)
            for before, row in self.pairs()
        ]

    def _drawn(self) -> list[float | None]:
        pairs = [(before.get("energy_j", 0.0), row.get("energy_j")) for before, row in self.pairs()]
        return [None if one is None or other is None else other - one for one, other in pairs]

    def pairs(self) -> list[tuple[Row, Row]]:
        """Each row with the reading before it."""
        return [
            (before if attempt_of(before) == attempt_of(row) else self._until_attempt(attempt_of(row)), row)
            for before, row in pairwise([{}, *self.rows])
        ]

    def _until_attempt(self, attempt: int) -> Row:
        """The newest reading of the attempts before."""
        rows, events = (
            [row for row in told if attempt_of(row) < attempt] for told in (self.rows, self.events)
        )
        return newest_reading(rows, events)


def _tokens_before(first: Row) -> float:
    """A fork counts on from its origin's tokens: those are another run's work."""
    own = float(first.get("tokens_per_s") or 0.0) * time_s(first)
    before = float(first["tokens"]) - own
    return before if own > 0.0 and before > 1.0 else 0.0
