"""Joules from a counter that grows, and from watts that are looked at now and then.

A counter that stood still is not read: everything that is switched on draws something, and some drivers
show a counter that never moves. Neither is one that went backwards (it was reset: what was used since the
last look is not known), nor watts that are 0, negative, or no number.
Between two looks at watts the mean of both counts (trapezoid).
"""

import math
import time
from collections.abc import Callable

from bessemer.energy.power import Band
from bessemer.energy.reading import Drawn

Look = Callable[[], float | None]  # None: not readable now
STILL_S = 1.0  # every counter here moves several times a second


class Counter:
    """A total that never wraps, in joules. Its error is that of its maker."""

    basis = "measured"

    def __init__(self, name: str, component: str, look: Look, error: float) -> None:
        self.name, self.component = name, component
        self._look, self._error = look, error
        self._last, self._moved_s = look(), time.monotonic()

    @property
    def works(self) -> bool:
        return self._last is not None

    def advance(self, seconds: float) -> list[Drawn] | None:
        before, self._last = self._last, self._look()
        if before is None or self._last is None or self._last < before:
            return None
        joules, now_s = self._last - before, time.monotonic()
        if joules > 0.0:
            self._moved_s = now_s
        elif now_s - self._moved_s > STILL_S:
            return None
        return [Drawn(self.component, Band.around(joules, self._error), self.basis)]

    def keep_up(self) -> None:
        pass

    def close(self) -> None:
        pass


class Sampled:
    """Watts, looked at whenever asked."""

    def __init__(
        self,
        name: str,
        component: str,
        look: Look,
        error: float,
        basis: str = "measured",
        end: Callable[[], None] = lambda: None,
    ) -> None:
        """end: what `close` does."""
        self.name, self.component, self.basis = name, component, basis
        self._look, self._error, self._end = look, error, end
        self._watts, self._at_s = self._sound(), time.monotonic()
        self._since_s, self._joules, self._whole = self._at_s, 0.0, True

    @property
    def works(self) -> bool:
        return self._watts is not None

    def keep_up(self) -> None:
        before, self._watts = self._watts, self._sound()
        begin_s, self._at_s = self._at_s, time.monotonic()
        if before is None or self._watts is None:
            self._whole = False
            return
        self._joules += 0.5 * (before + self._watts) * (self._at_s - begin_s)

    def advance(self, seconds: float) -> list[Drawn] | None:
        self.keep_up()
        joules, whole, since_s = self._joules, self._whole, self._since_s
        self._joules, self._whole, self._since_s = 0.0, True, self._at_s
        if self._watts is not None and self._at_s - since_s > 1.5 * seconds + STILL_S:
            # It stood by for a better reader until that failed: its last look tells nothing of the interval.
            joules, whole = self._watts * seconds, True
        return [Drawn(self.component, Band.around(joules, self._error), self.basis)] if whole else None

    def close(self) -> None:
        self._end()

    def _sound(self) -> float | None:
        watts = self._look()
        return watts if watts is not None and math.isfinite(watts) and watts > 0.0 else None
