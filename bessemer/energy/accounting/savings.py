"""What pausing saved: carbon as it was, beside that of the same work without a pause.

Without one, each attempt begins when it did, and every stretch of work comes earlier by the pauses before it
in its attempt, with the joules that it took; what was drawn in the pauses is left out. Both are weighed by
the same hours (grid/hourly.py), so the difference is uncertain by as large a share as either of them; it
is below 0 where idle devices cost more than cleaner hours gained. Where an hour is not covered, both are
unknown.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from bessemer.energy.accounting.ledger import StageLedger
from bessemer.energy.grid.hourly import Hourly, Span
from bessemer.energy.quantity import NOTHING, UNKNOWN, Quantity, banded
from bessemer.energy.reading import worst
from bessemer.units import format_joules, format_kilograms, format_seconds


@dataclass(frozen=True)
class Saved:
    """By the pauses of a stage, or of a run."""

    count: int
    hours: float  # that they took
    joules: float | None  # drawn in them
    carbon: Quantity  # as it was [kg CO2e]
    without: Quantity  # had nothing paused
    unknown_because: str | None = None

    @property
    def saved(self) -> Quantity:
        return _less(self.without, self.carbon)

    def plus(self, other: "Saved") -> "Saved":
        joules = None if self.joules is None or other.joules is None else self.joules + other.joules
        return Saved(
            self.count + other.count,
            self.hours + other.hours,
            joules,
            self.carbon.plus(other.carbon),
            self.without.plus(other.without),
            self.unknown_because or other.unknown_because,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "hours": self.hours,
            "joules": self.joules,
            "kg_co2e": self.carbon.to_json(),
            "kg_co2e_without": self.without.to_json(),
            "kg_co2e_saved": self.saved.to_json(),
            "unknown_because": self.unknown_because,
        }


def saved_by_pauses(
    stages: Iterable[tuple[StageLedger, Quantity]], hourly: Hourly | None
) -> dict[str, Any] | None:
    """stages: each with its kWh of the facility. None: nothing paused."""
    told = [saved_in(ledger, kwh, hourly) for ledger, kwh in stages if ledger.pauses]
    if not told:
        return None
    whole, *others = told
    for one in others:
        whole = whole.plus(one)
    return whole.to_json()


def pause_words(told: dict[str, Any]) -> str:
    """What `saved_by_pauses` tells, as a line."""
    drawn = "unknown" if told["joules"] is None else format_joules(told["joules"])
    words = f"{told['count']}, {format_seconds(3600.0 * told['hours'])} in all, in which it drew {drawn}"
    if told["kg_co2e_saved"]["value"] is None:
        return f"{words}; what they saved is not known: {told['unknown_because']}"
    was, without = (format_kilograms(told[name]["value"]) for name in ("kg_co2e", "kg_co2e_without"))
    saved = banded(told["kg_co2e_saved"], format_kilograms)
    return f"{words}; {was} CO2e instead of {without}: saved {saved}"


def saved_in(ledger: StageLedger, kwh: Quantity, hourly: Hourly | None) -> Saved:
    """Of one stage that paused."""
    pauses = ledger.pauses
    hours = sum(pause.end_s - pause.begin_s for pause in pauses) / 3600.0
    # Rows that do not tell phases have what a pause drew in their steps: it is unknown, and no 0.
    attempts = None if ledger.phases is None else ledger.spans_by_attempt()
    drawn = None if attempts is None else sum(span.joules for span in chain(*attempts) if span.is_pause)
    carbon, without, why = _compared(attempts, kwh, hourly)
    return Saved(len(pauses), hours, drawn, carbon, without, why)


def _compared(
    attempts: list[list[Span]] | None, kwh: Quantity, hourly: Hourly | None
) -> tuple[Quantity, Quantity, str | None]:
    """(as it was, without pauses, why it is not known)."""
    if hourly is None:
        return UNKNOWN, UNKNOWN, "no hourly intensity is known"
    if attempts is None or kwh.value is None:
        return UNKNOWN, UNKNOWN, "what was drawn, or when, is not known"
    was, moved = list(chain(*attempts)), list(chain(*map(without_pauses, attempts)))
    whole_j = sum(span.joules for span in was)
    figures: list[Quantity] = []
    for spans in (was, moved):
        joules = sum(span.joules for span in spans)
        mean, covered = hourly.mean(spans)
        if joules and covered < 1.0 - 1e-9:
            return UNKNOWN, UNKNOWN, f"the hourly intensity covers {covered:.0%} of the energy"
        figures.append(kwh.times(joules / whole_j).multiplied(mean) if joules else NOTHING)
    return figures[0], figures[1], None


def without_pauses(spans: Sequence[Span]) -> list[Span]:
    """An attempt's stretches of work, each as much earlier as there were pauses before it."""
    earlier_s = 0.0
    moved = []
    for span in spans:
        if span.is_pause:
            earlier_s += span.end_s - span.begin_s
        else:
            moved.append(Span(span.begin_s - earlier_s, span.end_s - earlier_s, span.joules))
    return moved


def _less(whole: Quantity, part: Quantity) -> Quantity:
    """A difference of two figures that are off together: the same error of meter, PUE and grid is in both."""
    one, other = whole.band, part.band
    if one is None or other is None:
        return UNKNOWN
    ends = (one.value - other.value, one.low - other.low, one.high - other.high)
    return Quantity(ends[0], min(ends), max(ends), worst(whole.basis, part.basis))
