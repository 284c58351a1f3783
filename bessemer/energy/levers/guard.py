"""Levers are put back however a run ends: each one that is moved has a guard, a process that waits for that.

    hold(lever)                                   locks it, writes down what it is at, starts its guard
    python -m bessemer.energy.levers.guard FILE   the guard: waits for the end of its stdin, puts back, ends

The guard is there, and has said so, before the first change. Its stdin is a pipe whose other end only the
trainer has, so the kernel closes it however the trainer ends, by SIGKILL too. It has a session of its own:
what is sent to the trainer's process group does not reach it, and it ignores the signals that ask. It shares
the record's lock, so that nobody puts back under a living run. Where both are killed: restore.py.
Cost: 13 MB for each lever while a run goes on, 7 of them its own; it stands after 0.11 s, 0.03 s of a core,
and has put a governor back 0.04 s after its trainer's end (2 busy cores, 2026-11-28).
"""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from bessemer.energy.levers.lever import Lever, Values
from bessemer.energy.levers.record import Holding, Record, read_record, take
from bessemer.energy.levers.restore import put_back
from bessemer.errors import RefusedError, UserError
from bessemer.processes import worker_command

_MODULE = "bessemer.energy.levers.guard"
_READY = b"ready\n"
_START_S, _END_S = 30.0, 10.0


class Held:
    """A lever that may be moved now."""

    def __init__(self, holding: Holding, record: Record, guard: "subprocess.Popen[bytes]") -> None:
        self._holding, self._record, self._guard = holding, record, guard

    def close(self) -> str | None:
        """Put it back; it is when this returns. Returns why not."""
        try:
            if _end(self._guard) != 0:  # somebody killed it, or it could not
                put_back(self._record)
                self._holding.path.unlink(missing_ok=True)
        except UserError as error:
            return error.found
        finally:
            self._holding.close()
        return None


def hold(lever: Lever, environment: Mapping[str, str] | None = None) -> Held:
    """RefusedError: as `check`. environment: of the guard; None: ours."""
    holding, before = _locked(lever)
    try:
        record = {"kind": lever.kind, "name": lever.name, "before": before, "process": os.getpid()}
        holding.write(record)
        return Held(holding, record, _started(holding, environment))
    except BaseException:  # nothing is moved yet
        holding.forget()
        raise


def check(lever: Lever) -> None:
    """RefusedError: another run has it, or left it moved for good, or this process may not move it."""
    _locked(lever)[0].forget()


def _locked(lever: Lever) -> tuple[Holding, Values]:
    """Its file, and what it is at. Rights are asked for by setting just that, under the lock: elsewhere it
    might set again what another run has just put back."""
    holding = take(lever.kind, lever.name)
    left = holding.record
    try:
        if left is not None:
            put_back(left)
        before = lever.read()
        lever.put(before)
    except BaseException:
        holding.forget() if left is None else holding.close()
        raise
    return holding, before


def _started(holding: Holding, environment: Mapping[str, str] | None) -> "subprocess.Popen[bytes]":
    try:
        guard = subprocess.Popen(
            [*worker_command(_MODULE), str(holding.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=None if environment is None else dict(environment),
            pass_fds=[holding.file.fileno()],
            start_new_session=True,
        )
    except OSError as error:
        raise _no_guard(error.strerror or str(error)) from error
    assert guard.stdout is not None
    with guard.stdout as answer:
        poll = select.poll()
        poll.register(answer, select.POLLIN)
        stands = bool(poll.poll(_START_S * 1000)) and answer.readline() == _READY
    if not stands:
        guard.kill()
        code = _end(guard)
        raise _no_guard(f"{_MODULE} ended with {code}")
    return guard


def _end(guard: "subprocess.Popen[bytes]") -> int:
    assert guard.stdin is not None
    guard.stdin.close()
    try:
        return guard.wait(_END_S)
    except subprocess.TimeoutExpired:  # a driver that does not answer
        guard.kill()
        return guard.wait()


def _no_guard(found: str) -> RefusedError:
    return RefusedError(
        "no process could be started that puts settings of this machine back, so none is changed",
        found=found,
        wanted="one more process for each lever",
        fix="free memory, or raise the limit on processes (`ulimit -u`)",
    )


def main(words: list[str]) -> int:
    """Be a guard. The lock came with our open files, and goes with us."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    path = Path(words[0])
    record = read_record(path)
    assert record is not None, path
    os.write(sys.stdout.fileno(), _READY)
    while os.read(sys.stdin.fileno(), 4096):
        pass
    try:
        put_back(record)
    except UserError:
        return 1  # the record stays, for the next start
    path.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
