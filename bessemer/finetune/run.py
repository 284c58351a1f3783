"""Stage two: a model that is there already learns a task, with loss on the answers only.

The weights come from `--from`, else from this run's own pre-training, else from the Hugging Face folder
that `model.from` names. Another job for the same loop: other rows, other first weights.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bessemer.checkpoint.folder import listed, step_of
from bessemer.checkpoint.peft_start import check_peft
from bessemer.data import supported
from bessemer.data.prepared import PreparedTask
from bessemer.data.store import prepare_task
from bessemer.data.task.inputs import task_inputs
from bessemer.data.task.reading import Reading
from bessemer.energy.levers.restore import restore_left
from bessemer.energy.metering.beside import around_data, claim
from bessemer.errors import DataError, RecipeError
from bessemer.finetune.added import new_tokens, told, with_rows
from bessemer.finetune.distill import Teacher, ask_teacher, check_teaches, find_teacher, has_answered
from bessemer.finetune.grpo import check_reference
from bessemer.finetune.models import ASKS
from bessemer.finetune.rewards import begin_reward, check_reward
from bessemer.finetune.rounds import rounds_of
from bessemer.finetune.worker import WORKER, finetune_feed
from bessemer.formulas.adapters import trained_params
from bessemer.formulas.objective import Objective
from bessemer.formulas.parameters import total_params
from bessemer.formulas.shape import ModelShape
from bessemer.measure.facts import gather
from bessemer.model.device import this_device
from bessemer.planner.finetuning import finetune_context, resolve_finetune
from bessemer.planner.limits import check_start, check_trainable
from bessemer.planner.machine.facts import Facts
from bessemer.planner.plan import Derived, StagePlan
from bessemer.planner.resolve import check_recipe
from bessemer.planner.rules.adapter import adapter_of, check_adapter_keys, full_lr
from bessemer.planner.rules.objective import check_method, objective_of, with_head
from bessemer.planner.rules.rollout import check_sampling, is_sampled
from bessemer.planner.stage import rows_of
from bessemer.recipe.load import LoadedRecipe
from bessemer.recipe.schema import Finetune, Recipe
from bessemer.rundir import read_object
from bessemer.train.budget import check_allowance
from bessemer.train.build import machine_of
from bessemer.train.compiling import check_compiled, settle_compiled
from bessemer.train.levers import asked_of, check_boards, check_here
from bessemer.train.origin import Origin, find_origin, of_stage
from bessemer.train.pause import pause_rule
from bessemer.train.pretrain import Place, power_command
from bessemer.train.run import Ready, run_stage
from bessemer.train.settle import allowed_changes, check_disk, followed_plan, take_over, write_receipt
from bessemer.train.stage import Stage, begin, check_begun, note_done
from bessemer.units import format_count


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


def finetune(
    loaded: LoadedRecipe, place: Place, from_: str | None = None, task: Task | None = None
) -> dict[str, Any]:
    """Train the run's `finetune` stage, and tell what came of it. The caller holds the run's lock.

    task: where the caller has prepared it already.
    """
    ready = begin_finetune(loaded, place, from_, task)
    run_stage(ready, place.console, WORKER, finetune_feed)
    return outcome_of(ready)


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
    claim(place.run, task.data.folder, place.console)
    return _begin(task, checked)


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


def train_on(
    task: Task, name: str, *, examples: int | None = None, from_scratch: bool = False
) -> dict[str, Any]:
    """One stage named `name` on the first `examples` examples. An earlier attempt of it goes on."""
    ready = _begin(task, _check(task, name, examples, from_scratch))
    run_stage(ready, task.place.console, WORKER, finetune_feed)
    return outcome_of(ready)


def outcome_of(ready: Ready) -> dict[str, Any]:
    """As of any stage, and what each round of sampled answers was like."""
    return {**ready.outcome(), "rounds": rounds_of(ready.folder)}


@dataclass(frozen=True)
class _Checked:
    """A stage that may begin or go on, and what was decided for it."""

    stage: Stage
    derived: list[Derived]
    from_scratch: bool
    teacher: Teacher | None = None
    reward: dict[str, str] | None = None  # of the user's own


def _check(task: Task, name: str, examples: int | None = None, from_scratch: bool = False) -> _Checked:
    """The stage as it is to be trained. Writes nothing."""
    if from_scratch:  # adapters would have nothing to adapt
        task = replace(task, shape=replace(task.shape, adapter=None))
    teacher = _teacher(task, name)
    plan, derived = _plan(task, name, examples, teacher)
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
            new_tokens=() if from_scratch else task.new_tokens,
        )
    )
    assert task.recipe.finetune is not None
    plan = followed_plan(stage.plan, task.recipe, "finetune", stage.shape, task.facts, task.world)
    stage = replace(stage, plan=plan)
    check_sampling(stage.shape, plan)
    if not stage.is_done:
        check_reference(stage)
        check_start(task.recipe, stage.shape, stage.plan, task.facts, task.world)
        check_allowance(stage, task.recipe, task.facts, task.place.console)
        check_boards(task.recipe.energy, stage.plan.layout, task.world)
        check_compiled(stage.plan, task.facts)
        check_disk(stage)
    return _Checked(stage, derived if name == "finetune" else [], from_scratch, teacher, _reward(task, stage))


def _begin(task: Task, checked: _Checked) -> Ready:
    """The stage, written to its folder."""
    stage, console = checked.stage, task.place.console
    name = stage.folder.name
    if stage.is_done:
        note_done(stage)
        console.line(f"{name}: done already, {stage.plan.steps} steps")
        return Ready(stage.folder, machine_of(stage, task.facts), done=True)
    stage = with_hash(stage)
    begin(stage)
    if checked.reward is not None:
        begin_reward(stage.folder, checked.reward)
    start = "random weights" if checked.from_scratch else f"the weights of {_named(task.origin)}"
    count = task.data.num_examples("train") if stage.examples is None else stage.examples
    console.line(f"{name}: {count:,} examples, {stage.plan.steps:,} steps, from {start}")
    if stage.shape.adapter is not None:
        console.line(f"adapters: {_trained(stage.shape)} parameters are trained")
    for row in checked.derived:
        console.line(f"  {row.key} = {row.value}  ({row.rule})")
    if checked.teacher is not None:
        ask_teacher(stage, checked.teacher, console)
    stage = settle_compiled(stage, task.facts, console)
    command, tune = power_command(task.recipe, task.place), asked_of(task.recipe.energy)
    pause = pause_rule(task.recipe.energy, task.base, allow_code=task.place.allow_code)
    return Ready(stage.folder, machine_of(stage, task.facts, command, tune=tune, pause=pause))


def with_hash(stage: Stage) -> Stage:
    """With the hash of its first weights, where it reads them again at later attempts."""
    if stage.origin is None or stage.origin.hash is not None:
        return stage
    if stage.shape.adapter is not None:
        return replace(stage, origin=stage.origin.hashed(stage.folder))
    if stage.plan.objective.asks_origin:
        return replace(stage, origin=stage.origin.hashed(stage.folder, ASKS))
    return stage


def _teacher(task: Task, name: str) -> Teacher | None:
    """Of the stage `name`. None: nobody is asked, or has said everything already."""
    section, place = task.recipe.finetune, task.place
    assert section is not None
    if section.method != "distill" or has_answered(place.run / name):
        return None
    teacher = find_teacher(section.teacher, task.base, section.top_k, task.tokenizer, place.console)
    check_teaches(teacher.origin, finetune_context(section, task.shape))
    return teacher


def _reward(task: Task, stage: Stage) -> dict[str, str] | None:
    rollouts = stage.plan.objective.rollouts
    if rollouts is None or not rollouts.reward or stage.is_done:
        return None
    return check_reward(stage.folder, rollouts.reward, task.base, allow_code=task.place.allow_code)


def _plan(
    task: Task, name: str, examples: int | None, teacher: Teacher | None
) -> tuple[StagePlan, list[Derived]]:
    assert task.recipe.finetune is not None
    context = finetune_context(task.recipe.finetune, task.shape)
    num_rows = len(task.data.rows("train", context, examples))
    objective = objective_of(task.recipe.finetune, task.data.manifest)
    objective = _asking(objective, task, name, teacher)
    prompts: list[int] = []
    if is_sampled(task.recipe.finetune):
        prompts = [len(example.prompt_ids) for example in task.data.examples("train")]
    return resolve_finetune(
        task.recipe,
        task.shape,
        num_rows,
        task.facts,
        plan_before(task.origin),
        world=task.world,
        objective=objective,
        prompts=prompts,
    )


def _asking(objective: Objective, task: Task, name: str, teacher: Teacher | None) -> Objective:
    """With who is asked about answers in a stage that is to begin; of one that has begun its plan says it."""
    reference = task.origin if objective.asks_origin else None
    asked = reference if teacher is None else teacher.origin
    if asked is None or (task.place.run / name / "stage.json").is_file():
        return objective
    return replace(objective, asked=asked.shape(), asked_dtype=asked.plan.dtype if asked.plan else None)


def plan_before(origin: Origin) -> StagePlan | None:
    """The plan that the weights were made with; rates of adapters as if all weights had learned."""
    plan = origin.plan
    has_adapter = plan is not None and (origin.info.get("shape") or {}).get("adapter") is not None
    return replace(plan, lr=full_lr(plan.lr)) if plan is not None and has_adapter else plan


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


def _trained(shape: ModelShape) -> str:
    total = total_params(shape)
    return f"{format_count(trained_params(shape, total))} of {format_count(total)}"


def _named(origin: Origin) -> str:
    folder = Path(origin.folder)
    name = f"{folder.parent.name}/{folder.name}" if origin.kind == "checkpoint" else str(folder)
    if origin.adapter is not None:
        return f"{name} and the adapters of {origin.adapter}"
    return f"{name} at step {origin.step:,}" if origin.step is not None else name
