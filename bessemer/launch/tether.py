"""Ties processes to the command that started them. Run by path as a script: standard library only.

    tether.py worker PARENT COMMAND ...   becomes COMMAND, which the kernel kills when PARENT dies
    tether.py keeper TAG FOLDER           lives until its stdin closes, then kills what was left running

Two ties, as each misses something. The kernel's (prctl, kept over exec) acts at once, but not on the
worker's own children, such as compilers. The keeper finds these by the environment they inherited: it
kills each process that carries TAG, and removes FOLDER. It holds nothing of the command's but a pipe,
which closes however the command ends, and it is started with signals blocked.

Not `preexec_fn`: that runs Python after a fork, where a thread of the parent may hold any lock. Cost of
the second interpreter start (isolated, without site): about 15 ms, for all workers at once.
Elsewhere than on Linux there is only the keeper, and it kills only the workers, whose process ids it is
told on its stdin: `+123` has started, `-123` has been reaped and may be another's by now.
"""

import ctypes
import os
import signal
import sys
import time
from contextlib import suppress

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SWEEP_S = 10.0  # a process that the kernel cannot end by then, in a stuck disk read say, is left


def tie_to(parent: int) -> None:
    """From now on this process dies when the thread that started it does; at once if `parent` is gone.

    parent: process id. The kernel speaks of the starting thread: it must live as long as the worker.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before the call above, which then waits for another's death
        os._exit(1)


def keep(tag: str, folder: str) -> None:
    """Wait for the end of stdin; then kill the listed processes and all that carry `tag` (NAME=value)."""
    workers: set[int] = set()
    for line in sys.stdin:
        (workers.add if line[0] == "+" else workers.discard)(int(line[1:]))
    for worker in workers:
        _kill(worker)
    end_s = time.monotonic() + _SWEEP_S
    # Again and again until none is found: one may have been starting another while we looked.
    while (found := _carriers(tag)) and time.monotonic() < end_s:
        for process in found:
            _kill(process)
        time.sleep(0.01)
    with suppress(FileNotFoundError):  # the command has removed it
        for name in os.listdir(folder):
            os.unlink(os.path.join(folder, name))
        os.rmdir(folder)


def _carriers(tag: str) -> list[int]:
    """Processes whose environment, as it was when they started, has `tag`; none where there is no /proc."""
    wanted = b"\0" + os.fsencode(tag) + b"\0"
    found = []
    for name in os.listdir("/proc") if os.path.isdir("/proc") else []:
        # It may have ended since, or be another user's.
        with suppress(OSError):
            if name.isdigit() and wanted in b"\0" + _bytes_of(f"/proc/{name}/environ"):
                found.append(int(name))
    return found


def _bytes_of(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _kill(process: int) -> None:
    with suppress(ProcessLookupError):  # it has ended by itself
        os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        tie_to(int(sys.argv[2]))
        os.execvp(sys.argv[3], sys.argv[3:])  # noqa: S606 (no shell)
    else:
        keep(*sys.argv[2:])
