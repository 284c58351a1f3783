"""What a recipe's sources hold, at a glance: names, sizes and times of change; no file is opened.

For `bessemer plan`, which has to answer at once: a build reads every input for its hash. So that a plan
can use exact figures where the data is there already, a build notes under which listing it was made: the
same names, sizes and times of change (`remember`, `remembered`). A listing that is cut has no such note.
Cost: 0.15 s a source at the most, from a warm cache: a folder or glob of 50,000 names, 10,000 sizes.
"""

import glob
import json
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import xxhash

from bessemer.data.format import FORMAT
from bessemer.data.supported import other_files
from bessemer.durable import write_json
from bessemer.recipe.keys import leaves
from bessemer.recipe.schema import Recipe, Source
from bessemer.rundir import read_object

MOST_NAMES, MOST_SIZES = 50_000, 10_000


@dataclass(frozen=True)
class Listed:
    """A file. size_bytes: that of itself and of those beside it that were not looked at."""

    name: str
    size_bytes: float
    modified_ns: int


@dataclass(frozen=True)
class Listing:
    """The files of a source. `unknown`: why there is nothing to list here; then there are none."""

    files: tuple[Listed, ...] = ()
    num_files: int = 0
    complete: bool = True  # False: there are more than were counted
    sampled: bool = False  # the sizes of some stand for all
    unknown: str | None = None

    @property
    def num_bytes(self) -> float:
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True)
class Place:
    """Where paths start from."""

    recipe: Path  # those of the recipe itself
    sources: Path | None  # those of its sources; None: nowhere yet, as data.gather makes it when it is built


def list_sources(recipe: Recipe, base: Path | None) -> list[Listing]:
    return [list_source(source, base) for source in recipe.data.source]


def list_source(source: Source, base: Path | None) -> Listing:
    """base: where paths start from; None: nowhere yet, as data.gather makes it when it is built."""
    path = source.path
    if path is None:
        return Listing(unknown="a database server tells no sizes")
    if "://" in path.split("/")[0] + "//" and "://" in path:
        return Listing(unknown="objects elsewhere are not listed")
    if base is None:
        return Listing(unknown="it is rendered when it is built")
    found = list_path(path, base)
    if source.kind == "huggingface" and not found.files:
        return Listing(unknown="it is fetched from the hub when it is built")
    limited = source.limit is not None and source.kind in ("text", "code", "html")
    return _first(found, source.limit or 0) if limited else found


def list_path(path: str, base: Path) -> Listing:
    """The files of a path, folder or glob. A file that is not there is none."""
    names = list(islice(_names(base / Path(path).expanduser()), MOST_NAMES + 1))
    complete = len(names) <= MOST_NAMES
    names = sorted(names[:MOST_NAMES])
    apart = -(-len(names) // MOST_SIZES) or 1
    files = [file for name in names[::apart] if (file := _listed(name)) is not None]
    if apart > 1:
        files = [Listed(file.name, file.size_bytes * len(names) / len(files), 0) for file in files]
    return Listing(tuple(files), len(names) if apart > 1 else len(files), complete, apart > 1)


def listing_key(recipe: Recipe, place: Place) -> str | None:
    """Of the inputs as they are now; for `remember`, once their data is there. None: not all can be seen."""
    return _key(recipe, place, list_sources(recipe, place.sources))


def remember(store: Path, key: str | None, folder: Path) -> None:
    """For a plan to find: `folder` of the store is the data of the inputs that had this key."""
    if key is not None:
        write_json(store / "known" / f"{key}.json", {"hash": folder.name})


def remembered(
    store: Path, recipe: Recipe, place: Place, listings: Sequence[Listing]
) -> dict[str, Any] | None:
    """The manifest of this recipe's data, where a build has made it of the same inputs.

    listings: as list_sources has them now.
    """
    key = _key(recipe, place, listings)
    known = None if key is None else read_object(store / "known" / f"{key}.json")
    if known is None:
        return None
    manifest = read_object(store / str(known["hash"]) / "manifest.json")
    return None if manifest is None or manifest.get("format") != FORMAT else manifest


def gathered_base(recipe: Recipe, base: Path, store: Path) -> Path | None:
    """The folder that source paths start from, if it is there; of several rendered ones the newest."""
    if recipe.data.gather is None:
        return base
    made = [path for path in (store / "gathered").glob("*/gathered.json") if path.is_file()]
    return max(made, key=lambda path: path.stat().st_mtime_ns).parent if made else None


def _key(recipe: Recipe, place: Place, listings: Sequence[Listing]) -> str | None:
    """Of all that decides tokens, but for what is inside the files. None: not all of it can be seen."""
    if not listings or any(
        one.unknown or one.sampled or not one.complete or not one.files for one in listings
    ):
        return None
    assert place.sources is not None, "a listing without a base is unknown"
    others = [path for _, path in other_files(recipe, place.recipe)]
    if recipe.tokenizer.path is not None:
        others.append(recipe.tokenizer.path)
        others.append(str(Path(recipe.tokenizer.path).with_name("tokenizer_config.json")))
    # SQLite may keep what was written last in a file beside it.
    beside = [f"{source.path}-wal" for source in recipe.data.source if source.kind == "sql"]
    seen = [*listings, *(list_path(path, place.recipe) for path in others)]
    seen += [list_path(path, place.sources) for path in beside]
    files = [[(file.name, file.size_bytes, file.modified_ns) for file in one.files] for one in seen]
    about = [
        (leaf.path, leaf.value)
        for leaf in leaves(recipe)
        if leaf.affects == "data" and leaf.path.split(".")[0] in ("tokenizer", "data")
    ]
    text = json.dumps([FORMAT, about, files], sort_keys=True, allow_nan=False)
    return xxhash.xxh3_128_hexdigest(text.encode("utf-8", "surrogateescape"))


def _names(start: Path) -> Iterator[str]:
    """Paths below a folder, or of a glob; in no order; hidden ones left out."""
    if start.is_dir():
        yield from _below(str(start))
    elif start.exists() or not glob.has_magic(str(start)):
        yield str(start)
    else:
        yield from glob.iglob(str(start), recursive=True)


def _below(folder: str) -> Iterator[str]:
    waiting = [folder]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        yield entry.path
        except OSError:  # may not be read: a build says so
            continue


def _listed(name: str) -> Listed | None:
    try:
        about = os.stat(name)
    except OSError:
        return None
    return Listed(name, about.st_size, about.st_mtime_ns) if stat.S_ISREG(about.st_mode) else None


def _first(found: Listing, limit: int) -> Listing:
    """The first so many files, which are all that is read."""
    if limit >= found.num_files:
        return found
    files = found.files[: max(1, round(limit * len(found.files) / found.num_files))]
    return Listing(files, limit, found.complete, found.sampled)
