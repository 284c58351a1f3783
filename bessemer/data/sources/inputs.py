"""The files that a source names, each with the hash of its content.

A path is a file, a folder (all files below it that are not hidden) or a glob. Order is that of the
names, so it is the same on every machine. The hashes are taken before anything is read; a file that
is another one when it is read is an error, as the data would not be what their hash says.
Cost: reading every input once more, at the speed of the disk.
"""

import difflib
import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import xxhash

from bessemer.data.sources.parts import Input
from bessemer.errors import DataError

_BLOCK_BYTES = 1 << 20


def find_inputs(what: str, path_text: str, base: Path) -> list[Input]:
    """The files of `path_text`. `what` names the source in errors. None at all is a DataError."""
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
    inputs = [_input(what, file, base) for file in files]
    return sorted(inputs, key=lambda entry: entry.name)


def open_input(entry: Input, what: str) -> BinaryIO:
    """The file's bytes. A file that vanished or changed since it was listed is a DataError."""
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
        f"{what}: {entry.path} changed while the data was prepared",
        found="another size or time of change than when its content was hashed",
        wanted="files that stay as they are until the data is prepared",
        fix="wait until nothing writes to it, then run the same command again",
    )


def near(wrong: str, known: list[str]) -> str:
    """ " did you mean …", or nothing."""
    found = difflib.get_close_matches(wrong, known, n=1, cutoff=0.5)
    return f"did you mean {found[0]!r}? " if found else ""


def _input(what: str, file: Path, base: Path) -> Input:
    try:
        with open(file, "rb") as content:
            before = os.fstat(content.fileno())
            digest = xxhash.xxh3_128()
            for block in _blocks(content):
                digest.update(block)
    except OSError as error:
        raise _unreadable(what, file, error) from error
    relative = os.fsencode(os.path.relpath(file, base)).decode("utf-8", "backslashreplace")
    name = relative.replace(os.sep, "/")
    return Input(file, name, before.st_size, before.st_mtime_ns, digest.hexdigest())


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
