"""A number that a program prints, without waiting for it: watts, or the carbon of a kilowatt-hour.

Started at a look, its answer is taken at a later one; of watts one is started every ten seconds: a board's
controller takes up to half a second to answer, and a training step must not wait for that. Only the first
time, before training, it is waited for. Words, never a shell.
Cost: 0.2 ms a start, 4 ms at most, from a process of 1 GB with torch loaded (2 cores, 2026-11-28).
"""

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

EVERY_S, LONGEST_S = 10.0, 5.0


class Program:
    def __init__(
        self,
        words: Sequence[str],
        number_of: Callable[[str], float | None],
        *,
        every_s: float | None = None,
        longest_s: float | None = None,
    ) -> None:
        """number_of: from what it printed. every_s: between two starts. longest_s: until it is given up."""
        self._words, self._number_of = list(words), number_of
        self._every_s = EVERY_S if every_s is None else every_s
        self.longest_s = LONGEST_S if longest_s is None else longest_s
        self._process: subprocess.Popen[bytes] | None = None
        self.said = ""  # the beginning of its last answer, or why there is none
        self._newest = self._first()
        self._started_s = time.monotonic()

    def number(self) -> float | None:
        """Of its last answer; None: it failed, printed no such number, or is too slow."""
        now_s = time.monotonic()
        process, age_s = self._process, now_s - self._started_s
        if process is not None and process.poll() is not None:
            self._newest, self._process = self._answer(process), None
        elif process is not None and age_s > self.longest_s:
            self.close()
            self._newest = None
        if self._process is None and age_s >= self._every_s:
            self._process, self._started_s = self._start(), now_s
            self._newest = self._newest if self._process is not None else None
        return self._newest

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._answer(self._process)
            self._process = None

    def _first(self) -> float | None:
        process = self._start()
        if process is None:
            return None
        with suppress(subprocess.TimeoutExpired):
            process.wait(self.longest_s)
        late = process.poll() is None
        if late:
            process.kill()
        number = self._answer(process)
        if late:
            self.said = f"no answer within {self.longest_s:.0f} s"
        return number

    def _start(self) -> "subprocess.Popen[bytes] | None":
        try:
            return subprocess.Popen(
                self._words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        except OSError as error:
            self.said = error.strerror or str(error)
            return None

    def _answer(self, process: "subprocess.Popen[bytes]") -> float | None:
        assert process.stdout is not None
        with process.stdout:
            # What is there, no more: a child of its own may hold the pipe open after its end.
            os.set_blocking(process.stdout.fileno(), False)
            text = (process.stdout.read() or b"").decode(errors="replace")
        process.wait()
        self.said = text.strip()[:80] or f"nothing, exit {process.returncode}"
        return self._number_of(text) if process.returncode == 0 else None
