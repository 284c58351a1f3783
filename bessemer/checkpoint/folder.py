"""Which checkpoints a stage has, and whether one is whole. No tensor is read here.

A folder counts when it has a manifest; it is good when the manifest is as it was written, by its own hash,
and every file that it names is there with its size and hash. Cost of the check: reading the files once, at
the speed of the disk (xxh3 is faster).
"""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from bessemer.errors import CheckpointError, RecipeError

MANIFEST = "manifest.json"
_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True)
class Manifest:
    step: int
    layout: dict[str, Any]
    files: dict[str, dict[str, Any]]  # name: {bytes, xxh3_128}
    state: dict[str, Any] = field(default_factory=dict)  # what a run carries on that is no tensor

    def to_json(self) -> dict[str, Any]:
        """With a hash over all of it: a changed step or state would otherwise pass unseen."""
        values = asdict(self)
        return {**values, "xxh3_128": _hash_of(values)}


def checkpoint_folder(stage: Path, step: int) -> Path:
    return stage / "checkpoints" / f"step-{step:08d}"


def step_of(folder: Path) -> int | None:
    match = re.fullmatch(r"step-(\d{8,})", folder.name)
    return int(match[1]) if match else None


def listed(stage: Path) -> list[Path]:
    """Folders with a manifest, newest step first."""
    found = [
        (step, folder)
        for folder in (stage / "checkpoints").glob("step-*")
        if (step := step_of(folder)) is not None and (folder / MANIFEST).is_file()
    ]
    return [folder for _, folder in sorted(found, reverse=True)]


def verify(folder: Path) -> Manifest:
    """The manifest of a checkpoint that is whole. CheckpointError names the file that is not."""
    manifest = read_manifest(folder)
    for name, expected in manifest.files.items():
        path = folder / Path(name).name
        try:
            size, digest = _size_and_hash(path)
        except OSError as error:
            raise _damaged(path, error.strerror or str(error), "the file that the manifest names") from error
        if size != expected["bytes"]:
            raise _damaged(path, f"{size:,} bytes", f"{expected['bytes']:,} bytes: it was cut short or grew")
        if digest != expected["xxh3_128"]:
            raise _damaged(path, f"hash {digest}", f"hash {expected['xxh3_128']}: its content changed")
    return manifest


def newest_good(stage: Path, say: Callable[[str], None]) -> tuple[Path, Manifest] | None:
    """The newest checkpoint that is whole; each damaged one on the way is said aloud.

    None: there is no checkpoint at all. CheckpointError: there are some, and none is whole.
    """
    damaged: CheckpointError | None = None
    for folder in listed(stage):
        try:
            return folder, verify(folder)
        except CheckpointError as error:
            say(f"{error.problem} ({error.found}; wanted {error.wanted}): trying the one before")
            damaged = damaged or error
    if damaged is None:
        return None
    raise CheckpointError(
        f"no checkpoint in {stage} is whole",
        found=f"{damaged.problem}: {damaged.found}",
        wanted="one whole checkpoint",
        fix=f"put the files back, or remove {stage / 'checkpoints'} to begin this stage again",
    )


def chosen(stage: Path, step: int | None, say: Callable[[str], None]) -> tuple[Path, Manifest]:
    """The checkpoint of a step, or the newest good one; RecipeError where there is none."""
    found = newest_good(stage, say) if step is None else None
    if step is not None and checkpoint_folder(stage, step) in listed(stage):
        folder = checkpoint_folder(stage, step)
        found = folder, verify(folder)
    if found is not None:
        return found
    steps = ", ".join(str(step_of(folder)) for folder in reversed(listed(stage)))
    raise RecipeError(
        f"{stage} has no checkpoint" + ("" if step is None else f" of step {step}"),
        found=f"steps {steps}" if steps else "none",
        wanted="a step that was saved" if steps else "a stage that has saved one",
        fix="choose one of these steps" if steps else "train it first: `bessemer run RECIPE`",
    )


def read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        expected = values.pop("xxh3_128", None)  # None: of another writer, which the contract allows
        if expected not in (None, _hash_of(values)):
            raise ValueError(f"hash {_hash_of(values)}, and {expected} was written")
        files = {
            name: {"bytes": file["bytes"], "xxh3_128": file["xxh3_128"]}
            for name, file in values["files"].items()
        }
        if not files:
            raise ValueError("it names no file")
        return Manifest(values["step"], values["layout"], files, values.get("state", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}", "the manifest that was written") from error


def _hash_of(values: dict[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_128_hexdigest(text.encode())


def _size_and_hash(path: Path) -> tuple[int, str]:
    digest, size = xxhash.xxh3_128(), 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def _damaged(path: Path, found: str, wanted: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged or missing",
        found=found,
        wanted=wanted,
        fix="use an older checkpoint of this stage (--step), or put the file back from a copy",
    )
