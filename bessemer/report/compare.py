"""Runs side by side: curves at the steps that they share, differences of recipe, final figures.

Reads files only. Steps are compared, not times: the same step has seen the same number of updates,
and where the batch differs the table says how many tokens each had.
"""

from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from bessemer.energy.accounting.ledger import StageLedger
from bessemer.errors import RecipeError
from bessemer.recipe.changes import differences
from bessemer.recipe.load import load
from bessemer.recipe.schema import Recipe
from bessemer.report.html import Section, page, paragraph, table
from bessemer.report.record import StageRecord, number, read_stage
from bessemer.report.svg import Chart, Series, draw
from bessemer.rundir import find_stage, named, read_rows
from bessemer.rundir import stages as list_stages

_MOST_ROWS = 12
_COLOURS = 6
_FINAL = ("step", "tokens", "loss", "validation_loss", "tokens_per_s", "mfu", "time_s", "energy_j",
          "joules_per_token")  # fmt: skip


def compare(paths: list[Path]) -> dict[str, Any]:
    """{runs, rows: figures of every run at shared steps, final, recipe_differences}."""
    stages = _read(paths)
    names = _names(stages)
    return {
        "runs": names,
        "stages": [str(stage.folder) for stage in stages],
        "rows": _rows(stages, names),
        "final": [{"run": name, **final_figures(stage)} for name, stage in zip(names, stages, strict=True)],
        "recipe_differences": _recipe_differences(stages, names),
    }


def final_figures(stage: StageRecord) -> dict[str, Any]:
    """What a run came to. Null is what nobody measured."""
    last = stage.last
    ledger = StageLedger(read_rows(stage.folder / "metrics.jsonl"), stage.events)
    energy = ledger.energy
    tokens = ledger.tokens  # of this run alone: a fork counts on from its origin's
    return {
        "step": last.get("step"),
        "tokens": last.get("tokens"),
        "loss": number(last.get("loss")),
        "validation_loss": stage.final_validation,
        "tokens_per_s": stage.middle("tokens_per_s"),
        "mfu": stage.middle("mfu"),
        "time_s": stage.time_in_steps_s,
        "memory_bytes": stage.largest("memory_bytes"),
        "energy_j": energy.value,
        "energy_basis": energy.basis,
        "joules_per_token": energy.value / tokens if energy.value is not None and tokens else None,
    }


def comparison_page(paths: list[Path], document: dict[str, Any]) -> str:
    """The comparison as one self-contained page with overlaid curves."""
    stages, names = _read(paths), document["runs"]
    charts = [
        _chart(stages, names, "Training loss", "loss", "nat / token"),
        _validation_chart(stages, names),
        _chart(stages, names, "Throughput", "tokens_per_s", "tokens / s", from_zero=True),
        _chart(stages, names, "Gradient norm", "grad_norm", "global L2 norm"),
    ]
    final = [[row["run"], *(_shown(row[key]) for key in _FINAL)] for row in document["final"]]
    sections = [
        Section("curves", "Curves", f'<div class="charts">{"".join(draw(chart) for chart in charts)}</div>'),
        Section("final", "Final figures", table(["run", *_FINAL], final, numbers=range(1, 1 + len(_FINAL)))),
        Section("steps", "At shared steps", _step_table(document)),
        Section("recipes", "Differences of recipe", _difference_tables(document)),
    ]
    title = "Comparison of " + ", ".join(names)
    lead = f"<h1>{escape(title)}</h1>" + paragraph(
        f"{len(names)} runs, {len(document['rows'])} shared steps shown."
    )
    return page(title, lead, sections, "Made by bessemer compare from the runs' own files.")


def _read(paths: list[Path]) -> list[StageRecord]:
    if len(paths) < 2:
        raise RecipeError(
            "nothing to compare with",
            found=f"{len(paths)} run",
            wanted="two runs or more",
            fix="name another one: `bessemer compare runs/a runs/b`",
        )
    stages = [read_stage(_stage(path)) for path in paths]
    for stage in stages:
        if not stage.rows:
            raise RecipeError(
                f"{stage.folder} has no steps to compare",
                found="no whole row in metrics.jsonl",
                wanted="a run that has trained",
                fix="wait for its first step, or leave it out",
            )
    return stages


def _stage(path: Path) -> Path:
    """A stage itself, or a run's newest one; a run that has not saved a checkpoint yet counts too."""
    if (path / "metrics.jsonl").is_file():
        return named(path)
    begun = list_stages(path)
    return begun[-1] if begun else find_stage(path)


def _names(stages: list[StageRecord]) -> list[str]:
    """The run's name; with its stage, and then its path, where that is not enough to tell them apart."""
    for name_of in (
        lambda stage: stage.folder.resolve().parent.name,
        lambda stage: f"{stage.folder.resolve().parent.name}/{stage.name}",
    ):
        names = [name_of(stage) for stage in stages]
        if len(set(names)) == len(names):
            return names
    return [f"{stage.folder} ({place})" for place, stage in enumerate(stages, start=1)]


def _rows(stages: list[StageRecord], names: list[str]) -> list[dict[str, Any]]:
    """Evenly spread steps that every run validated at, or else that all have; the first and last too."""
    by_step = [{row["step"]: row for row in stage.rows} for stage in stages]
    shared = sorted(set.intersection(*(set(rows) for rows in by_step)))
    validated = [{row["step"]: row["validation_loss"] for row in stage.validations} for stage in stages]
    both = [step for step in shared if all(step in losses for losses in validated)]
    # Steps with a validation loss say most; a run that never validated still shows its training loss.
    chosen = sorted({*shared[:1], *_spread(both, _MOST_ROWS), *shared[-1:]})
    chosen = chosen if both else _spread(shared, _MOST_ROWS)
    return [
        {
            "step": step,
            "runs": [
                {
                    "run": name,
                    "tokens": rows[step].get("tokens"),
                    "loss": number(rows[step].get("loss")),
                    "validation_loss": number(losses.get(step)),
                    "tokens_per_s": number(rows[step].get("tokens_per_s")),
                }
                for name, rows, losses in zip(names, by_step, validated, strict=True)
            ],
        }
        for step in chosen
    ]


def _spread(values: list[int], most: int) -> list[int]:
    if len(values) <= most:
        return values
    return [values[round(place * (len(values) - 1) / (most - 1))] for place in range(most)]


def _recipe_differences(stages: list[StageRecord], names: list[str]) -> list[dict[str, Any]]:
    """Each run against the one before it in the list. A run without a recipe is left out."""
    recipes = [(name, _recipe(stage)) for name, stage in zip(names, stages, strict=True)]
    found = []
    for (first, old), (second, new) in pairwise(recipes):
        if old is not None and new is not None:
            for change in differences(old, new):
                if change.affects != "nothing":
                    values = {"key": change.key, "values": [change.old, change.new]}
                    found.append({"runs": [first, second], **values, "affects": change.affects})
    return found


def _recipe(stage: StageRecord) -> Recipe | None:
    path = stage.folder.parent / "recipe.toml"
    return load(str(path), []).recipe if path.is_file() else None


def _chart(
    stages: list[StageRecord], names: list[str], title: str, key: str, label: str, *, from_zero: bool = False
) -> Chart:
    series = [
        Series(name, stage.curve(key, "step"), 1 + place % _COLOURS, dashed=place >= _COLOURS)
        for place, (name, stage) in enumerate(zip(names, stages, strict=True))
    ]
    return Chart(title, series, "step", label, from_zero=from_zero)


def _validation_chart(stages: list[StageRecord], names: list[str]) -> Chart:
    series = [
        Series(
            name,
            [(row["step"], number(row["validation_loss"])) for row in stage.validations],
            1 + place % _COLOURS,
        )
        for place, (name, stage) in enumerate(zip(names, stages, strict=True))
    ]
    return Chart("Validation loss", series, "step", "nat / token")


def _step_table(document: dict[str, Any]) -> str:
    names = document["runs"]
    headings = ["step", *(f"{what}: {name}" for what in ("loss", "validation", "tokens/s") for name in names)]
    keys = ("loss", "validation_loss", "tokens_per_s")
    rows = [
        [row["step"], *(_shown(figures[key]) or "–" for key in keys for figures in row["runs"])]
        for row in document["rows"]
    ]
    return table(headings, rows, numbers=range(len(headings)))


def _difference_tables(document: dict[str, Any]) -> str:
    rows = [
        [
            f"{change['runs'][0]} → {change['runs'][1]}",
            change["key"],
            *map(str, change["values"]),
            change["affects"],
        ]
        for change in document["recipe_differences"]
    ]
    return table(["runs", "key", "first", "second", "affects"], rows) or paragraph("None that has an effect.")


def _shown(value: float | int | None) -> str | None:
    if value is None:
        return None
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"  # losses to the fourth decimal
