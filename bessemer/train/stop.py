"""Asking a run to stop: the first SIGINT or SIGTERM ends it at the next step border, with a checkpoint.

A second signal does not wait: the process ends as if it had no handler, and the next attempt goes on
from the last checkpoint. One that comes within half a second of the first is the same wish: `timeout` and
others signal a process and then its whole group.
"""

import signal
import time
from types import FrameType
from typing import Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAME_S = 0.5


class Stop:
    """While entered, `asked` turns true on the first signal."""

    def __init__(self) -> None:
        self.asked = False
        self.reason = ""
        self._first_s: float | None = None
        self._before: dict[signal.Signals, signal.Handlers | object] = {}

    def ask(self, reason: str) -> None:
        self.asked, self.reason = True, reason

    def __enter__(self) -> Self:
        try:
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._on_signal)
        except ValueError:  # not the main thread: whoever runs us there asks by `ask`
            self._before = {}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now_s = time.monotonic()
        if self._first_s is None:
            self._first_s = now_s
            self.ask(signal.Signals(number).name)
        elif now_s - self._first_s > _SAME_S:
            self._restore()
            signal.raise_signal(signal.Signals(number))

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}
