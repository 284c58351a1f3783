"""`bessemer data build` of a recipe that only teaches a task: its examples, as `finetune` will read them."""

import argparse
from typing import Any

from bessemer.data.prepared import PreparedTask
from bessemer.data.preparing import check_no_errors
from bessemer.data.store import prepare_task
from bessemer.energy.metering.beside import around_data
from bessemer.errors import RecipeError
from bessemer.planner.finetuning import finetune_context
from bessemer.planner.machine.facts import Facts
from bessemer.planner.source import with_files
from bessemer.recipe.load import LoadedRecipe


def build_task(args: argparse.Namespace, loaded: LoadedRecipe, given: dict[str, Any]) -> PreparedTask:
    """For the Hugging Face folder that the recipe begins with. given: options of the command."""
    for name in sorted(given.keys() - {"strict", "refresh"}):
        option = "--" + name.removesuffix("_s").replace("_", "-")
        raise RecipeError(
            f"{option} has no effect on a recipe without [[data.source]]",
            found=option,
            wanted="it for pre-training data: the examples of a task are prepared by one process",
            fix=f"remove {option}",
        )
    recipe, base = loaded.recipe, loaded.base
    if recipe.model.from_ is None or not (base / recipe.model.from_).is_dir():
        raise RecipeError(
            "the recipe does not say whose tokens its examples are to be",
            found="no [[data.source]], and no Hugging Face folder in model.from",
            wanted="the model that is fine-tuned, with its tokenizer",
            fix="add --set model.from=HF_DIR; `bessemer finetune RECIPE --from RUN` prepares them itself",
        )
    shape = with_files(Facts("cpu", "cpu"), recipe, base).source_shape
    assert shape is not None and recipe.finetune is not None, "the caller saw to both"
    context = finetune_context(recipe.finetune, shape)
    task = prepare_task(
        recipe,
        base,
        args.store,
        base / recipe.model.from_,
        args.console,
        context,
        refresh=bool(args.refresh),
        around=around_data(args.console),
    )
    if args.strict:
        check_no_errors(task)
    return task
