"""A process that works through tasks: python -m bessemer.data.factory.worker MEMORY_BYTES

    stdin     a task a line, JSON
    stdout    {"at": 17}       begins with the document at this place of its part; null: is behind them
              {"done": {…}}    what the task gave
              {"failed": {…}}  a mistake of the user, or ours

A document that kills its process (a decoder that crashes) or holds it up (one that never ends) must cost
that document, not the build: so extraction happens here, and whoever drives kills this process and hands
the task to a new one, with the place to leave out (driven.py). Memory has a limit, so that a document
that unfolds to a thousand times its size ends this process and not the machine.
The process ends with its driver, also when that is killed: the kernel tells it so.
"""

import ctypes
import gc
import json
import os
import resource
import signal
import sys
import traceback
from typing import Any, TextIO

import pyarrow as pa

from bessemer.data.factory.tasks import run_task
from bessemer.errors import UserError

_OBJECTS_BETWEEN_SEARCHES = 100_000
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    _end_with_driver()
    pa.set_cpu_count(1)
    # Trees of pages make and drop millions of objects, hardly any in circles: looking for those less often
    # saves 2 to 3 % of a build.
    gc.freeze()
    gc.set_threshold(_OBJECTS_BETWEEN_SEARCHES, 20, 50)
    memory_bytes = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    # What libraries print must not be taken for an answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        _answer(answers, _outcome(json.loads(line), answers))


def _outcome(task: dict[str, Any], answers: TextIO) -> dict[str, Any]:
    def announce(place: int | None) -> None:
        _answer(answers, {"at": place})

    try:
        return {"done": run_task(task, announce)}
    except UserError as error:
        texts = {"problem": error.args[0], "found": error.found, "wanted": error.wanted, "fix": error.fix}
        return {"failed": {"kind": type(error).__name__, **texts}}
    except MemoryError:
        return {"failed": {"kind": "MemoryError"}}
    except Exception:
        return {"failed": {"kind": "ours", "traceback": traceback.format_exc()}}


def _answer(answers: TextIO, row: dict[str, Any]) -> None:
    answers.write(json.dumps(row) + "\n")
    answers.flush()


def _end_with_driver() -> None:
    """A pipe that closes would do, but for a decoder that never comes back to look at it."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)


if __name__ == "__main__":
    main()
