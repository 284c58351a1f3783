"""Data sets as Hugging Face's `datasets` saves them, without that library.

A folder of `save_to_disk`: `state.json` names Arrow stream files in their order, `dataset_dict.json`
above them names the splits, which are all read (a path to one reads that one). Any other folder: its
Parquet files, else JSON lines, else CSV. A path that is not there and looks like `owner/name` is fetched
from the hub into its own cache, which is also found again without a network.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bessemer.data.sources import remote
from bessemer.data.sources.inputs import file_input, file_name, find_files, find_inputs
from bessemer.data.sources.parts import PART_BYTES, Input
from bessemer.errors import DataError

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_SUFFIXES = (".parquet", ".jsonl", ".csv")
_LINES = {".jsonl": "jsonl", ".json": "jsonl", ".csv": "csv"}


def find_dataset(what: str, path_text: str, base: Path, cut_bytes: int = PART_BYTES) -> list[Input]:
    """Its files in the order of its rows."""
    if remote.is_remote(path_text):
        return _data_files(what, path_text, find_inputs(what, path_text, base))
    start = base / Path(path_text).expanduser()
    prefix = None
    if not start.exists() and _HUB_NAME.fullmatch(path_text):
        start, prefix = _fetched(what, path_text), f"hf://datasets/{path_text}/"
    files = _files(what, start) if start.is_dir() else find_files(what, path_text, base)
    inputs = []
    for file in files:
        name = file_name(file, base) if prefix is None else prefix + file_name(file, start)
        inputs.append(file_input(what, file, name, _LINES.get(file.suffix), cut_bytes))
    return inputs


def _files(what: str, folder: Path) -> list[Path]:
    if (folder / "dataset_dict.json").is_file():
        splits = _listed(what, folder / "dataset_dict.json", "splits")
        return [file for split in splits for file in _files(what, folder / str(split))]
    if (folder / "state.json").is_file():
        shards = _listed(what, folder / "state.json", "_data_files")
        return [folder / str(shard.get("filename")) for shard in shards if isinstance(shard, dict)]
    found = sorted(find_files(what, str(folder), folder), key=lambda file: file_name(file, folder))
    return _of_one_kind(what, str(folder), found)


def _data_files(what: str, path_text: str, inputs: list[Input]) -> list[Input]:
    wanted = set(_of_one_kind(what, path_text, [entry.path for entry in inputs]))
    return [entry for entry in inputs if entry.path in wanted]


def _of_one_kind(what: str, path_text: str, files: Sequence[Path]) -> list[Path]:
    """Those with data: a folder often has tables of contents and licences beside them."""
    for suffix in _SUFFIXES:
        if chosen := [file for file in files if file.suffix == suffix]:
            return chosen
    raise DataError(
        f"{what}: no data set at {path_text}",
        found=", ".join(file.name for file in files[:5]) or "an empty folder",
        wanted="a folder written by `save_to_disk`, or one with .parquet, .jsonl or .csv files",
        fix="name the folder that holds state.json or dataset_dict.json",
    )


def _listed(what: str, file: Path, key: str) -> list[Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        listed = content[key]
        assert isinstance(listed, list)
    except (OSError, ValueError, KeyError, TypeError, AssertionError, RecursionError) as error:
        raise DataError(
            f"{what}: cannot read {file}",
            found=f"{type(error).__name__}: {str(error)[:200]}",
            wanted=f"what `save_to_disk` writes: an object with a list {key!r}",
            fix="save the data set again",
        ) from error
    return listed


def _fetched(what: str, name: str) -> Path:
    """The folder of the hub's cache that holds it."""
    try:
        # Optional, and slow to import: only whoever names a data set of the hub needs it.
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise DataError(
            f"{what}: {name} is not here, and nothing can fetch it from the hub",
            found="no package huggingface_hub",
            wanted="a folder of that name, or the package",
            fix="pip install huggingface_hub, or name a folder written by `save_to_disk`",
        ) from error
    patterns = [f"*{suffix}" for suffix in _SUFFIXES]
    try:
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=patterns))
    except Exception as error:  # of its HTTP library too, which changes between its versions
        raise DataError(
            f"{what}: cannot fetch {name} from the hub",
            found=remote.without_secrets(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"),
            wanted="a folder of that name here, or a data set of the hub and a network",
            fix="check the name; without a network save it where there is one with `save_to_disk`, "
            "and name that folder",
        ) from error
