"""Who holds a lever, and what it was before: a file of the user's state folder that is record and lock.

    $XDG_STATE_HOME/bessemer/levers/<boot>-<kind>-<name>.json       (or ~/.local/state)

It is locked (flock) from before the first change until the lever is back, by the trainer and by its guard
(guard.py) together: a free lock means that neither lives, and whoever finds such a record puts back
(restore.py). The name begins with the id of this boot: a boot puts levers back, and homes are shared by
machines. It is written in place, as a renamed file would not be the locked one; a torn record is none, for
nothing is moved before it is whole on disk.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from bessemer.durable import sync_folder
from bessemer.errors import RefusedError

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PATIENCE_S = 2.0  # of the guard of a run that has just ended
_POLL_S = 0.02

Record = dict[str, Any]  # kind, name, before, process


class Holding:
    """The locked file of a lever."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file

    @property
    def record(self) -> Record | None:
        """What a run that did not put back has left."""
        return read_record(self.path)

    def write(self, record: Record) -> None:
        """On disk when this returns."""
        try:
            self.file.truncate(0)
            self.file.write(json.dumps(record).encode())
            self.file.flush()
            os.fsync(self.file.fileno())
            sync_folder(self.path.parent)
        except OSError as error:
            raise _no_record(self.path, error) from error

    def forget(self) -> None:
        """The lever is back."""
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        with suppress(OSError):  # of a full disk: `write` has told, and closing tries once more
            self.file.close()


def take(kind: str, name: str) -> Holding:
    """RefusedError: another run has it, or the state folder cannot be used."""
    path = _folder() / f"{_boot()}-{kind}-{name}.json"
    end_s = time.monotonic() + _PATIENCE_S
    while True:
        holding = try_take(path)
        if holding is not None:
            return holding
        if time.monotonic() > end_s:
            holder = (read_record(path) or {}).get("process", "unknown")
            raise RefusedError(
                f"another run has set the {kind.replace('_', ' ')} of {name}",
                found=f"{path}, held by process {holder}",
                wanted="one run at a time that sets it",
                fix="wait for that run, or leave it alone in this one",
            )
        time.sleep(_POLL_S)


def try_take(path: Path) -> Holding | None:
    """None: somebody alive holds it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+b")  # noqa: SIM115 (the open file is the lock)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had it may have removed it between our two calls: then another may lock a new file.
            if os.fstat(file.fileno()).st_ino == os.stat(path).st_ino:
                return Holding(path, file)
        except (BlockingIOError, FileNotFoundError):
            pass
        except OSError:
            file.close()
            raise
    except OSError as error:
        raise _no_record(path, error) from error
    file.close()
    return None


def records() -> Iterator[Path]:
    """Of this machine since it booted."""
    return iter(sorted(_folder().glob(f"{_boot()}-*.json")))


def read_record(path: Path) -> Record | None:
    """None: there is none, or it is torn."""
    try:
        record = json.loads(path.read_bytes() or b"null")
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _folder() -> Path:
    home = os.path.expanduser("~")
    state = os.environ.get("XDG_STATE_HOME") or Path("/" if home == "~" else home) / ".local/state"
    return Path(state) / "bessemer" / "levers"


def _boot() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return socket.gethostname()


def _no_record(path: Path, error: OSError) -> RefusedError:
    return RefusedError(
        "what is changed on this machine cannot be written down, so nothing is",
        found=f"{path}: {error.strerror or error}",
        wanted="a folder for the user's state, on a disk that can lock files",
        fix="set XDG_STATE_HOME to one",
    )
