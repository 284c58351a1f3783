"""What a recipe names beside itself, read without torch: `model.from`, the runs of `budget.runs`, and
for training the price and place of `[cluster] file`.

What can be trained is read exactly (formulas/huggingface/config.py). What cannot is read as far as a plan
needs it (formulas/huggingface/plan.py), and the reason why training would refuse it goes along.
"""

from dataclasses import replace
from pathlib import Path

from bessemer.energy.grid.regions import region
from bessemer.errors import RecipeError
from bessemer.formulas.huggingface.config import shape_from_config
from bessemer.formulas.huggingface.keys import check_heads, config_path, read_json
from bessemer.formulas.huggingface.plan import planned_shape
from bessemer.formulas.shape import ModelShape
from bessemer.planner.machine.facts import Facts, planned_facts
from bessemer.planner.sizing.own_runs import law_for
from bessemer.recipe.load import LoadedRecipe
from bessemer.recipe.schema import Recipe
from bessemer.recipe.write import recipe_text

_OF_PLACE = ("usd_per_device_hour", "region", "pue", "device_hours_per_failure")
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
    if not shape.mla_kv_rank:
        check_heads(shape.heads, shape.kv_heads)
    return replace(facts, source_shape=_shortened(shape, context), source_refused=refused)


def with_cluster_file(loaded: LoadedRecipe) -> LoadedRecipe:
    """A recipe to train by: price, place and failures as its cluster file says, where [cluster] does not.

    Devices and links are not taken over: training has those that are here. The text has the values instead of
    the file's name: a run's recipe.toml must tell alone what it was counted with, also without that file.
    RecipeError: the file is missing, contradicts itself, or names an unknown region.
    """
    keys = loaded.recipe.cluster
    if keys.file is None:
        return loaded
    told = planned_facts(None, loaded.recipe, loaded.base)[0].cluster
    if told.region is not None:
        region(told.region)
    changes = {"file": None, **{name: getattr(told, name) for name in _OF_PLACE}}
    recipe = loaded.recipe.model_copy(update={"cluster": keys.model_copy(update=changes)})
    return replace(loaded, recipe=recipe, text=recipe_text(recipe))


def _shortened(shape: ModelShape, context: int | None) -> ModelShape:
    """Rows of a usual length where none was asked for: few can train on all positions of a new model."""
    return shape if context is not None else replace(shape, context=min(_DEFAULT_CONTEXT, shape.context))
