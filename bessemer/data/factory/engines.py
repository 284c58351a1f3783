"""Where tasks run: on the cores of this machine, or on a Ray cluster. The files they write are the same.

A task is JSON, writes files under the store and is named by what it depends on; so an engine has nothing
to carry but lines of text, and either engine goes on where the other was killed.
"""

import select
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, final

from bessemer.data.factory.driven import Driven
from bessemer.log import Console
from bessemer.units import format_seconds

Task = dict[str, Any]  # name, kind, size_bytes, and what its function in tasks.py reads
Outcome = dict[str, Any]
# A worker tells of every document that it begins with: read at once, that took a second for 9,000 files.
_BREATH_S = 0.005


class Progress:
    """The live line: what is done, at which rate, and for how long still."""

    def __init__(self, console: Console, label: str, tasks: Sequence[Task]) -> None:
        self._console, self._label, self._num_tasks = console, label, len(tasks)
        self._bytes = sum(task["size_bytes"] for task in tasks)
        self._done = self._done_bytes = 0
        self._begin_s = time.monotonic()

    def add(self, task: Task) -> None:
        self._done += 1
        self._done_bytes += task["size_bytes"]
        last = self._done == self._num_tasks
        spent_s = time.monotonic() - self._begin_s
        share = self._done_bytes / self._bytes if self._bytes else self._done / self._num_tasks
        rate = f", {self._done_bytes / 1e6 / max(spent_s, 1e-9):,.1f} MB/s" if self._bytes else ""
        left = "" if last or share == 0 else f", {format_seconds(spent_s / share - spent_s)} left"
        text = f"data: {self._label}, {self._done:,} of {self._num_tasks:,} parts{rate}{left}"
        self._console.progress(text, last=last)


class Engine(ABC):
    @abstractmethod
    def run(self, tasks: Sequence[Task], progress: Progress) -> list[Outcome]:
        """What each task gave, in their order."""

    @abstractmethod
    def close(self) -> None: ...


@final
class Local(Engine):
    """Processes on this machine, kept from one stage to the next."""

    def __init__(self, workers: int, memory_bytes: int, timeout_s: float) -> None:
        self._workers = [Driven(memory_bytes, timeout_s) for _ in range(workers)]

    def run(self, tasks: Sequence[Task], progress: Progress) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        # The largest first: the last ones to end are then small, and no core waits long.
        waiting = sorted(range(len(tasks)), key=lambda number: tasks[number]["size_bytes"])
        busy: dict[int, Driven] = {}
        idle = list(self._workers)
        try:
            while waiting or busy:
                while waiting and idle:
                    number = waiting.pop()
                    busy[number] = idle.pop()
                    busy[number].start(tasks[number])
                select.select(list(busy.values()), [], [], 0.5)
                time.sleep(_BREATH_S)
                for number, worker in list(busy.items()):
                    outcome = worker.poll()
                    if outcome is not None:
                        outcomes[number] = outcome
                        idle.append(busy.pop(number))
                        progress.add(tasks[number])
        except BaseException:
            self.close()
            raise
        return [outcomes[number] for number in range(len(tasks))]

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
