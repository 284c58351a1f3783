"""Everything that a report says, gathered from the files of a run. No torch; the account alone is computed.

A file that is not there is None or empty, and the report then says "not measured" or leaves the part
out. Only JSON is read; a damaged file is the user's error with its path, not a traceback.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bessemer.energy.accounting.account import account
from bessemer.errors import RecipeError
from bessemer.rundir import Row, named, read_object, read_rows, stages, steady_median, time_in_steps_s


@dataclass(frozen=True)
class StageRecord:
    """One training stage. `rows`: one a step, of the last attempt that reached it."""

    name: str
    folder: Path
    kind: str
    info: dict[str, Any]
    rows: list[Row]
    validations: list[Row]
    abandoned: list[Row]  # rows of steps that a later attempt ran again
    events: list[Row]
    data: dict[str, Any] | None

    @property
    def last(self) -> Row:
        return self.rows[-1] if self.rows else {}

    def curve(self, key: str, x: str = "tokens") -> list[tuple[float, float | None]]:
        return [(row[x], number(row.get(key))) for row in self.rows if x in row]

    def middle(self, key: str, since: int = 0) -> float | None:
        """The median over the steps after `since`, without the first ones of each attempt."""
        return steady_median(self.rows, key, since)

    def largest(self, key: str, since: int = 0) -> float | None:
        values = [number(row.get(key)) for row in self.rows if row["step"] > since]
        return max((value for value in values if value is not None), default=None)

    @property
    def time_in_steps_s(self) -> float | None:
        return time_in_steps_s(self.rows)

    @property
    def final_validation(self) -> float | None:
        return number(self.validations[-1]["validation_loss"]) if self.validations else None


@dataclass(frozen=True)
class RunRecord:
    name: str
    folder: Path
    recipe_text: str | None
    plan: dict[str, Any] | None
    receipt: dict[str, Any] | None
    stages: list[StageRecord]
    evaluation: dict[str, Any] | None
    comparison: dict[str, Any] | None
    exports: list[dict[str, Any]]

    @cached_property
    def account(self) -> dict[str, Any]:
        """What it drew (energy/accounting/account.py)."""
        return account(self.folder)

    def first_of_kind(self, kind: str) -> StageRecord | None:
        return next((stage for stage in self.stages if stage.kind == kind), None)


def read_run(path: Path) -> RunRecord:
    """A run directory, or one of its stages (then the run that it belongs to)."""
    run = named(path).parent if (path / "metrics.jsonl").is_file() else path
    found = [read_stage(stage) for stage in stages(run)]
    if not found:
        raise RecipeError(
            f"{path} holds nothing to report",
            found="no stage with metrics.jsonl" if path.is_dir() else "no such folder",
            wanted="a run directory such as runs/demo",
            fix="begin one with `bessemer run RECIPE`, or check the path",
        )
    order = {"pretrain": 0, "finetune": 1}
    recipe = run / "recipe.toml"
    return RunRecord(
        name=run.resolve().name,
        folder=run,
        recipe_text=recipe.read_text(encoding="utf-8") if recipe.is_file() else None,
        plan=read_object(run / "plan.json"),
        receipt=read_object(run / "receipt.json"),
        stages=sorted(found, key=lambda stage: (order.get(stage.kind, 2), stage.name)),
        evaluation=read_object(run / "evaluate" / "results.json"),
        comparison=read_object(run / "finetune-comparison.json"),
        exports=[
            {**content, "folder": str(file.parent.relative_to(run))}
            for file in sorted(run.glob("export/*/parity.json"))
            if (content := read_object(file)) is not None
        ],
    )


def read_stage(folder: Path) -> StageRecord:
    info = read_object(folder / "stage.json") or {}
    rows = read_rows(folder / "metrics.jsonl")
    counting = _newest(rows, "loss")
    kept = {id(row) for row in counting}
    data_folder = (info.get("data") or {}).get("folder")
    return StageRecord(
        name=folder.name,
        folder=folder,
        kind=info.get("kind") or ("finetune" if folder.name.startswith("finetune") else "pretrain"),
        info=info,
        rows=counting,
        validations=_newest(rows, "validation_loss"),
        abandoned=[row for row in rows if "loss" in row and id(row) not in kept],
        events=read_rows(folder / "events.jsonl"),
        data=read_object(Path(data_folder) / "manifest.json") if data_folder else None,
    )


def number(value: Any) -> float | None:
    """A figure of a row: a number, or the value of {value, low, high, basis}; null and NaN are None."""
    value = value.get("value") if isinstance(value, dict) else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if value == value and abs(value) != float("inf") else None


def _newest(rows: list[Row], key: str) -> list[Row]:
    """One row a step among those that have `key`: the last written, in order of steps."""
    newest = {row["step"]: row for row in rows if row.get(key) is not None}
    return [newest[step] for step in sorted(newest)]
