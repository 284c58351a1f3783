"""The files that a source names, each with the hash of its content.

A path is a file, a folder (all files below it that are not hidden) or a glob, here or in a store of
objects (s3://, gs://: remote.py). Order is that of the names, so it is the same on every machine. The
hashes are taken before anything is read; a file that is another one when it is read is an error, as the
data would not be what their hash says. Files of lines are looked through for cuts in the same pass.
Cost: reading every input once more. From memory and on one core 6.4 GB/s, with the cuts of JSON lines
3.1, of CSV 0.55 (every line end and quote of it is looked at); a disk gives less than the first two.
Objects in a store are not read.
"""

import difflib
import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import xxhash

from bessemer.data.sources import remote
from bessemer.data.sources.cuts import Cuts
from bessemer.data.sources.parts import PART_BYTES, Input
from bessemer.errors import DataError

_BLOCK_BYTES = 1 << 20


def find_inputs(
    what: str, path_text: str, base: Path, kind: str | None = None, cut_bytes: int = PART_BYTES
) -> list[Input]:
    """The files of `path_text`. `what` names the source in errors. None at all is a DataError.

    kind: of lines ("jsonl", "csv"), if cuts are wanted, about `cut_bytes` apart.
    """
    if remote.is_remote(path_text):
        return remote.find_objects(what, path_text)
    files = find_files(what, path_text, base)
    inputs = [file_input(what, file, file_name(file, base), kind, cut_bytes) for file in files]
    return sorted(inputs, key=lambda entry: entry.name)


def find_files(what: str, path_text: str, base: Path) -> list[Path]:
    start = base / Path(path_text).expanduser()
    if start.is_dir():
        files = [file for file in start.rglob("*") if not _is_hidden(file.relative_to(start))]
    elif start.exists() or not glob.has_magic(path_text):
        files = [start]
    else:
        files = [Path(file) for file in glob.iglob(str(start), recursive=True)]
    # A pipe or a device would block or never end; a broken link is told as a file that is not there.
    files = [file for file in files if file.is_file() or (file == start and not file.exists())]
    if not files:
        raise _nothing_there(what, path_text, start)
    return files


def file_name(file: Path, base: Path) -> str:
    relative = os.fsencode(os.path.relpath(file, base)).decode("utf-8", "backslashreplace")
    return relative.replace(os.sep, "/")


def file_input(
    what: str, file: Path, name: str, kind: str | None = None, cut_bytes: int = PART_BYTES
) -> Input:
    """One file, read through for its hash."""
    try:
        with open(file, "rb") as content:
            before = os.fstat(content.fileno())
            digest = xxhash.xxh3_128()
            cuts = Cuts(kind, before.st_size, cut_bytes) if kind in ("jsonl", "csv") else None
            for block in _blocks(content):
                digest.update(block)
                if cuts is not None:
                    cuts.add(block)
    except OSError as error:
        raise _unreadable(what, file, error) from error
    found = cuts.found() if cuts is not None else ()
    return Input(file, name, before.st_size, before.st_mtime_ns, digest.hexdigest(), cuts=found)


def open_input(entry: Input, what: str) -> BinaryIO:
    """The file's bytes. A file that vanished or changed since it was listed is a DataError."""
    if entry.url is not None:
        file, is_same = remote.open_object(entry, what)
        if not is_same:
            raise changed(what, entry)
        return file
    try:
        file = open(entry.path, "rb")  # noqa: SIM115 (the caller closes it)
        now = os.fstat(file.fileno())
    except OSError as error:
        raise _unreadable(what, entry.path, error) from error
    if (now.st_size, now.st_mtime_ns) != (entry.size_bytes, entry.modified_ns):
        file.close()
        raise changed(what, entry)
    return file


def check_unchanged(entry: Input, what: str) -> None:
    """For a file that something else opened and read."""
    open_input(entry, what).close()


def changed(what: str, entry: Input) -> DataError:
    return DataError(
        f"{what}: {place_of(entry)} changed while the data was prepared",
        found="another size or time of change than when it was listed",
        wanted="files that stay as they are until the data is prepared",
        fix="wait until nothing writes to it, then run the same command again",
    )


def place_of(entry: Input) -> str:
    """Where it lies, for errors."""
    return entry.url or str(entry.path)


def unfinished(what: str, entry: Input, error: OSError) -> DataError:
    """Its disk or its network failed while it was read."""
    return DataError(
        f"{what}: cannot read {place_of(entry)} to its end",
        found=remote.without_secrets(error.strerror or str(error)),
        wanted="a file that can be read to its end",
        fix="check the disk or the network, then run the same command again",
    )


class WrongColumns(DataError):
    """A file lacks a column: a mistake of the recipe, or if others have it, of this one file."""


def no_column(what: str, where: str, name: str, known: Sequence[str]) -> WrongColumns:
    return WrongColumns(
        f"{what}: {where} has no column {name!r}",
        found="its columns: " + (", ".join(known) or "none"),
        wanted=f"a column named {name!r}",
        fix=near(name, list(known)) + "Name the columns of the file in the recipe",
    )


def near(wrong: str, known: list[str]) -> str:
    """ " did you mean …", or nothing."""
    found = difflib.get_close_matches(wrong, known, n=1, cutoff=0.5)
    return f"did you mean {found[0]!r}? " if found else ""


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(_BLOCK_BYTES):
        yield block


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _nothing_there(what: str, path_text: str, start: Path) -> DataError:
    is_folder = start.is_dir()
    return DataError(
        f"{what}: no file at {path_text}",
        found=f"{start} is an empty folder" if is_folder else f"{start} matches no file",
        wanted="at least one file",
        fix="check the path; relative paths start from the recipe's folder",
    )


def _unreadable(what: str, file: Path, error: OSError) -> DataError:
    beside = [entry.name for entry in file.parent.iterdir()] if file.parent.is_dir() else []
    return DataError(
        f"{what}: cannot read {file}",
        found=error.strerror or str(error),
        wanted="a file that is there and may be read",
        fix=near(file.name, beside) + "Check the path; relative paths start from the recipe's folder",
    )
