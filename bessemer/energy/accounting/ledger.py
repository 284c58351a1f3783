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

from bessemer.energy.grid.hourly import Span
from bessemer.energy.power import Band
from bessemer.energy.quantity import NOTHING, UNKNOWN, Quantity
from bessemer.energy.reading import BESIDE_STEPS, CPU, MEMORY, NODE, PAUSED, STARTING, worst
from bessemer.rundir import Row, counting_rows

GOES_ON = "resume_after_pause"
PAUSE_ENDS = (GOES_ON, "stop_in_pause")  # events
SEEN_S = 10.0  # a log is told of a step at least so often (log.py)
ENERGY_COLUMNS = (
    *("energy_j", "energy_low_j", "energy_high_j", "energy_basis", "energy_parts_j"),
    *("energy_gaps", "energy_gap_s", "energy_phases_j", "time_phases_s"),
)


@dataclass(frozen=True)
class Paused:
    """A pause for the grid (train/pause.py), in wall time."""

    attempt: int
    step: int  # after which it began
    begin_s: float
    end_s: float
    ended_by: str = ""  # kind of event; "": goes on, or was killed in it: until what was heard last


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
        return _energy_of(self.newest)

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
        before: Row = {}
        for row in self.rows:
            share = 1.0 - _with_node_meter(row, before)
            hours += share * (_held_s(row) - _held_s(before)) / 3600.0
            cpu_j += share * sum(_part_j(row, name) - _part_j(before, name) for name in (CPU, MEMORY))
            before = row
        return hours, cpu_j

    @property
    def held_hours(self) -> float:
        """In which the devices were this stage's: in steps and in pauses."""
        return self.hours + sum(pause.end_s - pause.begin_s for pause in self.pauses) / 3600.0

    @property
    def pauses(self) -> list[Paused]:
        found: list[Paused] = []
        for row in self.events:
            kind, attempt = row.get("kind"), row.get("attempt")
            under_way = bool(found) and not found[-1].ended_by and attempt == found[-1].attempt
            if kind == "pause":
                found.append(Paused(row["attempt"], row["step"], row["time"], row["time"]))
            elif under_way and kind in PAUSE_ENDS:
                found[-1] = replace(found[-1], end_s=row["time"], ended_by=kind)
            elif under_way:
                found[-1] = replace(found[-1], end_s=row["time"])
        return found

    @property
    def tokens(self) -> float | None:
        """Trained on in this stage, each step once."""
        counting = counting_rows(self.rows)
        if not counting or counting[-1].get("tokens") is None:
            return None
        return float(counting[-1]["tokens"]) - _tokens_before(counting[0])

    @property
    def lost(self) -> Quantity:
        """Energy of rows whose steps a later attempt ran again; what begins and pauses drew is no step's."""
        kept = {id(row) for row in counting_rows(self.rows)}
        joules: float | None = 0.0
        for row, drawn, beside in zip(self.rows, self._drawn(), self._beside_steps(), strict=True):
            if id(row) not in kept:
                joules = None if joules is None or drawn is None else joules + drawn - beside
        return self._share(joules)

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
        first = self._until_attempt(2)
        return self._share(_phase_j(self.newest, STARTING) - _phase_j(first, STARTING))

    @property
    def after_kills(self) -> Quantity:
        """What attempts that were killed are likely to have drawn after their last row: beside the sum.

        By the power of that row, from it until a step was last seen; at most until the next one would have.
        """
        found = NOTHING
        for event in self.events:
            before = [row for row in self.rows if _attempt(row) < _attempt(event)]
            if event.get("unrecorded_s") is None or not before or self._has_ended(before[-1]):
                continue
            power_w = before[-1].get("power_w")
            if power_w is None:
                return UNKNOWN
            seen_s = event["unrecorded_s"]
            most_s = seen_s + max(SEEN_S, before[-1]["step_time_s"])
            band = Band(seen_s, seen_s, most_s).times(power_w)
            found = found.plus(Quantity.of(band, "modelled"))
        return found

    @property
    def waiting(self) -> tuple[float, Quantity] | None:
        """(seconds that steps waited for data, what was drawn in them). None: rows that do not tell.

        By the mean power of each row: nothing meters the wait itself, which is shorter than a reading.
        """
        if not self.rows or any(row.get("waiting_for_data_s") is None for row in self.rows):
            return None
        joules: float | None = 0.0
        for before, row in pairwise([{}, *self.rows]):
            waited_s = row["waiting_for_data_s"] - before.get("waiting_for_data_s", 0.0)
            power_w = row.get("power_w")
            joules = None if joules is None or power_w is None else joules + waited_s * power_w
        told = self._share(joules)
        modelled = replace(told, basis=worst(told.basis, "modelled"))
        return float(self.last["waiting_for_data_s"]), modelled

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
        """What was drawn in a pause has a span of its own: the clock of the rows stood still in it."""
        begins = {
            row["attempt"]: row["time"] for row in self.events if row.get("kind") in ("start", "resume")
        }
        pairs: dict[int, list[tuple[Row, Row]]] = {attempt: [] for attempt in begins}
        for before, row in self._pairs():
            if row.get("attempt") not in begins or None in (row.get("energy_j"), before.get("energy_j", 0.0)):
                return None
            pairs[row["attempt"]].append((before, row))
        return [self._spans_of(attempt, begin_s, pairs[attempt]) for attempt, begin_s in begins.items()]

    def _spans_of(self, attempt: int, begin_s: float, pairs: list[tuple[Row, Row]]) -> list[Span]:
        """pairs: each of the attempt's rows with the reading before it."""
        spans: list[Span] = []
        pauses = [pause for pause in self.pauses if pause.attempt == attempt and pause.ended_by]
        for before, row in pairs:
            due = [pause for pause in pauses if pause.step < row["step"]]
            pauses = pauses[len(due) :]
            waits = _waits(due, begin_s, before, row)
            begin_s = waits[-1].end_s if waits else begin_s
            end_s = begin_s + max(0.0, _time_s(row) - _time_s(before))
            drawn_j = row["energy_j"] - before.get("energy_j", 0.0) - sum(wait.joules for wait in waits)
            spans += [*waits, Span(begin_s, end_s, drawn_j)]
            begin_s = end_s
        last = pairs[-1][1] if pairs else self._until_attempt(attempt)
        return [*spans, *_waits(pauses, begin_s, last, self._until_attempt(attempt + 1))]

    def _share(self, joules: float | None) -> Quantity:
        """Joules of the sum, with its band and basis."""
        if joules == 0.0:
            return NOTHING
        whole = self.energy
        return UNKNOWN if joules is None or not whole.value else whole.times(joules / whole.value)

    def _beside_steps(self) -> list[float]:
        """What each row has more of beginning and pausing than the row before."""
        return [
            sum(_phase_j(row, name) - _phase_j(before, name) for name in BESIDE_STEPS)
            for before, row in self._pairs()
        ]

    def _drawn(self) -> list[float | None]:
        pairs = [(before.get("energy_j", 0.0), row.get("energy_j")) for before, row in self._pairs()]
        return [None if one is None or other is None else other - one for one, other in pairs]

    def _pairs(self) -> list[tuple[Row, Row]]:
        """Each row with the reading before it."""
        return [
            (before if _attempt(before) == _attempt(row) else self._until_attempt(_attempt(row)), row)
            for before, row in pairwise([{}, *self.rows])
        ]

    def _has_ended(self, last: Row) -> bool:
        """Whether the attempt of this row told by its last event what it drew."""
        return any("energy_j" in event and _attempt(event) == _attempt(last) for event in self.events)

    def _until_attempt(self, attempt: int) -> Row:
        """The newest reading of the attempts before."""
        rows, events = ([row for row in told if _attempt(row) < attempt] for told in (self.rows, self.events))
        return newest_reading(rows, events)


def newest_reading(rows: list[Row], events: list[Row]) -> Row:
    """The last row, with the energy that its attempt ended with where an event tells (`done`, `stop`)."""
    last = rows[-1] if rows else {}
    ends = [event for event in events if "energy_j" in event and _attempt(event) >= _attempt(last)]
    return {**last, **{name: ends[-1][name] for name in ENERGY_COLUMNS}} if ends else last


def _attempt(row: Row) -> int:
    """{}: before any."""
    return int(row.get("attempt", 1 if row else 0))


def _waits(pauses: list[Paused], begin_s: float, before: Row, after: Row) -> list[Span]:
    """Pauses between two readings: what was drawn in them, by how long they took."""
    joules = _phase_j(after, PAUSED) - _phase_j(before, PAUSED)
    whole_s = sum(pause.end_s - pause.begin_s for pause in pauses)
    spans: list[Span] = []
    for pause in pauses:
        share = (pause.end_s - pause.begin_s) / whole_s if whole_s else 0.0
        spans.append(Span(begin_s, max(begin_s, pause.end_s), share * joules, is_pause=True))
        begin_s = spans[-1].end_s
    return spans


def _energy_of(row: Row) -> Quantity:
    if row.get("energy_j") is None:
        return UNKNOWN
    band = row.get("energy_low_j"), row.get("energy_high_j")
    return Quantity(row["energy_j"], *band, row.get("energy_basis") or "assumed")


def _with_node_meter(row: Row, before: Row) -> float:
    """Share of the machines that had a meter of the whole node since the row before."""
    if _part_j(row, NODE) == _part_j(before, NODE):
        return 0.0
    return float(row.get("energy_machines_with_node_meter", 1) / row.get("energy_machines", 1))


def _part_j(row: Row, component: str) -> float:
    """Since the stage's beginning; 0 where there is no such part, or it is not known (then no sum is)."""
    told = (row.get("energy_parts_j") or {}).get(component) or {}
    return float(told.get("value") or 0.0)


def _phase_j(row: Row, name: str) -> float:
    """Since the stage's beginning; 0 where the row does not tell."""
    return float((row.get("energy_phases_j") or {}).get(name) or 0.0)


def _held_s(row: Row) -> float:
    """In steps and in pauses, in which the machine around the devices draws on."""
    return _time_s(row) + float((row.get("time_phases_s") or {}).get(PAUSED) or 0.0)


def _time_s(row: Row) -> float:
    return float(row.get("time_s") or 0.0)


def _tokens_before(first: Row) -> float:
    """A fork counts on from its origin's tokens: those are another run's work."""
    own = float(first.get("tokens_per_s") or 0.0) * _time_s(first)
    before = float(first["tokens"]) - own
    return before if own > 0.0 and before > 1.0 else 0.0
