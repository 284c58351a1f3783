"""What a process can tell of why its steps take long: totals that grow, read when a row is written.

    data_s       waiting for batches (timed by the loop)
    waiting_s    its threads ready to run, without a core: others had it (Linux: /proc/self/task/*/schedstat)
    faults       memory pages that had to be read from disk: swapped out, or dropped for want of memory
    recompiled   graphs that torch.compile has made
    threads      of torch, now
Where the system does not tell, a total stays 0 and is no evidence. Cost: some 10 µs a thread.
"""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import torch

_TASKS = Path("/proc/self/task")


@dataclass(frozen=True)
class Totals:
    """Of one process since it began."""

    data_s: float = 0.0
    waiting_s: float = 0.0
    faults: float = 0.0
    recompiled: float = 0.0
    threads: float = 1.0

    def since(self, before: "Totals") -> "Totals":
        """What was added; threads as they are now."""
        return Totals(
            self.data_s - before.data_s,
            self.waiting_s - before.waiting_s,
            self.faults - before.faults,
            self.recompiled - before.recompiled,
            self.threads,
        )

    @staticmethod
    def of(values: list[float]) -> "Totals":
        return Totals(*values[: len(fields(Totals))])


class Evidence:
    """Of this process."""

    def __init__(self) -> None:
        self._data_s = 0.0

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Around what waits for data."""
        begin_s = time.monotonic()
        yield
        self._data_s += time.monotonic() - begin_s

    def totals(self) -> list[float]:
        """As `Totals` has them: numbers, which ranks can exchange."""
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
        found = Totals(self._data_s, _waiting_s(), float(faults), _graphs(), float(torch.get_num_threads()))
        return list(astuple(found))


def _waiting_s() -> float:
    """Of the thread that waited longest: each second of a step is one thread's second."""
    longest = 0.0
    for task in _TASKS.glob("*/schedstat") if _TASKS.is_dir() else ():
        try:
            longest = max(longest, int(task.read_text().split()[1]) / 1e9)
        except (OSError, ValueError, IndexError):  # a thread that has just ended
            continue
    return longest


def _graphs() -> float:
    """Without importing what nobody else has."""
    utils = sys.modules.get("torch._dynamo.utils")
    return float(utils.counters["stats"]["unique_graphs"]) if utils is not None else 0.0
