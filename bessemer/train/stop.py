"""Asking a run to stop: the first SIGINT or SIGTERM ends it at the next step border, with a checkpoint.

A second signal does not wait: the process ends as if it had no handler, and the next attempt goes on
from the last checkpoint.
"""

import signal
from types import FrameType
from typing import Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """While entered, `asked` turns true on the first signal."""

    def __init__(self) -> None:
        self.asked = False
        self.reason = ""
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
        self.ask(signal.Signals(number).name)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}
