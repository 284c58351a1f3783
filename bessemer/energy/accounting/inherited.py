"""What a stage began from that other runs have paid for: told apart, and in none of its sums.

A fork, or a stage that began from another run's weights, draws for its own steps only, and its budget is for
those. Steps, tokens and energy of the origin are those of its rows until the step that was taken, steps that
it lost included; then of the origin's own origin, and on to random weights or a folder of no run of ours.
"""

from pathlib import Path
from typing import Any

from bessemer.energy.accounting.ledger import StageLedger
from bessemer.energy.quantity import UNKNOWN, Quantity
from bessemer.rundir import Row, begins_at, counting_rows, read_object, read_rows


def inherited(stage: Path) -> list[Row]:
    """Nearest first; empty where it began from random weights, or from another stage of its own run."""
    found: list[Row] = []
    seen, folder = {stage.resolve()}, stage
    while (origin := (read_object(folder / "stage.json") or {}).get("origin")) is not None:
        folder = Path(origin["folder"])
        if folder.resolve() in seen or folder.resolve().parent == stage.resolve().parent:
            break
        seen.add(folder.resolve())
        step = origin.get("step")  # a folder of no run of ours has none
        found.append({"from": str(folder), "step": step, **_until(folder, step)})
    return found


def _until(folder: Path, step: int | None) -> dict[str, Any]:
    """Own steps, tokens and energy of a stage until `step`. None, or unknown, where nothing tells."""
    rows = [row for row in counting_rows(read_rows(folder / "metrics.jsonl")) if row["step"] <= (step or 0)]
    ledger = StageLedger(rows, [])
    energy: Quantity = ledger.energy if rows else UNKNOWN
    events = read_rows(folder / "events.jsonl")
    own = step - begins_at(events) if step is not None and events else None
    return {"steps": own, "tokens": ledger.tokens, "energy_j": energy.to_json()}
