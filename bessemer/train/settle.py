"""The plan of a run directory: made once, kept, and changed only as the contract allows.

    recipe.toml   as the user gave it, overrides applied      plan.json   what was decided from it
    receipt.json  with which code, data, machine and parent

A run that exists keeps its plan. Where the recipe differs now, execution keys and a longer run are
taken over, each as an event; anything else is refused with the command that forks.
"""

import math
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import xxhash

import bessemer
from bessemer.checkpoint.folder import listed, step_of
from bessemer.durable import write_json, write_text
from bessemer.errors import RefusedError
from bessemer.formulas.adapters import trained_params
from bessemer.formulas.parameters import total_params
from bessemer.formulas.shape import ModelShape
from bessemer.hardware import disk_free_bytes
from bessemer.log import Console
from bessemer.planner.limits import check_trainable
from bessemer.planner.machine.facts import Facts
from bessemer.planner.plan import Derived, Plan, StagePlan
from bessemer.planner.predict import predict
from bessemer.planner.relaid import relaid, section_of
from bessemer.planner.resolve import check_recipe, layout_document, resolve
from bessemer.recipe.changes import Change, check_change
from bessemer.recipe.load import LoadedRecipe, load
from bessemer.recipe.schema import Pretrain, Recipe
from bessemer.rundir import JsonLines, read_object, read_rows
from bessemer.train.origin import Origin
from bessemer.train.stage import Stage
from bessemer.units import format_bytes

_INTERVALS = ("validate_every", "save_every", "log_every", "keep", "async_save")  # and other habits
_SECTIONS = ("pretrain", "finetune")  # whose keys concern their own stages only
_BYTES_PER_PARAMETER = 12  # of a checkpoint: fp32 weight and AdamW's two moments


def settle_plan(
    loaded: LoadedRecipe,
    run: Path,
    facts: Facts,
    world: int | None = None,
    made: int = 0,
    changes: Sequence[Change] = (),
) -> Plan:
    """The plan of a new run, or that of the run with what the recipe says now. Writes nothing.

    world: processes that were started (torchrun); None: as many are started as the layout has ranks.
    made: as in `resolve`. changes: those of `allowed_changes`.
    """
    recipe, stored = loaded.recipe, read_object(run / "plan.json")
    if stored is None or "pretrain" not in begun(run):
        plan = resolve(recipe, facts, world=world, made=made)
        check_trainable(recipe, plan.shape)
        return plan
    old = Plan.from_json(stored)
    check_recipe(recipe, world=world)
    check_trainable(recipe, old.shape)
    stage = followed_plan(old.pretrain, recipe, "pretrain", old.shape, facts, world, changes)
    if stage == old.pretrain:
        return old
    left_to_us = [row for row in old.derived if _still_holds(row, recipe.pretrain, stage)]
    predicted = predict(recipe, old.shape, stage, facts)
    return replace(
        old, pretrain=stage, layout=layout_document(stage), predicted=predicted, derived=left_to_us
    )


def _still_holds(row: Derived, section: Pretrain, stage: StagePlan) -> bool:
    """Whether a derived key is still one that the recipe leaves open, and its value that of the stage."""
    if row.key == "parallel.layout":
        return row.value == str(stage.layout)
    key = row.key.removeprefix("pretrain.")
    is_open = key not in section.model_fields_set or getattr(section, key) == "auto"
    return is_open and getattr(stage, key, row.value) == row.value


def begun(run: Path) -> list[str]:
    """Names of the stages that have a stage.json."""
    return sorted(path.parent.name for path in run.glob("*/stage.json"))


def allowed_changes(loaded: LoadedRecipe, run: Path) -> list[Change]:
    """What differs from the recipe that the run has; RecipeError for what a run may not change."""
    path = run / "recipe.toml"
    if not path.is_file() or not begun(run):  # an attempt that was refused has made nothing yet
        return []
    stored = read_object(run / "plan.json")
    plan = None if stored is None else Plan.from_json(stored).pretrain
    return check_change(
        load(str(path), []).recipe,
        loaded.recipe,
        _fork_command(loaded, run, plan),
        stages=[name.split("-")[0] for name in begun(run)],
        planned_steps=plan.steps if plan else None,
        planned_tokens=plan.steps * plan.batch_tokens if plan else None,
    )


def _fork_command(loaded: LoadedRecipe, run: Path, plan: StagePlan | None) -> str:
    """What begins another run from this one; from before its end, where it has come to that."""
    source, found = str(run / "pretrain"), listed(run / "pretrain")
    asked = loaded.recipe.pretrain.steps
    steps = asked if isinstance(asked, int) else plan.steps if plan else None
    if steps is not None and len(found) > 1 and (step_of(found[0]) or 0) >= steps:
        source += f"@{step_of(found[1])}"
    settings = "".join(f" --set {shlex.quote(text)}" for text in loaded.overrides)
    paths = f"--from {shlex.quote(source)} --run {shlex.quote(f'{run}-fork')}"
    return f"bessemer pretrain {shlex.quote(loaded.reference)}{settings} {paths}"


def take_over(
    changes: Sequence[Change], loaded: LoadedRecipe, plan: Plan | None, run: Path, console: Console
) -> None:
    """Recipe and plan are now the run's; the stages that a change concerns get an event."""
    if plan is not None and plan.to_json() != read_object(run / "plan.json"):
        write_json(run / "plan.json", plan.to_json())
    for change in (change for change in changes if change.affects != "nothing"):
        console.line(f"recipe: {change.key} is now {change.new!r} (was {change.old!r})")
        section = change.key.split(".")[0]
        for name in begun(run):
            if section not in _SECTIONS or name.startswith(section):
                _event(run / name, change)
    write_text(run / "recipe.toml", loaded.text)


def followed_plan(
    plan: StagePlan,
    recipe: Recipe,
    name: str,
    shape: ModelShape,
    facts: Facts,
    world: int | None = None,
    changes: Sequence[Change] = (),
) -> StagePlan:
    """A stored plan with what the recipe says now of execution and, in pre-training, of the length.

    What the recipe leaves to us ("auto") stays as it was decided, unless a new layout does not allow it.
    Doing it again changes nothing. name: of the section. world, changes: as in `settle_plan`.
    """
    said = any(change.key in (f"{name}.recompute", f"{name}.activation_memory") for change in changes)
    plan = relaid(plan, recipe, name, shape, facts, world, said=said)
    section = section_of(recipe, name)
    values = {key: getattr(section, key) for key in _INTERVALS}
    plan = replace(plan, **{key: value for key, value in values.items() if value != "auto"})
    if isinstance(section, Pretrain):
        steps = section.steps if isinstance(section.steps, int) else plan.steps
        if section.tokens is not None:
            steps = math.ceil(float(section.tokens) / plan.batch_tokens)
        decay = round(section.decay * steps) if section.schedule == "wsd" else 0
        plan = replace(plan, steps=steps, decay_steps=decay)
    return plan


def check_disk(stage: Stage) -> None:
    """Room for the checkpoints that are kept and the one being written; those that are there count."""
    missing = max(1, stage.plan.keep + 1 - len(listed(stage.folder)))
    needed = _BYTES_PER_PARAMETER * trained_params(stage.shape, total_params(stage.shape)) * missing
    free = disk_free_bytes(stage.folder)
    if needed > free:
        raise RefusedError(
            f"the disk of {stage.folder} is too full for this run's checkpoints",
            found=f"{format_bytes(free)} free",
            wanted=f"{format_bytes(needed)}: {stage.plan.keep} kept and one being written",
            fix="free space, choose another disk with --run DIR, or set keep=1",
        )


def write_receipt(
    run: Path, loaded: LoadedRecipe, data_hash: str, facts: Facts, origin: Origin | None
) -> None:
    """Once; later attempts with other code or another machine are added to it."""
    now = {
        "bessemer": bessemer.__version__,
        "code_xxh3_128": code_hash(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": {"name": facts.device, "kind": facts.kind, "cores": facts.cores},
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "command": " ".join(["bessemer", *sys.argv[1:]]),
    }
    path = run / "receipt.json"
    receipt: dict[str, Any] = read_object(path) or {
        **now,
        "recipe": loaded.reference,
        "recipe_folder": str(loaded.base),
        "data_hash": data_hash,
        "parent": None if origin is None else origin.to_json(),
        "began": time.strftime("%FT%TZ", time.gmtime()),
    }
    if any(receipt.get(key) != now[key] for key in now if key != "command"):
        later = receipt.setdefault("later_attempts", [])
        if not later or any(later[-1].get(key) != now[key] for key in now if key != "command"):
            later.append(now)
    write_json(path, receipt)


def code_hash() -> str:
    """Over every source file of the package, names included: which code this was, also between versions."""
    root = Path(bessemer.__file__).parent
    digest = xxhash.xxh3_128()
    for file in sorted(root.rglob("*")):
        if file.suffix in (".py", ".cpp", ".toml", ".csv") and file.is_file():
            digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _event(stage: Path, change: Change) -> None:
    rows = read_rows(stage / "events.jsonl")
    events = JsonLines(stage / "events.jsonl")
    newest = listed(stage)
    events.append(
        {
            "time": time.time(),
            "attempt": sum(row["kind"] in ("start", "resume") for row in rows),
            "kind": "recipe",
            "step": step_of(newest[0]) if newest else 0,
            "key": change.key,
            "old": change.old,
            "new": change.new,
        }
    )
    events.close()
