"""The scaling law of a team's own runs: size, tokens and final validation loss of each, from its files.

A run counts when it has finished (a learning rate that has not come down yet hides what was learnt), began
from random weights, and read the same data as the others: losses on other data or with another tokenizer
are no points of one law. What does not count is told, by the number of runs that do.
"""

import math
from pathlib import Path

from bessemer.errors import DataError, RecipeError
from bessemer.formulas.parameters import total_params
from bessemer.formulas.scaling.law import Law, Point, fit
from bessemer.formulas.shape import ModelShape
from bessemer.recipe.schema import Recipe
from bessemer.rundir import counting_rows, read_object, read_rows


def law_for(recipe: Recipe, base: Path) -> Law | None:
    """The law of budget.runs; None where the recipe names none. base: where a relative path starts."""
    if recipe.budget.runs is None:
        return None
    return law_from_runs(_folders(base, recipe.budget.runs))


def law_from_runs(runs: list[Path]) -> Law:
    """RecipeError: runs of different data, too few that have finished, or too much alike."""
    found = {run: point for run in runs if (point := _point(run)) is not None}
    data = {run: _data(run) for run in found}
    kinds = sorted(set(data.values()))
    if len(kinds) > 1:
        one, other = (next(run for run in found if data[run] == kind) for kind in kinds[:2])
        raise RecipeError(
            "budget.runs are of different data",
            found=f"{one} and {other}",
            wanted="runs of one data set and tokenizer: other losses are no points of one law",
            fix="name folders of the same data only",
        )
    try:
        return fit(list(found.values()), name=f"{len(found)} own runs")
    except DataError as error:
        counted = f"{len(found)} of {len(runs)} folders are finished runs from random weights: {error.found}"
        raise RecipeError(
            f"budget.runs: {error.problem}", found=counted, wanted=error.wanted, fix=error.fix
        ) from error


def _folders(base: Path, given: str) -> list[Path]:
    """That the glob finds. RecipeError: it is none."""
    pattern = base / given
    try:
        found = Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor)))
        return sorted(path for path in found if path.is_dir())
    except ValueError as error:
        raise RecipeError(
            "budget.runs is no pattern of folders",
            found=f"budget.runs = {given!r}: {error}",
            wanted="a glob: * in a name, ** as a whole part of the path",
            fix='write it like budget.runs = "runs/*"',
        ) from error


def _point(run: Path) -> Point | None:
    """None: no run, not finished, begun from another one, or of files that do not say what they should."""
    try:
        point = _read_point(run)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return None
    return point if point is not None and all(0.0 < value < math.inf for value in point) else None


def _read_point(run: Path) -> Point | None:
    stage = read_object(run / "pretrain" / "stage.json")
    if stage is None or stage.get("origin") is not None:
        return None
    rows = counting_rows(read_rows(run / "pretrain" / "metrics.jsonl"))
    last = rows[-1] if rows else {}
    loss = last.get("validation_loss")
    if loss is None or last["step"] < stage["plan"]["steps"]:
        return None
    return float(total_params(ModelShape.from_json(stage["shape"]))), float(last["tokens"]), float(loss)


def _data(run: Path) -> str:
    stage = read_object(run / "pretrain" / "stage.json") or {}
    data = stage.get("data")
    return str(data.get("hash") if isinstance(data, dict) else data)
