"""The run directory: the one interface between the parts of Bessemer.

    runs/<name>/
      recipe.toml  plan.json  receipt.json
      pretrain/    metrics.jsonl  events.jsonl  logs/rank-00000.log  checkpoints/step-00001000/
      finetune/    … the same, complete in itself
      evaluate/results.json   export/hf/…   report.html   energy.jsonl

Rows of JSON with unit-bearing names are the truth; report and comparison only read them. A process
lifetime is an *attempt*; steps that were rewound stay as rows of an earlier attempt, and the last
attempt that reached a step is the one that counts.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from bessemer.durable import cannot_write
from bessemer.errors import DataError, RecipeError, RefusedError

Row = dict[str, Any]
MAIN_STAGES = ("pretrain", "finetune")
WARMUP_STEPS = 5  # of each attempt: compilation and first touches are not the pace of the run


class JsonLines:
    """An append-only file of JSON rows that survives a kill in the middle of a row.

    A killed writer leaves at most one row without its newline. The next writer cuts that piece off
    before it appends: the step it told of was not saved either, and will be run again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+b")  # noqa: SIM115 (held open for the run's lifetime)
            self._cut_torn_row()
        except OSError as error:
            raise cannot_write(path, error) from error

    def append(self, row: Row) -> None:
        """Add one row and hand it to the operating system (a killed process loses nothing written)."""
        try:
            self._file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def sync(self) -> None:
        """Wait until the disk has every row: those of saved steps must outlive a power failure too."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def close(self) -> None:
        self._file.close()

    def _cut_torn_row(self) -> None:
        end = self._file.seek(0, os.SEEK_END)
        self._file.seek(max(0, end - 65536))
        tail = self._file.read()
        if tail and not tail.endswith(b"\n"):
            self._file.truncate(end - len(tail) + tail.rfind(b"\n") + 1)


def read_rows(path: Path) -> list[Row]:
    """All whole rows; a torn last row is left out. A missing file has no rows. DataError: a damaged row."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    return [_row(path, number, line) for number, line in enumerate(lines[:-1], start=1) if line]


def read_object(path: Path) -> Row | None:
    """A JSON object from a run's folder, or None where there is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot read {path}",
            found=str(error),
            wanted="the JSON object that bessemer wrote there",
            fix="remove this file and run the command that makes it again",
        ) from error
    return content if isinstance(content, dict) else None


def counting_rows(rows: list[Row]) -> list[Row]:
    """One row a step: that of the last attempt which reached it, in order of steps."""
    newest: dict[int, Row] = {}
    for row in rows:
        newest[row["step"]] = row
    return [newest[step] for step in sorted(newest)]


def begins_at(events: list[Row]) -> int:
    """The step that a stage's first attempt went on from: of a fork its origin's, else 0."""
    first = next((event for event in events if event.get("kind") in ("start", "resume")), {})
    return int(first.get("step") or 0)


def time_in_steps_s(rows: list[Row], since: int = 0) -> float | None:
    """The time of counting rows. None: no row has one; steps of a row without one are left out.

    since: only rows after this step.
    Not `time_s`, which also counts steps that were lost to a kill and run again.
    """
    timed = [
        steps * row["step_time_s"]
        for row, steps in zip(rows, _num_steps(rows), strict=True)
        if row.get("step_time_s") is not None and row["step"] > since
    ]
    return sum(timed) if timed else None


def steady_median(rows: list[Row], key: str, since: int = 0) -> float | None:
    """The median of a figure over counting rows, without those that tell of an attempt's first steps.

    Where no others are left, over all of them. None: no row has the figure. since: only rows after this step.
    """
    begins: dict[int | None, int] = {}
    calm, later = [], [row for row in rows if row["step"] > since]
    for row, steps in zip(rows, _num_steps(rows), strict=True):
        before = row["step"] - steps
        if row["step"] > since and before >= begins.setdefault(row.get("attempt"), before) + WARMUP_STEPS:
            calm.append(row)
    values = [row[key] for row in calm or later if row.get(key) is not None]
    return median(values) if values else None


@contextmanager
def lock(run: Path) -> Iterator[None]:
    """Hold the run for this process. Raises RefusedError when another living process holds it, or its disk
    has no locks.

    The kernel drops a flock when its holder dies, also by SIGKILL, so no lock is ever stale.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = open(run / ".lock", "a+")  # noqa: SIM115 (closed below; the open file is the lock)
    except OSError as error:
        raise cannot_write(run, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RefusedError(
                f"run {run} is in use by another process",
                found=file.read().strip() or "a lock held by an unnamed process",
                wanted="one process writing to a run at a time",
                fix="wait for it, stop it, or give this run its own folder with --run DIR",
            ) from None
        except OSError as error:  # ENOLCK of NFS, ENOSYS of Lustre: without a lock two could write at once
            raise RefusedError(
                f"the disk of run {run} cannot lock a file",
                found=f"flock of {run / '.lock'}: {error.strerror or error}",
                wanted="a file system with locks: NFS with its lock service, Lustre mounted with flock",
                fix="have it mounted so, or give a folder on another disk with --run DIR",
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}")
        file.flush()
        yield


def stages(run: Path) -> list[Path]:
    """The training stages of a run that have begun, in the order in which they were last written."""
    found = [path.parent for path in run.glob("*/metrics.jsonl")]
    return sorted(found, key=lambda stage: (stage / "metrics.jsonl").stat().st_mtime_ns)


def find_stage(path: Path) -> Path:
    """RUN on the command line: a stage itself, or a run directory, meaning its newest stage."""
    if (path / "checkpoints").is_dir():
        return named(path)
    begun = [stage for stage in stages(path) if (stage / "checkpoints").is_dir()]
    # Stages beside them are parts of a comparison, not what the run is for.
    begun = [stage for stage in begun if stage.name in MAIN_STAGES] or begun
    if not begun:
        raise RecipeError(
            f"{path} is not a run",
            found="no stage with checkpoints" if path.is_dir() else "no such folder",
            wanted="a run directory such as runs/demo, or one of its stages such as runs/demo/pretrain",
            fix="list runs/ or begin one with `bessemer run RECIPE`",
        )
    return begun[-1]


def named(path: Path) -> Path:
    """The same folder by a path that ends in its name: of "." and ".." neither name nor parent is right."""
    if path.name not in ("", ".."):
        return path
    whole = path.resolve()
    return whole if path.is_absolute() else Path(os.path.relpath(whole.parent)) / whole.name


def _row(path: Path, number: int, line: bytes) -> Row:
    try:
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError("not a JSON object")
    except ValueError as error:
        raise DataError(
            f"line {number} of {path} is damaged",
            found=f"{line[:40]!r} ({error})",
            wanted="one JSON object, as bessemer wrote it",
            fix=f"put the file back from a copy, or lose this row alone: `sed -i {number}d {path}`",
        ) from error
    return row


def _num_steps(rows: list[Row]) -> list[int]:
    """How many steps each counting row tells of: those since the row before it."""
    if not rows:
        return []
    first = rows[0]
    own: int = first["step"]
    if first.get("time_s") and first.get("step_time_s"):
        # A fork begins at its origin's step, not at 0; its clock begins there too.
        own = min(own, max(1, round(first["time_s"] / first["step_time_s"])))
    return [own, *(row["step"] - before["step"] for before, row in pairwise(rows))]
