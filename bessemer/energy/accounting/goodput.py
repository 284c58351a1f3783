"""Goodput of a stage: the share of the time in which it was to work that went into steps which count.

    time of steps that count, without what they waited for saves
    ------------------------------------------------------------------------------------------
    first start to last event, without pauses for the grid, and without what lies behind a stop that was asked
    for or behind the end of a stage that is made longer later

What a plan predicts under that name (formulas/goodput.py): failures, what they lose, and saving. So a kill
costs the steps that are run again, the time until the next attempt and its start; a stop or a pause costs
nothing, as nobody wanted work in it. Validation and sampled answers are work, and count with their steps.
The save before a pause is in no step's time, so of rows with a pause no save is taken off once more.
"""

from collections.abc import Sequence
from itertools import pairwise

from bessemer.energy.accounting.ledger import StageLedger
from bessemer.energy.accounting.readings import phase_s
from bessemer.energy.accounting.timeline import pauses_of
from bessemer.energy.reading import PAUSED, SAVING
from bessemer.rundir import Row, counting_rows, time_in_steps_s

_ENDS = ("stop", "done")  # events, behind which nobody wants work until the next attempt


def goodput(ledger: StageLedger) -> float | None:
    """None: no step was timed, or fewer than two events tell when it worked."""
    counting = counting_rows(ledger.rows)
    seconds, whole_s = time_in_steps_s(counting), _wanted_s(ledger.events)
    if seconds is None or whole_s is None or whole_s <= 0.0:
        return None
    kept = {id(row) for row in counting}
    saved_s = sum(
        phase_s(row, SAVING) - phase_s(before, SAVING)
        for before, row in ledger.pairs()
        if id(row) in kept and phase_s(row, PAUSED) == phase_s(before, PAUSED)
    )
    return min(1.0, max(0.0, seconds - saved_s) / whole_s)


def _wanted_s(events: Sequence[Row]) -> float | None:
    timed = [event for event in events if isinstance(event.get("time"), int | float)]
    if len(timed) < 2:
        return None
    stopped_s = sum(
        after["time"] - before["time"] for before, after in pairwise(timed) if before.get("kind") in _ENDS
    )
    paused_s = sum(pause.end_s - pause.begin_s for pause in pauses_of(timed))
    return float(timed[-1]["time"] - timed[0]["time"] - stopped_s - paused_s)
