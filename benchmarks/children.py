"""Run one program in a process of its own, and tell how much memory it took at most.

Peak memory is the child's ru_maxrss. A process begins with the peak of the one that started it, so the
process that calls this must stay small: no torch here.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bessemer.launch.environment import MARKER, variables

TUNABLES = "GLIBC_TUNABLES"
_TAIL_LINES = 20
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB here


class ChildFailure(Exception):
    """A child that ended badly or did not end; the text has the end of its output."""

    def __init__(self, text: str, exit_code: int | None = None) -> None:
        super().__init__(text)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Child:
    wall_s: float
    peak_rss_bytes: int


def run_child(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    log: Path,
    limit_s: float = 1800.0,
) -> Child:
    """Run to the end, in `folder`, with all output in `log`. Raises ChildFailure."""
    begin_s = time.monotonic()
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=dict(environment), stdout=output, stderr=subprocess.STDOUT
        )
        try:
            status, peak = _wait(process, limit_s)
        except BaseException:  # Ctrl-C too: nothing that we started goes on without us
            process.kill()
            process.wait()
            raise
    if status != 0:
        raise ChildFailure(f"`{shlex.join(command)}` {_ending(status)}:\n{_tail(log)}", status)
    return Child(time.monotonic() - begin_s, peak)


def plain_environment() -> dict[str, str]:
    """As it comes: ours, without anything that decides how memory is allocated."""
    return {name: value for name, value in os.environ.items() if name not in (TUNABLES, MARKER)}


def allocator_environment() -> dict[str, str]:
    """With the allocator as Bessemer arranges it for itself."""
    settings = [row.value for row in variables() if row.name == TUNABLES]
    if not settings:
        raise ChildFailure("Bessemer arranges no allocator on this machine: its C library is not glibc")
    return {**plain_environment(), TUNABLES: settings[0]}


def _wait(process: "subprocess.Popen[bytes]", limit_s: float) -> tuple[int, int]:
    """Exit status and peak memory."""
    begin_s = time.monotonic()
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)  # so that Popen does not wait for it
            return process.returncode, usage.ru_maxrss * _MAXRSS_UNIT
        if time.monotonic() - begin_s > limit_s:
            raise ChildFailure(f"did not end within {limit_s:.0f} s")
        time.sleep(0.05)


def _ending(status: int) -> str:
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"failed with exit code {status}"


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(f"  | {line}" for line in lines[-_TAIL_LINES:])
