"""What a stage of a run drew, from its rows: in all, in steps that were lost, and when.

energy_j of a row counts from the stage's beginning over all attempts, so a row drew what it has more than the
row before it in the file. Steps that a later attempt ran again were lost: their energy is told apart and
stays in the sum. Not in the rows: what a killed attempt drew after its last row, and what an attempt drew
before its first step began (imports, building).
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from bessemer.energy.hourly import Span
from bessemer.energy.quantity import NOTHING, UNKNOWN, Quantity
from bessemer.energy.reading import CPU, MEMORY, NODE
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
    def energy(self) -> Quantity:
        return _energy_of(self.last)

    @property
    def hours(self) -> float:
        """In steps, of all attempts, lost ones included."""
        return float(self.last.get("time_s") or 0.0) / 3600.0

    @property
    def parts(self) -> dict[str, Any] | None:
        """By component, as PowerMeter.breakdown has them; None: rows from before there was one."""
        parts = self.last.get("energy_parts_j")
        return parts if isinstance(parts, dict) else None

    @property
    def beside_node_meter(self) -> tuple[float, float]:
        """(hours in which no meter read the whole node, joules of CPU and memory in them).

        An attempt may have such a meter and the next one not: the node's sum, carried over, stands still.
        """
        hours = cpu_j = 0.0
        before: Row = {}
        for row in self.rows:
            if _part_j(row, NODE) == _part_j(before, NODE):
                hours += (_time_s(row) - _time_s(before)) / 3600.0
                cpu_j += sum(_part_j(row, name) - _part_j(before, name) for name in (CPU, MEMORY))
            before = row
        return hours, cpu_j

    @property
    def tokens(self) -> float | None:
        """Trained on in this stage, each step once."""
        counting = counting_rows(self.rows)
        if not counting or counting[-1].get("tokens") is None:
            return None
        return float(counting[-1]["tokens"]) - _tokens_before(counting[0])

    @property
    def lost(self) -> Quantity:
        """Energy of rows whose steps a later attempt ran again."""
        kept = {id(row) for row in counting_rows(self.rows)}
        joules = 0.0
        for row, drawn in zip(self.rows, self._drawn(), strict=True):
            if id(row) not in kept:
                if drawn is None:
                    return UNKNOWN
                joules += drawn
        whole = self.energy
        if joules == 0.0:
            return NOTHING
        return whole.times(joules / whole.value) if whole.value else UNKNOWN

    @property
    def between_attempts_s(self) -> float | None:
        """Wall time from the last row of an attempt to the beginning of the next: not metered."""
        spans = self.spans()
        if spans is None:
            return None
        return sum(max(0.0, after.begin_s - before.end_s) for before, after in pairwise(spans))

    def spans(self) -> list[Span] | None:
        """The rows' energy in wall time; None where a row tells none, or an attempt not when it began."""
        begins = {
            row["attempt"]: row["time"] for row in self.events if row.get("kind") in ("start", "resume")
        }
        spans: list[Span] = []
        before: Row = {}
        for row, drawn in zip(self.rows, self._drawn(), strict=True):
            begin = begins.get(row.get("attempt"))
            if begin is None or drawn is None:
                return None
            fresh = before.get("attempt") != row.get("attempt")
            begin_s = begin if fresh else spans[-1].end_s
            spans.append(Span(begin_s, begin_s + max(0.0, _time_s(row) - _time_s(before)), drawn))
            before = row
        return spans

    def _drawn(self) -> list[float | None]:
        values = [row.get("energy_j") for row in self.rows]
        return [
            None if value is None or before is None else value - before
            for before, value in zip([0.0, *values[:-1]], values, strict=True)
        ]


def _energy_of(row: Row) -> Quantity:
    if row.get("energy_j") is None:
        return UNKNOWN
    band = row.get("energy_low_j"), row.get("energy_high_j")
    return Quantity(row["energy_j"], *band, row.get("energy_basis") or "assumed")


def _part_j(row: Row, component: str) -> float:
    """Since the stage's beginning; 0 where there is no such part, or it is not known (then no sum is)."""
    told = (row.get("energy_parts_j") or {}).get(component) or {}
    return float(told.get("value") or 0.0)


def _time_s(row: Row) -> float:
    return float(row.get("time_s") or 0.0)


def _tokens_before(first: Row) -> float:
    """A fork counts on from its origin's tokens: those are another run's work."""
    own = float(first.get("tokens_per_s") or 0.0) * _time_s(first)
    before = float(first["tokens"]) - own
    return before if own > 0.0 and before > 1.0 else 0.0
