"""Where a stage's first weights come from: RUN, RUN@STEP, a Hugging Face folder, or adapters of PEFT's."""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bessemer.checkpoint.base import Base, base_hash
from bessemer.checkpoint.folder import chosen
from bessemer.checkpoint.huggingface import read_shape
from bessemer.checkpoint.peft import CONFIG
from bessemer.checkpoint.peft_start import peft_base
from bessemer.errors import DataError, RecipeError
from bessemer.formulas.shape import ModelShape
from bessemer.planner.plan import StagePlan
from bessemer.rundir import find_stage, read_object


@dataclass(frozen=True)
class Origin:
    """Kept in stage.json. `folder`: of a stage, or of a Hugging Face model."""

    kind: str  # "checkpoint" or "huggingface"
    folder: str
    step: int | None = None  # of a checkpoint
    checkpoint: str | None = None  # its folder
    hash: str | None = None  # of the weights, where a stage needs the same ones again
    adapter: str | None = None  # a folder of PEFT's, with what its adapters begin with

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any] | None) -> "Origin | None":
        return None if values is None else Origin(**values)

    @staticmethod
    def of_begun(stage: Path) -> "Origin | None":
        """What a stage that has begun came from."""
        return Origin.from_json((read_object(stage / "stage.json") or {}).get("origin"))

    def hashed(self, stage: Path, use: str = "has adapters for") -> "Origin":
        """With the hash of its weights. stage: that needs them again; use: what for, as in Base."""
        return replace(self, hash=base_hash(Base.of(stage, self.to_json(), use)))

    @property
    def info(self) -> dict[str, Any]:
        """stage.json of the stage that made the weights; empty for a Hugging Face folder."""
        found = read_object(Path(self.folder) / "stage.json") if self.kind == "checkpoint" else {}
        return found or {}

    @property
    def tokenizer(self) -> Path:
        return Path(self.folder) / str(self.info.get("tokenizer", "tokenizer.json"))

    @property
    def plan(self) -> StagePlan | None:
        values = self.info.get("plan")
        return None if values is None else StagePlan.from_json(values)

    def shape(self, context: int | None = None) -> ModelShape:
        if self.kind == "huggingface":
            return read_shape(Path(self.folder), context=context)
        if "shape" not in self.info:
            raise DataError(
                f"{self.folder} does not say what model it holds",
                found="no stage.json with a shape",
                wanted="a stage that bessemer trained, or a Hugging Face folder",
                fix="check --from",
            )
        return ModelShape.from_json(self.info["shape"])


def find_origin(text: str, say: Callable[[str], None], begun: Origin | None = None) -> Origin:
    """What `--from` names. A checkpoint is verified now: better before the run than in it.

    begun: where the stage that asks came from, if it has begun. The same words mean that again, also when
    the run they name has gone on since, or has removed that checkpoint.
    """
    match = re.fullmatch(r"(.+)@(\d+)", text)
    path, step = (Path(match[1]), int(match[2])) if match else (Path(text), None)
    if begun is not None and _is_named(begun, path, step):
        return begun
    if step is None and (path / CONFIG).is_file():
        return Origin("huggingface", str(peft_base(path)), adapter=str(path.resolve()))
    if step is None and (path / "config.json").is_file():
        return Origin("huggingface", str(path.resolve()))
    if match is None and "@" in text and not path.exists():
        raise RecipeError(
            f"--from {text}: the part behind @ is not a step",
            found=text.rpartition("@")[2],
            wanted="the number of a step, as in runs/demo@200",
            fix=f"use --from {text.rpartition('@')[0]} for the newest checkpoint",
        )
    return of_stage(find_stage(path), step, say)


def of_stage(stage: Path, step: int | None, say: Callable[[str], None]) -> Origin:
    folder, manifest = chosen(stage, step, say)
    return Origin("checkpoint", str(stage.resolve()), manifest.step, str(folder.resolve()))


def _is_named(origin: Origin, path: Path, step: int | None) -> bool:
    folder = Path(origin.folder)
    if origin.adapter is not None:
        return path.resolve() == Path(origin.adapter) and step is None
    return path.resolve() in (folder, folder.parent) and step in (None, origin.step)
