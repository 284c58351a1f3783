"""The shards that encoding wrote, under their names in the folder of the data that is published.

What a shard holds is decided in encode.py; here a source's shards are numbered, over all its parts.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bessemer.data.factory.decide import SPLITS
from bessemer.data.factory.keys import PartFiles


def link_shards(
    folder: Path, parts: Sequence[PartFiles], sources: list[dict[str, Any]], encoded: Sequence[dict[str, Any]]
) -> None:
    """Shards under their names in the folder: links where the file system has them, else copies.

    Adds to what is told of the sources which shards they have, and how much is in them.
    """
    for source in sources:
        source["splits"] = {name: {"documents": 0, "tokens": 0, "bytes": 0} for name in SPLITS}
        source["shards"] = {name: [] for name in SPLITS}
    for one, given in zip(parts, encoded, strict=True):
        source = sources[one.source]
        of_source = folder / "tokens" / f"{one.source:02d}-{_plain(source['name'])}"
        for name in SPLITS:
            counts, shards = given["splits"][name], source["shards"][name]
            if not counts["documents"]:
                continue
            source["splits"][name] = sum_counts([source["splits"][name], counts])
            of_source.mkdir(parents=True, exist_ok=True)
            stem = of_source / f"{name}-{len(shards):05d}"
            shards.append(stem.relative_to(folder).as_posix())
            for ending in (".bin", ".idx", ".parquet"):
                _link_file(given["folder"] / f"{name}{ending}", stem.with_suffix(ending))
    for source in sources:
        whole = sum_counts(list(source["splits"].values()))
        source["documents"], source["tokens"] = whole["documents"], whole["tokens"]


def sum_counts(rows: Sequence[dict[str, int]]) -> dict[str, int]:
    return {name: sum(row[name] for row in rows) for name in ("documents", "tokens", "bytes")}


def _link_file(existing: Path, new: Path) -> None:
    try:
        os.link(existing, new)
    except OSError:  # another file system, or one without links
        shutil.copyfile(existing, new)


def _plain(name: str) -> str:
    """A source's name as part of a file's."""
    return "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in name)[:40]
