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
from bessemer.errors import RecipeError, RefusedError
from bessemer.formulas.parameters import total_params
from bessemer.formulas.shape import ModelShape
from bessemer.hardware import disk_free_bytes
from bessemer.log import Console
from bessemer.planner.facts import Facts
from bessemer.planner.limits import check_start, check_trainable
from bessemer.planner.plan import Plan, StagePlan
from bessemer.planner.resolve import resolve
from bessemer.recipe.changes import Change, check_change
from bessemer.recipe.load import LoadedRecipe, load
from bessemer.recipe.schema import Optimization, Pretrain
from bessemer.rundir import JsonLines, read_object, read_rows
from bessemer.train.origin import Origin
from bessemer.units import format_bytes

_EXECUTION = ("micro_batch", "compile", "recompute", "validate_every", "save_every", "log_every", "keep")
_SECTIONS = ("pretrain", "finetune")  # whose keys concern their own stages only
_BYTES_PER_PARAMETER = 12  # of a checkpoint: fp32 weight and AdamW's two moments


def settle_plan(loaded: LoadedRecipe, run: Path, facts: Facts) -> Plan:
    """The run's plan, written to the run directory. Refuses what cannot be trained or does not fit."""
    recipe, stored = loaded.recipe, read_object(run / "plan.json")
    if stored is None or "pretrain" not in begun(run):
        plan = resolve(recipe, facts)
        check_trainable(recipe, plan.shape)
        check_start(recipe, plan.shape, plan.pretrain, facts, plan.predicted["hours"].low)
    else:
        old = Plan.from_json(stored)
        plan = replace(old, pretrain=followed_plan(old.pretrain, recipe.pretrain, "pretrain"))
        check_start(recipe, plan.shape, plan.pretrain, facts, None)
    if stored is None or plan.to_json() != stored:
        write_json(run / "plan.json", plan.to_json())
    return plan


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
    found = listed(run / "pretrain")
    is_over = plan is not None and bool(found) and (step_of(found[0]) or 0) >= plan.steps
    source = f"{run}@{step_of(found[1])}" if is_over and len(found) > 1 else str(run)
    settings = "".join(f" --set {shlex.quote(text)}" for text in loaded.overrides)
    return f"bessemer pretrain {loaded.reference}{settings} --from {source} --run {run}-fork"


def take_over(changes: Sequence[Change], loaded: LoadedRecipe, run: Path, console: Console) -> None:
    """The run's recipe is the new one now; the stages that a change concerns get an event."""
    for change in (change for change in changes if change.affects != "nothing"):
        console.line(f"recipe: {change.key} is now {change.new!r} (was {change.old!r})")
        section = change.key.split(".")[0]
        for name in begun(run):
            if section not in _SECTIONS or name.startswith(section):
                _event(run / name, change)
    write_text(run / "recipe.toml", loaded.text)


def followed_plan(plan: StagePlan, section: Optimization, name: str) -> StagePlan:
    """A stored plan with what the recipe says now of execution and, in pre-training, of the length.

    What the recipe leaves to us ("auto") stays as it was decided. Doing it again changes nothing.
    """
    values = {key: getattr(section, key) for key in _EXECUTION}
    plan = replace(plan, **{key: value for key, value in values.items() if value != "auto"})
    if isinstance(section, Pretrain):
        steps = section.steps if isinstance(section.steps, int) else plan.steps
        if section.tokens is not None:
            steps = math.ceil(float(section.tokens) / plan.batch_tokens)
        decay = round(section.decay * steps) if section.schedule == "wsd" else 0
        plan = replace(plan, steps=steps, decay_steps=decay)
    if plan.micro_batch > plan.batch_rows:
        raise RecipeError(
            "micro_batch is larger than the batch",
            found=f"micro_batch = {plan.micro_batch} rows, a step has {plan.batch_rows}",
            wanted=f"at most {plan.batch_rows}",
            fix=f"set {name}.micro_batch={plan.batch_rows}",
        )
    return plan


def check_disk(run: Path, shape: ModelShape, plan: StagePlan) -> None:
    """Room for the checkpoints that are kept and the one being written."""
    needed = _BYTES_PER_PARAMETER * total_params(shape) * (plan.keep + 1)
    free = disk_free_bytes(run)
    if needed > free:
        raise RefusedError(
            f"the disk of {run} is too full for this run's checkpoints",
            found=f"{format_bytes(free)} free",
            wanted=f"{format_bytes(needed)}: {plan.keep} kept and one being written",
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
        "data_hash": data_hash,
        "parent": None if origin is None else origin.to_json(),
        "began": time.strftime("%FT%TZ", time.gmtime()),
    }
    if any(receipt[key] != now[key] for key in now if key != "command"):
        later = receipt.setdefault("later_attempts", [])
        if not later or any(later[-1][key] != now[key] for key in now if key != "command"):
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
