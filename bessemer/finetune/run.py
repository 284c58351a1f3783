"""Stage two: a model that is there already learns a task, with loss on the answers only.

The weights come from `--from`, else from this run's own pre-training, else from the Hugging Face folder
that `model.from` names. Another job for the same loop: other rows, other first weights.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bessemer.checkpoint.folder import listed, step_of
from bessemer.data import supported
from bessemer.data.prepared import PreparedTask
from bessemer.data.sources.inputs import find_inputs
from bessemer.data.store import prepare_task
from bessemer.data.task import WHAT
from bessemer.errors import DataError, RecipeError
from bessemer.formulas.shape import ModelShape
from bessemer.measure.facts import gather
from bessemer.model.device import this_device
from bessemer.planner.facts import Facts
from bessemer.planner.limits import check_start, check_trainable
from bessemer.planner.plan import Derived, StagePlan
from bessemer.planner.resolve import check_recipe, finetune_context, resolve_finetune
from bessemer.planner.stage import rows_of
from bessemer.recipe.load import LoadedRecipe
from bessemer.recipe.schema import Finetune, Recipe
from bessemer.rundir import read_object
from bessemer.train.build import machine_of
from bessemer.train.compiling import check_compiled, settle_compiled
from bessemer.train.origin import Origin, find_origin, of_stage
from bessemer.train.pretrain import Place
from bessemer.train.run import Ready, run_stage
from bessemer.train.settle import allowed_changes, check_disk, followed_plan, take_over, write_receipt
from bessemer.train.stage import Stage, begin, check_begun, note_done


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


def finetune(
    loaded: LoadedRecipe, place: Place, from_: str | None = None, task: Task | None = None
) -> dict[str, Any]:
    """Train the run's `finetune` stage, and tell what came of it. The caller holds the run's lock.

    task: where the caller has prepared it already.
    """
    ready = begin_finetune(loaded, place, from_, task)
    run_stage(ready, place.console)
    return ready.outcome()


def begin_finetune(
    loaded: LoadedRecipe,
    place: Place,
    from_: str | None = None,
    task: Task | None = None,
    world: int | None = None,
) -> Ready:
    """All that comes before training, by one process. world: processes that were started; None: one.

    Nothing is written to the run before everything is checked: a command that is refused changes nothing.
    """
    changes = allowed_changes(loaded, place.run)
    task = task or prepare_finetune(loaded, place, from_, world)
    checked = _check(task, "finetune")
    take_over(changes, loaded, None, place.run, place.console)
    write_receipt(place.run, loaded, task.data.hash, task.facts, task.origin)
    return _begin(task, checked)


def check_early(loaded: LoadedRecipe) -> None:
    """What can be said of [finetune] before there is a model to fine-tune."""
    section = check_section(loaded.recipe)
    assert section.data is not None
    supported.check_task(section.data)
    context = section.context if isinstance(section.context, int) else loaded.recipe.model.context
    rows_of(section, "finetune", context)
    if loaded.recipe.data.gather is None and section.data.path is not None:
        find_inputs(WHAT, section.data.path, loaded.base)


def prepare_finetune(loaded: LoadedRecipe, place: Place, from_: str | None, world: int | None = None) -> Task:
    """Data and first weights, checked; the run itself is not changed yet."""
    recipe = loaded.recipe
    section = check_section(recipe)
    check_recipe(recipe, world=world)
    allowed_changes(loaded, place.run)
    origin = _origin(loaded, place, from_)
    shape, tokenizer = _model(recipe, place.run / "finetune", origin)
    check_trainable(recipe, shape)
    context = finetune_context(section, shape)
    data = prepare_task(recipe, loaded.base, place.store, tokenizer, place.console, context)
    described = data.manifest["tokenizer"]
    if described["vocab"] > shape.vocab:
        raise DataError(
            "the tokenizer has more words than the model",
            found=f"{described['vocab']} words, {shape.vocab} rows in the embedding",
            wanted="the tokenizer that belongs to the model",
            fix=f"put it at {tokenizer}",
        )
    shape = replace(shape, bos_id=described["bos_id"], eos_id=described["eos_id"])
    facts = gather(recipe, loaded.base, this_device(), vocab=described["vocab"])
    return Task(recipe, place, origin, shape, tokenizer, data, facts, world)


def train_on(
    task: Task, name: str, *, examples: int | None = None, from_scratch: bool = False
) -> dict[str, Any]:
    """One stage named `name` on the first `examples` examples. An earlier attempt of it goes on."""
    ready = _begin(task, _check(task, name, examples, from_scratch))
    run_stage(ready, task.place.console)
    return ready.outcome()


@dataclass(frozen=True)
class _Checked:
    """A stage that may begin or go on, and what was decided for it."""

    stage: Stage
    derived: list[Derived]
    from_scratch: bool


def _check(task: Task, name: str, examples: int | None = None, from_scratch: bool = False) -> _Checked:
    """The stage as it is to be trained. Writes nothing."""
    plan, derived = _plan(task, examples)
    stage = check_begun(
        Stage(
            folder=task.place.run / name,
            kind="finetune",
            shape=task.shape,
            plan=plan,
            seed=task.recipe.seed,
            data=task.data,
            tokenizer=task.tokenizer,
            origin=None if from_scratch else task.origin,
            examples=examples,
        )
    )
    assert task.recipe.finetune is not None
    plan = followed_plan(stage.plan, task.recipe, "finetune", stage.shape, task.facts, task.world)
    stage = replace(stage, plan=plan)
    if not stage.is_done:
        check_start(task.recipe, stage.shape, stage.plan, task.facts, None, task.world)
        check_compiled(stage.plan, task.facts)
        check_disk(stage)
    return _Checked(stage, derived if name == "finetune" else [], from_scratch)


def _begin(task: Task, checked: _Checked) -> Ready:
    """The stage, written to its folder."""
    stage, console = checked.stage, task.place.console
    name = stage.folder.name
    if stage.is_done:
        note_done(stage)
        console.line(f"{name}: done already, {stage.plan.steps} steps")
        return Ready(stage.folder, machine_of(stage, task.facts), done=True)
    begin(stage)
    start = "random weights" if checked.from_scratch else f"the weights of {_named(task.origin)}"
    count = task.data.num_examples("train") if stage.examples is None else stage.examples
    console.line(f"{name}: {count:,} examples, {stage.plan.steps:,} steps, from {start}")
    for row in checked.derived:
        console.line(f"  {row.key} = {row.value}  ({row.rule})")
    stage = settle_compiled(stage, task.facts, console)
    return Ready(stage.folder, machine_of(stage, task.facts))


def _plan(task: Task, examples: int | None) -> tuple[StagePlan, list[Derived]]:
    assert task.recipe.finetune is not None
    context = finetune_context(task.recipe.finetune, task.shape)
    num_rows = len(task.data.rows("train", context, examples))
    return resolve_finetune(task.recipe, task.shape, num_rows, task.facts, task.origin.plan, world=task.world)


def check_section(recipe: Recipe) -> Finetune:
    """[finetune], which must name the task's data."""
    if recipe.finetune is None or recipe.finetune.data is None:
        raise RecipeError(
            "the recipe says nothing of a task",
            found="no [finetune]" if recipe.finetune is None else "[finetune] without data",
            wanted="[finetune] with the task's examples",
            fix='add to the recipe: [finetune] and data = { kind = "jsonl", path = "train.jsonl" }',
        )
    return recipe.finetune


def _origin(loaded: LoadedRecipe, place: Place, from_: str | None) -> Origin:
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
    return origin.shape(context), origin.tokenizer


def _named(origin: Origin) -> str:
    folder = Path(origin.folder)
    name = f"{folder.parent.name}/{folder.name}" if origin.kind == "checkpoint" else str(folder)
    return f"{name} at step {origin.step:,}" if origin.step is not None else name
