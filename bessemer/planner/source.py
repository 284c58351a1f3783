"""What a recipe names beside itself, read without torch: `model.from`, and the runs of `budget.runs`.

What can be trained is read exactly (formulas/huggingface.py). What cannot is read as far as a plan needs
it (formulas/huggingface_plan.py), and the reason why training would refuse it goes along.
"""

from dataclasses import replace
from pathlib import Path

from bessemer.errors import RecipeError
from bessemer.formulas.huggingface import shape_from_config
from bessemer.formulas.huggingface_keys import config_path, read_json
from bessemer.formulas.huggingface_plan import planned_shape
from bessemer.formulas.shape import ModelShape
from bessemer.planner.facts import Facts
from bessemer.planner.own_runs import law_for
from bessemer.recipe.schema import Recipe

_DEFAULT_CONTEXT = 1024  # that of a recipe, as in checkpoint/huggingface.py


def with_files(facts: Facts, recipe: Recipe, base: Path) -> Facts:
    """The facts with the shape of model.from and the law of budget.runs, where the recipe has them.

    base: the folder that a relative path starts from.
    """
    facts = replace(facts, law=law_for(recipe, base))
    if recipe.model.from_ is None:
        return facts
    config = read_json(config_path(base / recipe.model.from_))
    context = recipe.model.context if "context" in recipe.model.model_fields_set else None
    refused = None
    try:
        shape = shape_from_config(config, context=context)
    except RecipeError as error:
        shape = planned_shape(config, context=context)
        refused = f"{error.found} (wanted: {error.wanted})"
    return replace(facts, source_shape=_shortened(shape, context), source_refused=refused)


def _shortened(shape: ModelShape, context: int | None) -> ModelShape:
    """Rows of a usual length where none was asked for: few can train on all positions of a new model."""
    return shape if context is not None else replace(shape, context=min(_DEFAULT_CONTEXT, shape.context))
