"""How the run went: attempts with their kills and resumes, events, receipt, recipe."""

import time
from collections.abc import Iterator
from typing import Any

from bessemer.report.html import folded, paragraph, table, verdict
from bessemer.report.record import RunRecord, StageRecord, number
from bessemer.rundir import Row

_ENDS = {"done": ("finished", "good"), "stop": ("stopped and saved", "warm")}
_MOST_EVENTS = 60


def attempts(run: RunRecord) -> str:
    rows = [row for stage in run.stages for row in _attempts_of(stage)]
    lost = sum(len(stage.abandoned) for stage in run.stages)
    lead = paragraph(
        f"{lost} step(s) were run again after a resume; their rows are kept, the later ones count."
        if lost
        else "No step had to be run twice."
    )
    headings = ["stage", "attempt", "began (UTC)", "from step", "to step", "ended"]
    return lead + table(headings, rows, numbers=(1, 3, 4)) + _events(run) if rows else ""


def receipt(run: RunRecord) -> str:
    if run.receipt is None:
        return ""
    told = {key: value for key, value in run.receipt.items() if key != "energy"}  # has a section of its own
    rows = [[key, "none" if value is None else value] for key, value in _flat(told)]
    return table(["what", "value"], rows)


def recipe(run: RunRecord) -> str:
    if run.recipe_text is None:
        return ""
    again = paragraph("This text and the receipt above are all that is needed to do it again.", "note")
    return again + folded("recipe.toml", run.recipe_text)


def _attempts_of(stage: StageRecord) -> list[list[Any]]:
    by_attempt: dict[int, list[Row]] = {}
    for event in stage.events:
        by_attempt.setdefault(event.get("attempt", 0), []).append(event)
    reached: dict[int, int] = {}
    for row in [*stage.rows, *stage.abandoned]:
        attempt = row.get("attempt", 0)
        reached[attempt] = max(reached.get(attempt, 0), row["step"])
    newest = max(by_attempt, default=0)
    return [
        [
            stage.name,
            attempt,
            moment(events[0].get("time")),
            events[0].get("step", 0),
            reached.get(attempt, events[-1].get("step", 0)),
            _ending(events, newest=attempt == newest),
        ]
        for attempt, events in sorted(by_attempt.items())
    ]


def _ending(events: list[Row], *, newest: bool) -> Any:
    for event in reversed(events):
        if event.get("kind") in _ENDS:
            words, tone = _ENDS[event["kind"]]
            reason = f": {event['reason']}" if event.get("reason") else ""
            return verdict(words + reason, tone=tone)
    if newest:
        return verdict("no end recorded: running, or killed", tone="warm")
    return verdict("killed: it left no word", tone="bad")


def _events(run: RunRecord) -> str:
    rows = [
        [moment(event.get("time")), stage.name, event.get("kind"), event.get("step"), _rest(event)]
        for stage in run.stages
        for event in stage.events
        if event.get("kind") != "sample"
    ]
    if len(rows) > _MOST_EVENTS:  # the first and the last tell most; all are in events.jsonl
        half = _MOST_EVENTS // 2
        rows = [
            *rows[:half],
            ["…", "", f"{len(rows) - 2 * half} more in events.jsonl", "", ""],
            *rows[-half:],
        ]
    listing = table(["time (UTC)", "stage", "event", "step", "details"], rows, numbers=(3,))
    return f"<details><summary>All events</summary>{listing}</details>"


def _rest(event: Row) -> str:
    known = ("time", "attempt", "kind", "step")
    return ", ".join(f"{key} {_short(value)}" for key, value in event.items() if key not in known)


def _short(value: Any) -> str:
    figure = number(value)
    return f"{figure:.6g}" if isinstance(value, float) and figure is not None else str(value)[:160]


def moment(value: Any) -> str:
    """A time stamp, whether seconds since 1970 or text already. UTC, so that machines agree."""
    if isinstance(value, int | float):
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(value))
    return str(value or "")[:19].replace("T", " ")


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            yield f"{prefix}{key}", shown
