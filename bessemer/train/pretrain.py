"""Stage one, from a recipe to a pre-trained model in a run directory: begun, resumed, lengthened, forked."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bessemer.checkpoint.folder import checkpoint_folder, verify
from bessemer.data.store import Prepared, prepare
from bessemer.durable import cannot_write, publish_folder
from bessemer.errors import RecipeError
from bessemer.formulas.shape import ModelShape
from bessemer.log import Console
from bessemer.measure.facts import gather
from bessemer.model.device import this_device
from bessemer.planner.facts import Facts
from bessemer.planner.plan import Plan
from bessemer.recipe.load import LoadedRecipe
from bessemer.rundir import read_rows
from bessemer.train.build import build
from bessemer.train.loop import train
from bessemer.train.origin import Origin, find_origin
from bessemer.train.settle import allowed_changes, check_disk, settle_plan, take_over, write_receipt
from bessemer.train.stage import Stage, begin, check_data, outcome
from bessemer.train.stop import Stop


@dataclass(frozen=True)
class Place:
    """Where a command works."""

    run: Path
    store: Path
    console: Console


def pretrain(loaded: LoadedRecipe, place: Place, from_: str | None = None) -> dict[str, Any]:
    """Train to the planned step, and tell what came of it. The caller holds the run's lock."""
    console = place.console
    prepared = prepare(loaded.recipe, loaded.base, place.store, console)
    # Before anything is written; a key of the recipe that changed the data is told first, by its name.
    changes = allowed_changes(loaded, place.run)
    check_data(place.run / "pretrain", prepared.hash)
    facts = pretrain_facts(loaded, prepared)
    plan = settle_plan(loaded, place.run, facts)
    take_over(changes, loaded, place.run, console)
    folder = place.run / "pretrain"
    is_new, begun = not (folder / "stage.json").exists(), Origin.of_begun(folder)
    origin = find_origin(from_, console.line, begun) if from_ else begun
    stage = Stage(
        folder=folder,
        kind="pretrain",
        shape=plan.shape,
        plan=plan.pretrain,
        seed=plan.seed,
        data=prepared,
        tokenizer=prepared.tokenizer_path,
        origin=origin,
    )
    if origin is not None and is_new:
        _check_origin(stage, origin)
    stage = replace(begin(stage), plan=plan.pretrain)
    if origin is not None and not read_rows(stage.folder / "events.jsonl"):
        _fork(stage, origin, console)
    if stage.is_done:
        console.line(f"pretrain: done already, {stage.plan.steps} steps")
        return {**outcome(stage, place.run), "already_done": True}
    check_disk(place.run, stage.shape, stage.plan)
    write_receipt(place.run, loaded, prepared.hash, facts, origin)
    _tell(plan, console)
    run_stage(stage, facts, console)
    return {**outcome(stage, place.run), "already_done": False}


def run_stage(stage: Stage, facts: Facts, console: Console) -> None:
    with Stop() as stop:
        job, state = build(stage, facts, console, stop)
        if state.step:
            console.line(f"{stage.folder.name}: going on at step {state.step} of {stage.plan.steps}")
        try:
            train(job, state)
        finally:
            job.record.close()


def pretrain_facts(loaded: LoadedRecipe, prepared: Prepared) -> Facts:
    return gather(
        loaded.recipe,
        loaded.base,
        this_device(),
        train_tokens=prepared.train_tokens,
        vocab=prepared.vocab,
        special_ids=(prepared.bos_id, prepared.eos_id),
    )


def _check_origin(stage: Stage, origin: Origin) -> None:
    ours, theirs = _plain(stage.shape), _plain(origin.shape(stage.shape.context))
    different = [key for key in ours if ours[key] != theirs[key]]
    if different:
        raise RecipeError(
            "the recipe describes another model than the one to go on from",
            found=", ".join(f"{key} {ours[key]}" for key in different),
            wanted=", ".join(f"{key} {theirs[key]}" for key in different) + f", as {origin.folder}",
            fix="leave [model] and [tokenizer] as they were in that run",
        )
    if origin.tokenizer.is_file() and origin.tokenizer.read_bytes() != stage.tokenizer.read_bytes():
        raise RecipeError(
            "the data was prepared with another tokenizer than the model to go on from",
            found=str(stage.tokenizer),
            wanted=f"the content of {origin.tokenizer}",
            fix=f"--set tokenizer.path={origin.tokenizer}",
        )
    if _goes_on(stage, origin) and (origin.step or 0) >= stage.plan.steps:
        raise RecipeError(
            "the fork would begin at its end",
            found=f"step {origin.step}, and pretrain.steps = {stage.plan.steps}",
            wanted="more steps than have been made, or an earlier step",
            fix=f"--set pretrain.steps={2 * (origin.step or 0)}, or --from {Path(origin.folder).parent}@STEP",
        )


def _plain(shape: ModelShape) -> dict[str, Any]:
    """Without what is free between two stages of one model."""
    free = ("bos_id", "eos_id", "max_positions", "context")
    return {key: value for key, value in shape.to_json().items() if key not in free}


def _goes_on(stage: Stage, origin: Origin) -> bool:
    """Whether the origin's optimizer, step and data order go on too: on the same rows they do."""
    before = origin.info
    same_rows = (before.get("data") or {}).get("hash") == stage.data.hash
    same_rows = same_rows and before.get("context") == stage.plan.context
    return origin.kind == "checkpoint" and before.get("kind") == "pretrain" and same_rows


def _fork(stage: Stage, origin: Origin, console: Console) -> None:
    """Put the origin's checkpoint into the new stage, which then resumes from it as from its own."""
    if not _goes_on(stage, origin):
        console.line(f"pretrain: weights of {origin.folder}, a new optimizer, step 0")
        return
    assert origin.step is not None and origin.checkpoint is not None
    verify(Path(origin.checkpoint))  # it may be gone since the stage began: then by its name
    target = checkpoint_folder(stage.folder, origin.step)
    building = target.with_name(f".{target.name}.tmp")
    try:
        shutil.rmtree(building, ignore_errors=True)
        shutil.copytree(origin.checkpoint, building)
        shutil.rmtree(target, ignore_errors=True)
        publish_folder(building, target)
    except OSError as error:
        raise cannot_write(target, error) from error
    console.line(f"pretrain: fork of {origin.folder} at step {origin.step}, optimizer and data order too")


def _tell(plan: Plan, console: Console) -> None:
    stage = plan.pretrain
    console.line(
        f"plan: {plan.params:,} parameters, {stage.steps:,} steps of {stage.batch_tokens:,} tokens "
        f"on {plan.device}"
    )
    for row in plan.derived:
        console.line(f"  {row.key} = {row.value}  ({row.rule})")
