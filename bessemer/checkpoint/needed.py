"""Which checkpoints stay, whatever `keep` says: those that a stage reads again at its later attempts.

    adapters                  the base that they lie on, at every use
    GRPO with beta            the model that it began from: its reference
    distillation on policy    the teacher; off policy until it has been asked about everything

Stages of the same run are found by their files. A stage of another run leaves a note with the stage whose
checkpoint it needs:

    <stage>/needed-by/<hash of the folder>.json    {"stage": the folder}

A note whose stage is gone, or needs another checkpoint by now, keeps nothing. In a run that is not ours to
write no note can be left; then whoever prunes it does not know.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import xxhash

from bessemer.data.teacher import BUILDING, FOLDER
from bessemer.durable import write_json
from bessemer.errors import DataError, WriteError
from bessemer.rundir import read_object

_NOTES = "needed-by"


def note_needs(stage: Path) -> None:
    """Tell the stages of other runs whose checkpoints this one, which has begun, reads again."""
    whole = stage.resolve()
    for origin in _read_again(stage):
        folder = Path(origin["folder"])
        if folder.parent != whole.parent:
            path = folder / _NOTES / f"{xxhash.xxh3_64_hexdigest(str(whole).encode())}.json"
            with suppress(WriteError):
                path.parent.mkdir(exist_ok=True)
                write_json(path, {"stage": str(whole)})


def needed(stage: Path) -> set[Path]:
    """Of its checkpoints, resolved; and of others."""
    stages = [path.parent for path in stage.parent.glob("*/stage.json")]
    stages += [Path(str((read_object(path) or {}).get("stage"))) for path in (stage / _NOTES).glob("*.json")]
    return {Path(origin["checkpoint"]).resolve() for other in stages for origin in _read_again(other)}


def _read_again(stage: Path) -> Iterator[dict[str, Any]]:
    """Origins (train/origin.py) that are checkpoints."""
    for origin in _origins(stage):
        if origin is not None and origin.get("checkpoint") is not None:
            yield origin


def _origins(stage: Path) -> Iterator[dict[str, Any] | None]:
    info = _read(stage / "stage.json")
    objective = (info.get("plan") or {}).get("objective") or {}
    asks_origin = objective.get("kind") == "grpo" and objective.get("beta")
    if asks_origin or (info.get("shape") or {}).get("adapter") is not None:
        yield info.get("origin")
    if objective.get("kind") == "distill":
        yield _read(stage / BUILDING / "teacher.json").get("origin")
    if objective.get("rollouts") is not None:
        yield _read(stage / FOLDER / "teacher.json").get("origin")


def _read(path: Path) -> dict[str, Any]:
    """Empty where it cannot be read: another run's files are no reason to stop this one."""
    with suppress(DataError):
        return read_object(path) or {}
    return {}
