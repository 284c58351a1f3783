"""The teacher's likeliest words at each token of prepared examples, as files in a stage's folder. No torch.

    finetune/teacher/   teacher.json   <split>.ids.npy   <split>.log_probs.npy

[tokens of the split, k], int32 and fp32, at the token that predicts. Read through the memory map: only
rows that are trained on are in memory. Tokens without loss have none, and take no room on a disk that keeps
files with holes. 256 bytes a trained token at k = 32.
"""

from pathlib import Path

import numpy as np

from bessemer.data.packed_rows import Extra
from bessemer.errors import DataError

FOLDER = "teacher"
NAMES = {"ids": np.int32, "log_probs": np.float32}


def taught_path(folder: Path, split: str, name: str) -> Path:
    return folder / f"{split}.{name}.npy"


def teacher_columns(stage: Path, split: str) -> Extra:
    """Columns `teacher_ids` and `teacher_log_probs`. DataError where they are not there."""
    found = {}
    for name in NAMES:
        path = taught_path(stage / FOLDER, split, name)
        if not path.is_file():
            raise DataError(
                f"what the teacher said is lost: {path}",
                found="no such file",
                wanted="the file that was written before the stage began to train",
                fix=f"remove {stage / FOLDER}: the teacher is asked again",
            )
        found[f"teacher_{name}"] = np.load(path, mmap_mode="r")
    return Extra(per_token=found)
