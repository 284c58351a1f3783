"""What every fine-tuning of one run shares: its data, and the model that learns it.

The weights come from `--from`, else from this run's own pre-training, else from the Hugging Face folder
that `model.from` names; a stage that has begun keeps what it began from. All is checked here before a stage
begins, and nothing is written but prepared data.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from bessemer.checkpoint.folder import listed, step_of
from bessemer.checkpoint.peft_start import check_peft
from bessemer.data import supported
from bessemer.data.prepared import PreparedTask
from bessemer.data.store import prepare_task
from bessemer.data.task.inputs import task_inputs
from bessemer.data.task.reading import Reading
from bessemer.energy.levers.restore import restore_left
from bessemer.energy.metering.beside import around_data
from bessemer.errors import DataError, RecipeError
from bessemer.finetune.added import new_tokens, told, with_rows
from bessemer.formulas.shape import ModelShape
from bessemer.measure.facts import gather
from bessemer.model.device import this_device
from bessemer.planner.finetuning import finetune_context
from bessemer.planner.limits import check_trainable
from bessemer.planner.machine.facts import Facts
from bessemer.planner.plan import StagePlan
from bessemer.planner.resolve import check_recipe
from bessemer.planner.rules.adapter import adapter_of, check_adapter_keys, full_lr
from bessemer.planner.rules.objective import check_method, objective_of, with_head
from bessemer.planner.stage import rows_of
from bessemer.recipe.load import LoadedRecipe
from bessemer.recipe.schema import Finetune, Recipe
from bessemer.rundir import read_object
from bessemer.train.levers import check_here
from bessemer.train.origin import Origin, find_origin, of_stage
from bessemer.train.pause import pause_rule
from bessemer.train.pretrain import Place, power_command
from bessemer.train.settle import allowed_changes


@dataclass(frozen=True)
class Task:
    """What every fine-tuning of one run shares."""

    recipe: Recipe
    place: Place
    origin: Origin
    shape: ModelShape
    tokenizer: Path
    data: PreparedTask
    facts: Facts
    world: int | None = None  # processes that were started; None: as many are started as the layout has ranks
    base: Path = Path()  # the recipe's folder
    new_tokens: tuple[int, ...] = ()  # that the origin's model has not


def check_early(loaded: LoadedRecipe) -> None:
    """What can be said of [finetune] before there is a model to fine-tune."""
    section = check_section(loaded.recipe)
    assert section.data is not None
    supported.check_task(section.data, section.method)
    context = section.context if isinstance(section.context, int) else loaded.recipe.model.context
    rows_of(section, "finetune", context)
    if loaded.recipe.data.gather is None and section.data.path is not None:
        inputs = task_inputs(section.data, loaded.base)
        if section.data.kind != "sql":  # a database is asked once, when its rows are read
            Reading.of(section.data, section.method, inputs)


def check_section(recipe: Recipe) -> Finetune:
    """[finetune], which must name the task's data."""
    if recipe.finetune is None or recipe.finetune.data is None:
        raise RecipeError(
            "the recipe says nothing of a task",
            found="no [finetune]" if recipe.finetune is None else "[finetune] without data",
            wanted="[finetune] with the task's examples",
            fix='add to the recipe: [finetune] and data = { kind = "jsonl", path = "train.jsonl" }',
        )
    check_method(recipe.finetune)
    check_adapter_keys(recipe.finetune)
    return recipe.finetune


def prepare_finetune(loaded: LoadedRecipe, place: Place, from_: str | None, world: int | None = None) -> Task:
    """Data and first weights, checked; the run itself is not changed yet."""
    recipe = loaded.recipe
    restore_left(place.console.line)  # before anything of this machine is measured
    check_section(recipe)
    power_command(recipe, place)
    pause_rule(recipe.energy, loaded.base, allow_code=place.allow_code)
    check_recipe(recipe, world=world)
    check_here(recipe, place.run / "finetune", world)
    allowed_changes(loaded, place.run)
    return task_from(loaded, place, origin_of(loaded, place, from_), world)


def task_from(loaded: LoadedRecipe, place: Place, origin: Origin, world: int | None = None) -> Task:
    """The task's data, and the model that learns it. Writes prepared data only."""
    recipe, section = loaded.recipe, check_section(loaded.recipe)
    shape, tokenizer = _model(recipe, place.run / "finetune", origin)
    check_trainable(recipe, shape)
    context = finetune_context(section, shape)
    data = prepare_task(
        recipe,
        loaded.base,
        place.store,
        tokenizer,
        place.console,
        context,
        around=around_data(place.console),
    )
    described = data.manifest["tokenizer"]
    added = new_tokens(tokenizer, data, place.run / "finetune") if section.add_tokens else ()
    if added:
        shape, tokenizer = with_rows(shape, described["vocab"], added), data.tokenizer_path
        place.console.line(told(added, shape))
    if described["vocab"] > shape.vocab:
        raise DataError(
            "the tokenizer has more words than the model",
            found=f"{described['vocab']} words, {shape.vocab} rows in the embedding",
            wanted="the tokenizer that belongs to the model",
            fix=f"put it at {tokenizer}",
        )
    shape = replace(shape, bos_id=described["bos_id"], eos_id=described["eos_id"])
    shape = with_head(shape, objective_of(section, data.manifest))
    facts = gather(recipe, loaded.base, this_device(), vocab=described["vocab"])
    return Task(recipe, place, origin, shape, tokenizer, data, facts, world, loaded.base, added)


def origin_of(loaded: LoadedRecipe, place: Place, from_: str | None) -> Origin:
    """An attempt that goes on keeps what it began from, unless --from says otherwise."""
    say = place.console.line
    begun = Origin.of_begun(place.run / "finetune")
    if from_ is not None:
        return find_origin(from_, say, begun)
    if begun is not None:
        _tell_if_older(begun, place)
        return begun
    own = place.run / "pretrain"
    if listed(own):
        return of_stage(own, None, say)
    named = loaded.recipe.model.from_
    if named is not None and (loaded.base / named).is_dir():
        return find_origin(str(loaded.base / named), say)
    raise RecipeError(
        "there is nothing to fine-tune",
        found=f"no checkpoint in {own}, no --from, and no Hugging Face folder in model.from",
        wanted="a model to begin from",
        fix=f"first `bessemer pretrain {loaded.reference}`, or name one with --from RUN or --from HF_DIR",
    )


def plan_before(origin: Origin) -> StagePlan | None:
    """The plan that the weights were made with; rates of adapters as if all weights had learned."""
    plan = origin.plan
    has_adapter = plan is not None and (origin.info.get("shape") or {}).get("adapter") is not None
    return replace(plan, lr=full_lr(plan.lr)) if plan is not None and has_adapter else plan


def _tell_if_older(begun: Origin, place: Place) -> None:
    newest = listed(Path(begun.folder))
    step = step_of(newest[0]) if newest else None
    if begun.step is not None and step is not None and step > begun.step:
        place.console.line(
            f"finetune: it began from step {begun.step:,} of {begun.folder}, which is at {step:,} now; "
            "for the newer weights remove the finetune* folders, or give it another --run"
        )


def _model(recipe: Recipe, stage: Path, origin: Origin) -> tuple[ModelShape, Path]:
    """Shape and tokenizer: a stage that has begun has its own copies, so its origin may be gone."""
    own = read_object(stage / "stage.json")
    if own is not None:
        return ModelShape.from_json(own["shape"]), stage / str(own["tokenizer"])
    context = recipe.model.context if "context" in recipe.model.model_fields_set else None
    assert recipe.finetune is not None
    plain = replace(origin.shape(context), adapter=None)  # those of an origin are merged into its weights
    shape = replace(plain, adapter=adapter_of(recipe.finetune, plain))
    if origin.adapter is not None:
        _check_adapters(Path(origin.adapter), shape)
    return shape, origin.tokenizer


def _check_adapters(folder: Path, shape: ModelShape) -> None:
    """Of PEFT's, to go on with."""
    if shape.adapter is None:
        raise RecipeError(
            "adapters are begun from, and none are trained",
            found=f"{folder}, and a recipe that trains all weights",
            wanted="a recipe that trains adapters, or a whole model to begin from",
            fix='set finetune.method = "lora"; or merge them first and begin from the merged folder',
        )
    check_peft(folder, shape)
