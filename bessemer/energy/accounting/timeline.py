"""When a stage drew what: its pauses, and its rows as stretches of wall time.

The clock of the rows is time in steps, over all attempts; where each attempt began its first event tells.
What was drawn in a pause has a stretch of its own, as that clock stood still in it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bessemer.energy.accounting.readings import phase_j, time_s
from bessemer.energy.grid.hourly import Span
from bessemer.energy.reading import PAUSED
from bessemer.rundir import Row

GOES_ON = "resume_after_pause"
PAUSE_ENDS = (GOES_ON, "stop_in_pause")  # events


@dataclass(frozen=True)
class Paused:
    """A pause for the grid (train/pause.py), in wall time."""

    attempt: int
    step: int  # after which it began
    begin_s: float
    end_s: float
    ended_by: str = ""  # kind of event; "": goes on, or was killed in it: until what was heard last


def pauses_of(events: Sequence[Row]) -> list[Paused]:
    found: list[Paused] = []
    for row in events:
        kind, attempt = row.get("kind"), row.get("attempt")
        under_way = bool(found) and not found[-1].ended_by and attempt == found[-1].attempt
        if kind == "pause":
            found.append(Paused(row["attempt"], row["step"], row["time"], row["time"]))
        elif under_way and kind in PAUSE_ENDS:
            found[-1] = replace(found[-1], end_s=row["time"], ended_by=kind)
        elif under_way:
            found[-1] = replace(found[-1], end_s=row["time"])
    return found


def spans_by_attempt(
    pairs: Sequence[tuple[Row, Row]], events: Sequence[Row], until_attempt: Callable[[int], Row]
) -> list[list[Span]] | None:
    """pairs: each row with the reading before it. until_attempt: the newest reading of the attempts before.

    None where a row tells no energy, or an attempt not when it began.
    """
    begins = {row["attempt"]: row["time"] for row in events if row.get("kind") in ("start", "resume")}
    own: dict[int, list[tuple[Row, Row]]] = {attempt: [] for attempt in begins}
    for before, row in pairs:
        if row.get("attempt") not in begins or None in (row.get("energy_j"), before.get("energy_j", 0.0)):
            return None
        own[row["attempt"]].append((before, row))
    pauses = [pause for pause in pauses_of(events) if pause.ended_by]
    found = []
    for attempt, begin_s in begins.items():
        paused = [pause for pause in pauses if pause.attempt == attempt]
        ends = until_attempt(attempt), until_attempt(attempt + 1)
        found.append(_spans_of(begin_s, own[attempt], paused, ends))
    return found


def _spans_of(
    begin_s: float, pairs: list[tuple[Row, Row]], pauses: list[Paused], ends: tuple[Row, Row]
) -> list[Span]:
    """Of one attempt. ends: the readings before it, and after it."""
    spans: list[Span] = []
    for before, row in pairs:
        due = [pause for pause in pauses if pause.step < row["step"]]
        pauses = pauses[len(due) :]
        waits = _waits(due, begin_s, before, row)
        begin_s = waits[-1].end_s if waits else begin_s
        end_s = begin_s + max(0.0, time_s(row) - time_s(before))
        drawn_j = row["energy_j"] - before.get("energy_j", 0.0) - sum(wait.joules for wait in waits)
        spans += [*waits, Span(begin_s, end_s, drawn_j)]
        begin_s = end_s
    last = pairs[-1][1] if pairs else ends[0]
    return [*spans, *_waits(pauses, begin_s, last, ends[1])]


def _waits(pauses: list[Paused], begin_s: float, before: Row, after: Row) -> list[Span]:
    """Pauses between two readings: what was drawn in them, by how long they took."""
    joules = phase_j(after, PAUSED) - phase_j(before, PAUSED)
    whole_s = sum(pause.end_s - pause.begin_s for pause in pauses)
    spans: list[Span] = []
    for pause in pauses:
        share = (pause.end_s - pause.begin_s) / whole_s if whole_s else 0.0
        spans.append(Span(begin_s, max(begin_s, pause.end_s), share * joules, is_pause=True))
        begin_s = spans[-1].end_s
    return spans
