"""Log-probabilities of the model that preferences are measured from, stored in a stage's folder.

reference-train.npy, reference-validation.npy   fp32 [documents]: of each document the sum over its targets
reference.json                                  written last: how many there are, and hashes

They are computed once (train/reference.py), by weights that are gone after the first step, so a stage that
goes on, and an evaluation, read them here.
"""

from pathlib import Path
from typing import Any

import numpy as np

from bessemer.data.prepared import PreparedTask, Split
from bessemer.durable import atomic_file, file_hash, write_json
from bessemer.errors import DataError
from bessemer.rundir import read_object

SPLITS: tuple[Split, ...] = ("train", "validation")
Sums = np.ndarray[tuple[int], np.dtype[np.float32]]


def write_reference(stage: Path, sums: dict[Split, Sums]) -> None:
    said = {}
    for split, values in sums.items():
        with atomic_file(_file(stage, split)) as file:
            np.save(file, values, allow_pickle=False)
        said[split] = {"documents": len(values), "xxh3_128": file_hash(_file(stage, split))}
    write_json(stage / "reference.json", said)


def has_reference(stage: Path) -> bool:
    return (stage / "reference.json").is_file()


def read_reference(stage: Path, data: PreparedTask, split: Split) -> Sums:
    """DataError where the file is not what was written."""
    said: dict[str, Any] = (read_object(stage / "reference.json") or {}).get(split) or {}
    wanted = {"documents": data.num_documents(split), "xxh3_128": said.get("xxh3_128")}
    path = _file(stage, split)
    found = {"documents": said.get("documents"), "xxh3_128": file_hash(path) if path.is_file() else "no file"}
    if found != wanted:
        raise DataError(
            f"the log-probabilities of the reference are damaged: {path}",
            found=f"{found['documents']} documents, hash {found['xxh3_128']}",
            wanted=f"{wanted['documents']} documents, hash {wanted['xxh3_128']}",
            fix=f"put the file back, or remove the folder {stage} and begin this stage again",
        )
    values: Sums = np.load(path, allow_pickle=False)
    return values


def _file(stage: Path, split: Split) -> Path:
    return stage / f"reference-{split}.npy"
