"""What attempts that were killed are likely to have drawn after their last row: beside the sums, in none.

Steps by the power of that row, until a step was last seen; at most until the next one would have been. Pauses
after that row as their end told; one that the kill ended, by what other pauses of the stage drew, until an
event was last heard. Of an attempt that was killed before its first row only its pauses are known of.
"""

from collections.abc import Sequence

from bessemer.energy.accounting.readings import attempt_of
from bessemer.energy.accounting.timeline import PAUSE_ENDS, pauses_of
from bessemer.energy.power import Band
from bessemer.energy.quantity import NOTHING, UNKNOWN, Quantity, exactly
from bessemer.rundir import Row

SEEN_S = 10.0  # a log is told of a step at least so often (log.py)


def after_kills(rows: Sequence[Row], events: Sequence[Row]) -> Quantity:
    """rows, events: all of a stage."""
    found = NOTHING
    for event in events:
        seen_s, killed = event.get("unrecorded_s"), attempt_of(event) - 1
        own = [other for other in events if attempt_of(other) == killed]
        if seen_s is None or any("energy_j" in other for other in own):  # it told what it drew to its end
            continue
        last = next((row for row in reversed(rows) if attempt_of(row) == killed), None)
        after = own if last is None else [other for other in own if other.get("step", 0) >= last["step"]]
        ends = [other for other in after if other.get("kind") in PAUSE_ENDS]
        machines = (last or (rows[-1] if rows else {})).get("energy_machines", 1)
        paused = _in_pauses(ends, machines).plus(_in_last_pause(after, events, machines))
        # What was seen of an attempt without rows counts from the row of another one, and is no work.
        work_s = seen_s - sum(end.get("seconds") or 0.0 for end in ends)
        found = found.plus(paused).plus(NOTHING if last is None else _in_steps(last, max(0.0, work_s)))
    return found


def _in_steps(last: Row, seen_s: float) -> Quantity:
    power_w = last.get("power_w")
    if power_w is None:
        return UNKNOWN
    most_s = seen_s + max(SEEN_S, last["step_time_s"])
    return Quantity.of(Band(seen_s, seen_s, most_s).times(power_w), "modelled")


def _in_pauses(ends: Sequence[Row], machines: int) -> Quantity:
    """Events tell the joules of the first machine: the others are alike."""
    found = NOTHING
    for end in ends:
        joules = end.get("joules")
        found = found.plus(UNKNOWN if joules is None else exactly(machines * joules))
    return found


def _in_last_pause(after: Sequence[Row], events: Sequence[Row], machines: int) -> Quantity:
    """after: an attempt's events after its last row. The pause in which it was killed, if it was."""
    open_s = sum(pause.end_s - pause.begin_s for pause in pauses_of(after) if not pause.ended_by)
    if open_s <= 0.0:
        return NOTHING
    ends = [event for event in events if event.get("kind") in PAUSE_ENDS and event.get("joules") is not None]
    whole_s = sum(end.get("seconds") or 0.0 for end in ends)
    if not whole_s:
        return UNKNOWN
    return exactly(machines * open_s * sum(end["joules"] for end in ends) / whole_s)
