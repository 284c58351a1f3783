"""Folders that appear whole: one process builds, others wait, and what a killed one left is removed.

A folder is built under a hidden name beside its final one and renamed when finished. The lock is an
flock, which the kernel drops when its holder dies: whoever holds the lock of a folder may remove what
an earlier builder left behind.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from bessemer.durable import cannot_write
from bessemer.log import Console

Around = Callable[[Path], AbstractContextManager[Any]]  # what is entered while a folder is built
_BUILDING = ".building-"


@contextmanager
def locked(final: Path, console: Console) -> Iterator[None]:
    """Hold the right to build `final`; waits while another process has it."""
    locks = final.parent / ".locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
        file = open(locks / final.name, "a+b")  # noqa: SIM115 (closed below; the open file is the lock)
    except OSError as error:
        raise cannot_write(final.parent, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.line(f"data: waiting for another process that prepares {final.name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def building_folder(final: Path) -> Path:
    """An empty folder to build `final` in. The caller holds its lock. Sweeps what dead builders left."""
    building = final.with_name(_BUILDING + final.name)
    try:
        _sweep(final)
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
    except OSError as error:
        raise cannot_write(building, error) from error
    return building


def unfinished(final: Path) -> Path:
    """An empty folder beside `final`, for one process of many that may write it: each has its own."""
    building = final.with_name(f"{_BUILDING}{final.name}.{os.getpid()}")
    try:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
    except OSError as error:
        raise cannot_write(building, error) from error
    return building


@contextmanager
def in_use(stages: Path) -> Iterator[None]:
    """A build works in this folder. The first of several removes what dead ones were writing there."""
    try:
        stages.mkdir(parents=True, exist_ok=True)
        file = open(stages / ".lock", "a+b")  # noqa: SIM115 (closed below; the open file is the lock)
    except OSError as error:
        raise cannot_write(stages, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another build is at work: nothing here may be taken for a leftover
            fcntl.flock(file, fcntl.LOCK_SH)
        else:
            for left in [*stages.glob("*/.*"), *stages.glob("*/*/.*")]:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            fcntl.flock(file, fcntl.LOCK_SH)
        yield


def _sweep(final: Path) -> None:
    """Remove half-built folders whose builder is gone: their lock is free."""
    for left in final.parent.glob(_BUILDING + "*"):
        name = left.name.removeprefix(_BUILDING)
        lock = final.parent / ".locks" / name
        if name == final.name or not lock.is_file():
            continue
        with open(lock, "a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(left, ignore_errors=True)
