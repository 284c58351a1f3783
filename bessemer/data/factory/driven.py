"""One worker process and its task: watched, killed when a document holds it up, started again.

What goes wrong with one document costs that document: the task is run again with its place left out, and
the row is counted as `timeout`, `crash` or `memory`. A worker that dies twice with no document at hand has
met a mistake of ours or too small a machine, and the build ends with what is known.
"""

import json
import os
import select
import subprocess
import time
from dataclasses import dataclass, field
from typing import Any

from bessemer import errors
from bessemer.errors import WorkerError
from bessemer.processes import worker_command

_MOST_LEFT_OUT = 1000  # documents of one part: more is a source of the wrong kind, not bad luck


@dataclass
class _Process:
    popen: "subprocess.Popen[bytes]"
    unread: bytes = b""


@dataclass
class Driven:
    """Runs one task after another in a process of its own. Close it."""

    memory_bytes: int
    timeout_s: float  # for a document
    _process: _Process | None = None
    _task: dict[str, Any] = field(default_factory=dict)
    _at: int | None = None  # the document that the worker has begun with
    _since_s: float = 0.0
    _deaths: int = 0

    def start(self, task: dict[str, Any]) -> None:
        """Begin; `poll` says when it is done."""
        self._task, self._deaths = {**task, "left_out": {}}, 0
        self._send()

    def fileno(self) -> int:
        """For select: readable when `poll` has something to do."""
        assert self._process is not None and self._process.popen.stdout is not None, "not started"
        return self._process.popen.stdout.fileno()

    def poll(self) -> dict[str, Any] | None:
        """What the task gave, once it is done. Raises the worker's error. Never waits."""
        assert self._process is not None and self._process.popen.stdout is not None, "not started"
        while select.select([self.fileno()], [], [], 0)[0]:
            data = self._process.popen.stdout.read1(1 << 20)  # type: ignore[attr-defined]
            if not data:
                self._died("crash")
                return None
            done = self._read(data)
            if done is not None:
                return done
        if time.monotonic() - self._since_s > self.timeout_s and self._at is not None:
            self._died("timeout")
        return None

    def run(self, task: dict[str, Any]) -> dict[str, Any]:
        """Start and wait."""
        self.start(task)
        while True:
            select.select([self.fileno()], [], [], 0.5)
            done = self.poll()
            if done is not None:
                return done

    def close(self) -> None:
        if self._process is not None:
            self._process.popen.kill()
            self._process.popen.communicate()
            self._process = None

    def _send(self) -> None:
        if self._process is None:
            command = [*worker_command("bessemer.data.factory.worker"), str(self.memory_bytes)]
            # A worker a core: a library that starts threads of its own would only be in the others' way.
            alone = dict.fromkeys(("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
            # Arrow's own pool keeps what it once had: 1.37 GB for a build that takes 1.30 without.
            alone["ARROW_DEFAULT_MEMORY_POOL"] = "system"
            popen = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **alone}
            )
            self._process = _Process(popen)
        assert self._process.popen.stdin is not None
        self._at, self._since_s = None, time.monotonic()
        try:
            self._process.popen.stdin.write(json.dumps(self._task).encode() + b"\n")
            self._process.popen.stdin.flush()
        except BrokenPipeError:
            pass  # it died; poll will see that

    def _read(self, data: bytes) -> dict[str, Any] | None:
        assert self._process is not None
        *lines, self._process.unread = (self._process.unread + data).split(b"\n")
        for line in lines:
            row = json.loads(line)
            if "at" in row:
                self._at, self._since_s = row["at"], time.monotonic()
            elif "done" in row:
                self._at = None
                done: dict[str, Any] = row["done"]
                return done
            elif row["failed"]["kind"] == "MemoryError":
                self._died("memory")
                return None
            else:
                raise _error(row["failed"])
        return None

    def _died(self, reason: str) -> None:
        """Start anew, without the document that it died of."""
        self.close()
        left_out: dict[str, str] = self._task["left_out"]
        if self._at is None:
            self._deaths += 1
        else:
            left_out[str(self._at)] = reason
        if self._deaths > 1 or len(left_out) > _MOST_LEFT_OUT:
            raise WorkerError(
                f"a worker of the data build ended {self._deaths + len(left_out)} times at the same task",
                found=f"{reason} in {self._task['name']}, {len(left_out)} documents left out so far",
                wanted="a worker that gets to the end",
                fix="run the same command again; with less memory in use by others, or fewer --workers",
            )
        self._send()


def _error(failed: dict[str, Any]) -> Exception:
    if failed["kind"] == "ours":
        return AssertionError(f"in a worker of the data build:\n{failed['traceback']}")
    kind: type[errors.UserError] = getattr(errors, failed["kind"])
    return kind(failed["problem"], found=failed["found"], wanted=failed["wanted"], fix=failed["fix"])
