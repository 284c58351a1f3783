"""Stage one, from a recipe to a pre-trained model in a run directory: begun, resumed, lengthened, forked."""

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bessemer.data.store import Prepared, prepare
from bessemer.errors import StoppedError
from bessemer.log import Console
from bessemer.measure.facts import gather
from bessemer.model.device import this_device
from bessemer.planner.facts import Facts
from bessemer.planner.limits import check_start
from bessemer.planner.plan import Plan
from bessemer.recipe.load import LoadedRecipe
from bessemer.train.build import build
from bessemer.train.fork import check_origin, fork
from bessemer.train.loop import train
from bessemer.train.origin import Origin, find_origin
from bessemer.train.settle import (
    allowed_changes,
    check_disk,
    hours_left,
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
    outcome,
)
from bessemer.train.stop import Stop


@dataclass(frozen=True)
class Place:
    """Where a command works."""

    run: Path
    store: Path
    console: Console


def pretrain(loaded: LoadedRecipe, place: Place, from_: str | None = None) -> dict[str, Any]:
    """Train to the planned step, and tell what came of it. The caller holds the run's lock.

    Nothing is written to the run before everything is checked: a command that is refused changes nothing.
    """
    console, run = place.console, place.run
    prepared = prepare(loaded.recipe, loaded.base, place.store, console)
    changes = allowed_changes(loaded, run)  # before the data: a key that changed it is told by its name
    check_data(run / "pretrain", prepared.hash)
    facts = pretrain_facts(loaded, prepared)
    plan = settle_plan(loaded, run, facts)
    # plan.json decides, not the plan that stage.json was last trained with.
    stage = replace(check_begun(_stage(place, plan, prepared, from_)), plan=plan.pretrain)
    if stage.is_done:
        take_over(changes, loaded, plan, run, console)
        note_done(stage)
        console.line(f"pretrain: done already, {stage.plan.steps} steps")
        return {**outcome(stage, run), "already_done": True}
    check_start(loaded.recipe, stage.shape, stage.plan, facts, hours_left(plan, stage.newest_step))
    check_disk(stage)
    take_over(changes, loaded, plan, run, console)
    begin(stage)
    if stage.origin is not None and not has_started(stage.folder):
        fork(stage, stage.origin, console)
    write_receipt(run, loaded, prepared.hash, facts, stage.origin)
    _tell(plan, console)
    run_stage(stage, facts, console)
    return {**outcome(stage, run), "already_done": False}


def run_stage(stage: Stage, facts: Facts, console: Console) -> None:
    """Train a stage that has begun. A signal in its last step does not go unheard: what follows stops."""
    console.also_to(stage.folder / "logs" / "rank-00000.log")
    try:
        with Stop() as stop:
            job, state = build(stage, facts, console, stop)
            if state.step:
                console.line(f"{stage.folder.name}: going on at step {state.step} of {stage.plan.steps}")
            with closing(job.record):
                train(job, state)
            if stop.asked:
                raise StoppedError(
                    f"{stage.folder.name} is done; stopped before what comes next",
                    found=stop.reason,
                    wanted="the rest of the command, if there is any",
                    fix="run the same command again to go on",
                )
    finally:
        console.also_to(None)


def _stage(place: Place, plan: Plan, prepared: Prepared, from_: str | None) -> Stage:
    folder = place.run / "pretrain"
    begun = Origin.of_begun(folder)
    stage = Stage(
        folder=folder,
        kind="pretrain",
        shape=plan.shape,
        plan=plan.pretrain,
        seed=plan.seed,
        data=prepared,
        tokenizer=prepared.tokenizer_path,
        origin=find_origin(from_, place.console.line, begun) if from_ else begun,
    )
    if stage.origin is not None and not (folder / "stage.json").is_file():
        check_origin(stage, stage.origin)
    return stage


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
    console.line(
        f"plan: {plan.params:,} parameters, {stage.steps:,} steps of {stage.batch_tokens:,} tokens "
        f"on {plan.device}"
    )
    for row in plan.derived:
        console.line(f"  {row.key} = {row.value}  ({row.rule})")
