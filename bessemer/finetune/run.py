"""Stage two: a model that is there already learns a task, with loss on the answers only.

Another job for the same loop: other rows, other first weights (task.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bessemer.energy.metering.beside import claim
from bessemer.finetune.distill import Teacher, ask_teacher, check_teaches, find_teacher, has_answered
from bessemer.finetune.grpo import check_reference
from bessemer.finetune.models import ASKS
from bessemer.finetune.rewards import begin_reward, check_reward
from bessemer.finetune.rounds import rounds_of
from bessemer.finetune.task import Task, plan_before, prepare_finetune
from bessemer.finetune.worker import WORKER, finetune_feed
from bessemer.formulas.adapters import trained_params
from bessemer.formulas.objective import Objective
from bessemer.formulas.parameters import total_params
from bessemer.formulas.shape import ModelShape
from bessemer.planner.finetuning import finetune_context, resolve_finetune
from bessemer.planner.limits import check_start
from bessemer.planner.plan import Derived, StagePlan
from bessemer.planner.rules.objective import objective_of
from bessemer.planner.rules.rollout import check_sampling, is_sampled
from bessemer.recipe.changes import Change
from bessemer.recipe.load import LoadedRecipe
from bessemer.train.budget import check_allowance
from bessemer.train.compiling import check_compiled, settle_compiled
from bessemer.train.levers import asked_of, check_boards
from bessemer.train.machine import machine_of
from bessemer.train.origin import Origin
from bessemer.train.pause import pause_rule
from bessemer.train.pretrain import Place, power_command
from bessemer.train.run import Ready, run_stage
from bessemer.train.settle import allowed_changes, check_disk, followed_plan, take_over, write_receipt
from bessemer.train.stage import Stage, begin, check_begun, note_done
from bessemer.units import format_count


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
    checked = _check(task, "finetune", changes=changes)
    take_over(changes, loaded, None, place.run, place.console)
    write_receipt(place.run, loaded, task.data.hash, task.facts, task.origin)
    claim(place.run, task.data.folder, place.console)
    return _begin(task, checked)


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


def _check(
    task: Task,
    name: str,
    examples: int | None = None,
    from_scratch: bool = False,
    changes: Sequence[Change] = (),
) -> _Checked:
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
    plan = followed_plan(stage.plan, task.recipe, "finetune", stage.shape, task.facts, task.world, changes)
    stage = replace(stage, plan=plan)
    check_sampling(stage.shape, plan)
    if not stage.is_done:
        check_reference(stage)
        check_start(task.recipe, stage.shape, stage.plan, task.facts, task.world, "finetune")
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


def _trained(shape: ModelShape) -> str:
    total = total_params(shape)
    return f"{format_count(trained_params(shape, total))} of {format_count(total)}"


def _named(origin: Origin) -> str:
    folder = Path(origin.folder)
    name = f"{folder.parent.name}/{folder.name}" if origin.kind == "checkpoint" else str(folder)
    if origin.adapter is not None:
        return f"{name} and the adapters of {origin.adapter}"
    return f"{name} at step {origin.step:,}" if origin.step is not None else name
