"""Stage one, from a recipe to a pre-trained model in a run directory: begun, resumed, lengthened, forked."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bessemer.data.kept import open_told
from bessemer.data.mixture import Mixing, Mixture
from bessemer.data.prepared import Prepared, Replayed
from bessemer.data.replay import check_alike, find_replayed
from bessemer.data.store import prepare
from bessemer.energy.levers.restore import restore_left
from bessemer.energy.metering.beside import around_data, claim
from bessemer.errors import RecipeError, RefusedError
from bessemer.log import Console
from bessemer.measure.facts import gather
from bessemer.model.device import this_device
from bessemer.planner.limits import check_start
from bessemer.planner.machine.facts import Facts
from bessemer.planner.plan import Plan
from bessemer.recipe.load import LoadedRecipe
from bessemer.recipe.schema import Data, Recipe
from bessemer.rundir import read_object
from bessemer.train.budget import check_allowance
from bessemer.train.compiling import check_compiled, settle_compiled
from bessemer.train.fork import check_origin, fork, steps_made
from bessemer.train.levers import asked_of, check_boards, check_here
from bessemer.train.machine import machine_of
from bessemer.train.origin import Origin, find_origin
from bessemer.train.pause import pause_rule
from bessemer.train.run import Ready, run_stage
from bessemer.train.settle import (
    allowed_changes,
    check_disk,
    settle_plan,
    take_over,
    write_receipt,
)
from bessemer.train.stage import (
    Stage,
    begin,
    check_begun,
    check_data,
    has_started,
    note_done,
)


@dataclass(frozen=True)
class Place:
    """Where a command works."""

    run: Path
    store: Path
    console: Console
    allow_code: bool = False  # a function of the recipe's own may run


def pretrain(
    loaded: LoadedRecipe, place: Place, from_: str | None = None, world: int | None = None
) -> dict[str, Any]:
    """Train to the planned step, and tell what came of it. The caller holds the run's lock.

    Nothing is written to the run before everything is checked: a command that is refused changes nothing.
    world: 1 for a process that torchrun started alone; None: as many are started as the layout has ranks.
    """
    ready = begin_pretrain(loaded, place, from_, world)
    run_stage(ready, place.console)
    return ready.outcome()


def begin_pretrain(
    loaded: LoadedRecipe, place: Place, from_: str | None = None, world: int | None = None
) -> Ready:
    """All that comes before training, by one process. world: processes that were started; None: one."""
    console, run = place.console, place.run
    restore_left(console.line)  # before anything of this machine is measured
    changes = allowed_changes(loaded, run)  # before the data: a key that changed it is told by its name
    command = power_command(loaded.recipe, place)
    pause = pause_rule(loaded.recipe.energy, loaded.base, allow_code=place.allow_code)
    check_here(loaded.recipe, run / "pretrain", world)
    replayed = _replayed(loaded, run / "pretrain")
    prepared = prepare(loaded.recipe, loaded.base, place.store, console, around=around_data(console))
    check_data(run / "pretrain", prepared.hash)
    if replayed is not None:
        check_alike(replayed, prepared)
        prepared = replace(prepared, replayed=replayed)
    facts = pretrain_facts(loaded, prepared)
    origin = _origin(place, from_)
    made = steps_made(origin, prepared, (facts.source_shape or loaded.recipe.model).context)
    plan = settle_plan(loaded, run, facts, world, made, changes)
    # plan.json decides, not the plan that stage.json was last trained with.
    asked = _stage(place, plan, prepared, loaded.recipe.data, origin)
    stage = replace(check_begun(asked), plan=plan.pretrain)
    if stage.is_done:
        take_over(changes, loaded, plan, run, console)
        note_done(stage)
        console.line(f"pretrain: done already, {stage.plan.steps} steps")
        return Ready(stage.folder, machine_of(stage, facts), done=True)
    check_start(loaded.recipe, stage.shape, stage.plan, facts, world)
    check_allowance(stage, loaded.recipe, facts, console, made=made)
    check_boards(loaded.recipe.energy, stage.plan.layout, world)
    check_compiled(stage.plan, facts)
    _check_enough(stage)
    check_disk(stage)
    take_over(changes, loaded, plan, run, console)
    begin(stage)
    if stage.origin is not None and not has_started(stage.folder):
        fork(stage, stage.origin, console)
    write_receipt(run, loaded, prepared.hash, facts, stage.origin)
    claim(run, prepared.folder, console)
    _tell(plan, console)
    stage = settle_compiled(stage, facts, console)
    tune = asked_of(loaded.recipe.energy)
    return Ready(stage.folder, machine_of(stage, facts, command, tune=tune, pause=pause))


def power_command(recipe: Recipe, place: Place) -> list[str]:
    """The program that reads the node's power, where the recipe names one: it must be allowed to run."""
    command = recipe.energy.command
    if command is not None and not place.allow_code:
        raise RecipeError(
            "energy.command is a program of the recipe's own",
            found=f"energy.command = {command}",
            wanted="--allow-code, which says that it may run",
            fix="add --allow-code, or take energy.command out",
        )
    return command or []


def _replayed(loaded: LoadedRecipe, stage: Path) -> Replayed | None:
    """A stage that has begun keeps what it replays, also where that run has gone on with another mixture."""
    if loaded.recipe.data.replay is None:
        return None
    begun = read_object(stage / "stage.json")
    if begun is None:
        return find_replayed(loaded.recipe, loaded.base)
    kept = open_told(begun["data"])
    assert isinstance(kept, Prepared), f"{stage} trains on no sources"
    return kept.replayed


def _origin(place: Place, from_: str | None) -> Origin | None:
    begun = Origin.of_begun(place.run / "pretrain")
    return find_origin(from_, place.console.line, begun) if from_ else begun


def _stage(place: Place, plan: Plan, prepared: Prepared, data: Data, origin: Origin | None) -> Stage:
    folder = place.run / "pretrain"
    stages = tuple(prepared.stages(data, plan.pretrain.context))
    stage = Stage(
        folder=folder,
        kind="pretrain",
        shape=plan.shape,
        plan=plan.pretrain,
        seed=plan.seed,
        data=prepared,
        tokenizer=prepared.tokenizer_path,
        origin=origin,
        mixture=Mixing(stages, stages),
    )
    if stage.origin is not None and not (folder / "stage.json").is_file():
        check_origin(stage, stage.origin)
    return stage


def _check_enough(stage: Stage) -> None:
    """Where each source has a number of epochs, the data ends."""
    assert stage.mixture is not None, f"{stage.folder} has no mixture"
    end, needed = Mixture(stage.mixture.kept).end, stage.plan.steps * stage.plan.batch_rows
    if end is not None and needed > end:
        raise RefusedError(
            "there is too little data: every source may be read only so often",
            found=f"{end:,} rows until all `epochs` are used up",
            wanted=f"{needed:,} rows: {stage.plan.steps:,} steps of {stage.plan.batch_rows:,}",
            fix=f"set pretrain.steps={end // stage.plan.batch_rows}, or raise or remove `epochs` of a source",
        )


def pretrain_facts(loaded: LoadedRecipe, prepared: Prepared) -> Facts:
    return gather(
        loaded.recipe,
        loaded.base,
        this_device(),
        train_tokens=prepared.train_tokens,
        vocab=prepared.vocab,
        special_ids=(prepared.bos_id, prepared.eos_id),
    )


def _tell(plan: Plan, console: Console) -> None:
    stage = plan.pretrain
    ranks = f", {stage.layout.world} ranks: {stage.layout}" if stage.layout.world > 1 else ""
    console.line(
        f"plan: {plan.params:,} parameters, {stage.steps:,} steps of {stage.batch_tokens:,} tokens "
        f"on {plan.device}{ranks}"
    )
    for row in plan.derived:
        console.line(f"  {row.key} = {row.value}  ({row.rule})")
