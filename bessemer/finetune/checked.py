"""A fine-tuning for `bessemer check layouts`: its stage, and its plan under a layout.

As `bessemer finetune` would begin it, but that nothing is written to a run: no stage, and no note with the
stage that the weights come from.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bessemer.errors import RecipeError
from bessemer.finetune.run import with_hash
from bessemer.finetune.task import Task, check_section, origin_of, plan_before, task_from
from bessemer.formulas.layout import ONE_PROCESS
from bessemer.planner.finetuning import finetune_context, resolve_finetune
from bessemer.planner.machine.facts import Facts
from bessemer.planner.plan import StagePlan
from bessemer.planner.rules.objective import objective_of
from bessemer.recipe.load import LoadedRecipe
from bessemer.recipe.schema import Parallel, Recipe
from bessemer.train.pretrain import Place
from bessemer.train.stage import Stage

_ROWS_MADE = ("distill", "grpo")
_NOWHERE = Path("check")  # below the run, where nothing has begun: an earlier stage decides nothing


def checked_stage(
    loaded: LoadedRecipe, place: Place, from_: str | None, layout_from: str
) -> tuple[Facts, Stage, Callable[[Recipe], StagePlan]]:
    """The facts, the stage of one process, and what plans it under the layout of a recipe."""
    _check_method(loaded.recipe)
    origin = origin_of(loaded, place, from_)
    task = task_from(loaded, replace(place, run=place.run / _NOWHERE), origin)
    plan_of = _planner(task, layout_from)
    alone = loaded.recipe.model_copy(update={"parallel": Parallel(layout=str(ONE_PROCESS))})
    stage = Stage(
        folder=place.run / _NOWHERE / "finetune",
        kind="finetune",
        shape=task.shape,
        plan=plan_of(alone),
        seed=task.recipe.seed,
        data=task.data,
        tokenizer=task.tokenizer,
        origin=task.origin,
        new_tokens=task.new_tokens,
    )
    return task.facts, with_hash(stage), plan_of


def _planner(task: Task, layout_from: str) -> Callable[[Recipe], StagePlan]:
    section = check_section(task.recipe)
    num_rows = len(task.data.rows("train", finetune_context(section, task.shape)))
    objective = objective_of(section, task.data.manifest)

    def plan_of(recipe: Recipe) -> StagePlan:
        before = plan_before(task.origin)
        found, _ = resolve_finetune(
            recipe, task.shape, num_rows, task.facts, before, objective=objective, layout_from=layout_from
        )
        return found

    return plan_of


def _check_method(recipe: Recipe) -> None:
    method = check_section(recipe).method
    if method in _ROWS_MADE:
        raise RecipeError(
            "rows that a model makes are not checked under layouts",
            found=f'finetune.method = "{method}"',
            wanted="rows that are there before training",
            fix='check the same layouts with --set finetune.method="full", or "lora"',
        )
