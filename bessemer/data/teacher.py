"""The teacher's likeliest words at each token of prepared examples, as files in a stage's folder. No torch.

    finetune/teacher/   teacher.json   <split>.ids.npy   <split>.log_probs.npy

[tokens of the split, k], int32 and fp32, at the token that predicts. Read through the memory map: only
rows that are trained on are in memory. Tokens without loss have none, and take no room on a disk that keeps
files with holes. 256 bytes a trained token at k = 32.
teacher.json says who was asked, and the hash of each file, which is compared once an attempt (holes are read
at the speed of memory, the rest at the disk's).
"""

from pathlib import Path

import numpy as np

from bessemer.data.packed_rows import Extra
from bessemer.durable import file_hash
from bessemer.errors import DataError
from bessemer.rundir import read_object

FOLDER = "teacher"
BUILDING = f".{FOLDER}"  # while it is asked
NAMES = {"ids": np.int32, "log_probs": np.float32}


def taught_path(folder: Path, split: str, name: str) -> Path:
    return folder / f"{split}.{name}.npy"


def taught_hashes(folder: Path) -> dict[str, str]:
    """By the name of the file."""
    return {path.name: file_hash(path) for path in sorted(folder.glob("*.npy"))}


def check_taught(stage: Path) -> None:
    """DataError where a file is not what was written."""
    said = read_object(stage / FOLDER / "teacher.json") or {}
    for name, wanted in (said.get("files") or {}).items():  # none: of a stage from before there were any
        path = stage / FOLDER / name
        if not path.is_file():
            raise _lost(stage, path)
        found = file_hash(path)
        if found != wanted:
            raise DataError(
                f"what the teacher said is damaged: {path}",
                found=f"hash {found}",
                wanted=f"{wanted}, as it was written",
                fix=f"remove {stage / FOLDER}: the teacher is asked again",
            )


def teacher_columns(stage: Path, split: str) -> Extra:
    """Columns `teacher_ids` and `teacher_log_probs`. DataError where they are not there."""
    found = {}
    for name in NAMES:
        path = taught_path(stage / FOLDER, split, name)
        if not path.is_file():
            raise _lost(stage, path)
        found[f"teacher_{name}"] = np.load(path, mmap_mode="r")
    return Extra(per_token=found)


def _lost(stage: Path, path: Path) -> DataError:
    return DataError(
        f"what the teacher said is lost: {path}",
        found="no such file",
        wanted="the file that was written before the stage began to train",
        fix=f"remove {stage / FOLDER}: the teacher is asked again",
    )
