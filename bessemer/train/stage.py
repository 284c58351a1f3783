"""A training stage's folder: begun once, found again by every later attempt.

stage.json says what the stage is: model, plan, data, tokenizer, origin of its weights. An attempt that
goes on reads it instead of deciding anew, so that a second measurement of the machine, another default
or a changed file cannot change a run under way.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bessemer.checkpoint.folder import listed, step_of, verify
from bessemer.checkpoint.needed import note_needs
from bessemer.data.kept import open_told, told
from bessemer.data.mixture import Mixing
from bessemer.data.prepared import Prepared, PreparedTask
from bessemer.durable import write_bytes, write_json
from bessemer.energy.accounting.ledger import StageLedger
from bessemer.errors import CheckpointError, DataError, RecipeError
from bessemer.formulas.shape import ModelShape
from bessemer.planner.plan import StagePlan
from bessemer.rundir import JsonLines, Row, counting_rows, read_object, read_rows, steady_median
from bessemer.train.origin import Origin


@dataclass(frozen=True)
class Stage:
    folder: Path
    kind: str  # "pretrain" or "finetune"
    shape: ModelShape
    plan: StagePlan
    seed: int
    data: Prepared | PreparedTask
    tokenizer: Path  # to copy when the stage begins
    origin: Origin | None = None  # None: random weights
    mixture: Mixing | None = None  # of the sources; None: a task
    examples: int | None = None  # of a task: the first so many; None: all
    compiled: bool | None = None  # what compile = "auto" came to; None: not decided yet
    new_tokens: tuple[int, ...] = ()  # that the origin's model has not

    @property
    def newest_step(self) -> int:
        found = listed(self.folder)
        return (step_of(found[0]) or 0) if found else 0

    @property
    def is_done(self) -> bool:
        """The last step is saved, and its checkpoint is whole."""
        found = listed(self.folder)
        if not found or (step_of(found[0]) or 0) < self.plan.steps:
            return False
        try:
            verify(found[0])
        except CheckpointError:
            return False  # going on finds the newest good one, and says what is damaged
        return True


def check_begun(stage: Stage) -> Stage:
    """The stage as it began, where it has: its data and origin must be the same. Writes nothing."""
    found = read_object(stage.folder / "stage.json")
    return stage if found is None else _found(stage, found)


def begin(stage: Stage) -> None:
    """Write the stage's own files; and tell whoever has what it reads again."""
    write_files(stage)
    note_needs(stage.folder)


def write_files(stage: Stage) -> None:
    """The tokenizer and stage.json, where there are none."""
    if not (stage.folder / "stage.json").is_file():
        write_bytes(stage.folder / "tokenizer.json", stage.tokenizer.read_bytes())
        config = stage.data.folder / "tokenizer_config.json"  # special tokens, and the chat template
        if config.is_file():
            write_bytes(stage.folder / "tokenizer_config.json", config.read_bytes())
        write(stage)


def has_started(folder: Path) -> bool:
    """Whether an attempt has begun to train."""
    return any(row["kind"] in ("start", "resume") for row in read_rows(folder / "events.jsonl"))


def note_done(stage: Stage) -> None:
    """The event that a kill after the last save kept from being written."""
    rows = read_rows(stage.folder / "events.jsonl")
    if rows and not any(row["kind"] == "done" and row["step"] >= stage.plan.steps for row in rows):
        attempt = sum(row["kind"] in ("start", "resume") for row in rows)
        events = JsonLines(stage.folder / "events.jsonl")
        events.append({"time": time.time(), "attempt": attempt, "kind": "done", "step": stage.plan.steps})
        events.close()


def write(stage: Stage) -> None:
    write_json(
        stage.folder / "stage.json",
        {
            "kind": stage.kind,
            "shape": stage.shape.to_json(),
            "tokenizer": "tokenizer.json",
            "context": stage.plan.context,
            "seed": stage.seed,
            "data": told(stage.data),
            "mixture": None if stage.mixture is None else stage.mixture.to_json(),
            "examples": stage.examples,
            "origin": None if stage.origin is None else stage.origin.to_json(),
            "compiled": stage.compiled,
            "new_tokens": stage.new_tokens,
            "plan": stage.plan.to_json(),
        },
    )


def read_stage(folder: Path) -> Stage:
    """A stage that has begun, from its own files: what another process needs to train it."""
    found = read_object(folder / "stage.json")
    assert found is not None, f"{folder} has not begun"
    data = open_told(found["data"])
    return Stage(
        folder=folder,
        kind=found["kind"],
        shape=ModelShape.from_json(found["shape"]),
        plan=StagePlan.from_json(found["plan"]),
        seed=found["seed"],
        data=data,
        tokenizer=folder / found["tokenizer"],
        origin=Origin.from_json(found.get("origin")),
        mixture=Mixing.from_json(found["mixture"]) if found.get("mixture") else None,
        examples=found.get("examples"),
        compiled=found.get("compiled"),
        new_tokens=tuple(found.get("new_tokens") or ()),
    )


def outcome(stage: Stage, run: Path) -> dict[str, Any]:
    """What the training verbs end with, read from the stage's own files."""
    every = read_rows(stage.folder / "metrics.jsonl")
    rows = counting_rows(every)
    last: Row = rows[-1] if rows else {}
    validated = [row["validation_loss"] for row in rows if row.get("validation_loss") is not None]
    events = read_rows(stage.folder / "events.jsonl")
    checkpoints = listed(stage.folder)
    return {
        "run": str(run),
        "stage": stage.folder.name,
        "step": step_of(checkpoints[0]) if checkpoints else 0,
        "tokens": last.get("tokens", 0),
        "loss": last.get("loss"),
        "validation_loss": validated[-1] if validated else None,
        "tokens_per_s": steady_median(rows, "tokens_per_s"),
        "mfu": steady_median(rows, "mfu"),
        "layout": last.get("layout", "replicate=1"),
        "energy_j": StageLedger(every, events).energy.to_json(),
        "checkpoint": str(checkpoints[0]) if checkpoints else None,
        "attempts": sum(row["kind"] in ("start", "resume") for row in events),
    }


def check_data(folder: Path, data_hash: str) -> None:
    """DataError when a stage that has begun had other data."""
    found = read_object(folder / "stage.json")
    if found is not None and found["data"]["hash"] != data_hash:
        raise DataError(
            f"the data of {folder} changed",
            found=f"prepared data {data_hash}",
            wanted=f"{found['data']['hash']}, which this stage began with",
            fix="put the source files back as they were, or begin a new run with --run DIR",
        )


def _found(stage: Stage, found: dict[str, Any]) -> Stage:
    check_data(stage.folder, stage.data.hash)
    origin = Origin.from_json(found.get("origin"))
    if stage.origin is not None and (
        origin is None or replace(origin, hash=None) != replace(stage.origin, hash=None)
    ):
        raise RecipeError(
            f"{stage.folder} began from other weights",
            found=f"--from {stage.origin.folder}, step {stage.origin.step}",
            wanted=f"{origin.folder}, step {origin.step}" if origin else "no --from: it began at random",
            fix="leave --from out to go on with this run, or give the new one a folder with --run DIR",
        )
    plan = StagePlan.from_json(found["plan"])
    mixture = stage.mixture
    if mixture is not None:
        position = stage.newest_step * plan.batch_rows
        mixture = Mixing.from_json(found["mixture"]).followed(mixture.wanted, position)
    return replace(
        stage,
        shape=ModelShape.from_json(found["shape"]),
        plan=plan,
        origin=origin,
        mixture=mixture,
        compiled=found.get("compiled"),
        new_tokens=tuple(found.get("new_tokens") or ()),
    )
