"""Writing files so that a crash at any moment leaves the old file or the new one, never half of one.

A file is written under a temporary name in the same folder, fsynced, renamed, and the folder is
fsynced too (a rename is durable only then). Every OSError on the way becomes a WriteError that names
the path, and the temporary file is removed.
"""

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from bessemer.errors import WriteError


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; on leaving without an exception it becomes `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):  # the parent may be a file, or closed to us: that is told already
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    with atomic_file(path) as file:
        file.write(content)


def write_text(path: Path, content: str) -> None:
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def publish_folder(building: Path, final: Path) -> None:
    """Make a finished folder appear under its final name at once. Both on one file system."""
    try:
        for entry in building.rglob("*"):
            if entry.is_file():
                _sync(entry)
        sync_folder(building)
        os.replace(building, final)
        sync_folder(final.parent)
    except OSError as error:
        raise cannot_write(final, error) from error


def sync_folder(folder: Path) -> None:
    _sync(folder)


def file_hash(path: Path) -> str:
    """xxh3_128 of what is in the file, which may be larger than memory."""
    import xxhash  # here: a worker reads this module before anything of ours may be missing

    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def guard_write(path: Path, write: Callable[[], Any]) -> Any:
    """Run a writer that opens `path` itself (safetensors, sqlite) with our error for a full disk."""
    try:
        return write()
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> WriteError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return WriteError(
        f"cannot write {path}",
        found=error.strerror or str(error),
        wanted="a writable folder with free space",
        fix="free space on this disk, then run the same command again: nothing written so far is lost"
        if full
        else "check the path and its permissions, or choose another with --run or --store",
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
