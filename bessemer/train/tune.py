"""Levers during training: the power limit with least energy per token, found in measured windows of steps.

When an attempt's first steps are done, a window at full power tells joules per token and step time; then
limits are lowered, a window each, down to the knee (energy/levers/knee.py), which is kept. Every rank moves
and reads its own board, and all move at the same step: windows have a number of steps, agreed on from the
slowest rank's, and only at their ends do ranks exchange anything. Numbers of the training do not change.

Not counted: steps after a validation or a save, the first after a limit was set, and those that take more
than _FAR times the window's median (a pause, answers being sampled). Cost: while it searches one reading of
the counter a step, and steps at limits that turn out too slow: `WINDOW_S` each, about five windows in all.
"""

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median_low
from typing import Any, Protocol

from bessemer.energy.levers.board import Board
from bessemer.energy.levers.guard import Held
from bessemer.energy.levers.knee import Window, is_past, knee, levels
from bessemer.energy.reading import Reader
from bessemer.errors import RefusedError
from bessemer.launch.world import WORKER
from bessemer.rundir import WARMUP_STEPS, Row

WINDOW_S = 10.0  # energy counters move some ten times a second
_WINDOW_STEPS = 5
_LEVELS = 6
_FAR = 4.0


class Exchange(Protocol):
    """What is needed of parallel/engine.py."""

    def each_rank(self, values: list[float]) -> list[list[float]]: ...


@dataclass(frozen=True)
class Rules:
    slower_at_most: float
    batch_tokens: int
    layout: str
    window_s: float = WINDOW_S
    window_steps: int = _WINDOW_STEPS
    warmup_steps: int = WARMUP_STEPS


@dataclass(frozen=True)
class Tell:
    """Where a rank says things: only the first one's are heard."""

    line: Callable[[str], None]
    event: Callable[..., None]  # kind, step, details
    limited: Callable[[float | None, str], None]  # train/record.py: Recorder.limited
    step: int = 0  # from which the attempt goes on


class Tune:
    """The levers that one rank holds, from an attempt's beginning to its end."""

    def __init__(self, held: Sequence[Held], search: "Search | None", tell: Tell) -> None:
        self._held, self._search, self._tell = held, search, tell

    def after_step(self, ranks: Exchange, step: int) -> None:
        """By every rank after each step."""
        if self._search is not None and not self._search.after_step(ranks, step):
            self._search = None

    def close(self) -> None:
        """All levers are back where they were when this returns."""
        if self._search is not None:
            self._tell.line("power limit: not found, as the run ended before; the next attempt begins anew")
        self._search = None
        for held in self._held:
            why_not = held.close()
            if why_not is not None:
                self._tell.line(f"not put back, which the next start tries again: {why_not}")


class Search:
    """Of one rank. `after_step` returns whether it goes on; then it does on all ranks."""

    def __init__(
        self,
        board: Board,
        meter: Reader,
        rules: Rules,
        is_due: Callable[[int], bool],
        tell: Tell,
    ) -> None:
        """is_due: whether after this step something is done that is not training."""
        self._board, self._rules, self._is_due, self._tell = board, rules, is_due, tell
        self._meter: Reader | None = meter  # None: the board has failed
        self._full_w = self._limit_w = board.limit_w
        # Within what every rank's board takes, once they have met: all must try the same.
        self._lowest_w, self._highest_w = board.lowest_w, self._full_w
        self._windows: list[Window] = []
        self._levels: list[float] = []
        self._length = 0  # steps of a window; 0: the first steps are not over
        self._left = rules.warmup_steps
        self._steps: list[tuple[float, float]] = []  # of the window: seconds, joules
        self._skip = True
        self._last_s = time.monotonic()

    def after_step(self, ranks: Exchange, step: int) -> bool:
        now_s = time.monotonic()
        seconds, self._last_s = now_s - self._last_s, now_s
        joules = self._joules(seconds)
        if not self._skip:
            self._steps.append((seconds, joules))
        self._skip = self._is_due(step)
        self._left -= 1
        if self._left > 0:
            return True
        return self._end_window(ranks, step) if self._length else self._begin(ranks)

    def _joules(self, seconds: float) -> float:
        """Of this board; NaN where they cannot be read, which all ranks hear of at the window's end."""
        drawn = None if self._meter is None else self._meter.advance(seconds)
        return math.nan if drawn is None else sum(part.joules.value for part in drawn)

    def _begin(self, ranks: Exchange) -> bool:
        told = ranks.each_rank([self._lowest_w, self._highest_w, self._typical_s()])
        self._lowest_w = max(row[0] for row in told)
        self._highest_w = min(row[1] for row in told)
        slowest_s = max(row[2] for row in told)
        self._length = max(self._rules.window_steps, math.ceil(self._rules.window_s / slowest_s))
        self._next_window()
        return True

    def _next_window(self) -> None:
        self._left, self._steps = self._length, []

    def _typical_s(self) -> float:
        return median_low(seconds for seconds, _ in self._steps) if self._steps else math.inf

    def _counted(self) -> list[float]:
        """Of the window: how many steps, their seconds and joules."""
        most_s = _FAR * self._typical_s()
        counted = [step for step in self._steps if step[0] <= most_s]
        return [len(counted), sum(seconds for seconds, _ in counted), sum(joules for _, joules in counted)]

    def _end_window(self, ranks: Exchange, step: int) -> bool:
        told = ranks.each_rank(self._counted())
        if not all(steps for steps, _, _ in told):
            self._next_window()
            return True
        window = _joined(self._limit_w, told, self._rules.batch_tokens)
        if not math.isfinite(window.joules_per_token):
            self._set(self._full_w, "found")
            self._tell.line("power limit: left as it is, as a board's energy or limit failed meanwhile")
            return False
        self._windows.append(window)
        if len(self._windows) == 1:
            self._levels = levels(min(self._highest_w, window.power_w), self._lowest_w, _LEVELS)
        if not self._levels or is_past(self._windows, self._rules.slower_at_most):
            self._choose(step)
            return False
        self._set(self._levels.pop(0), "searching")
        self._next_window()
        return True

    def _set(self, watts: float, how: str) -> None:
        try:
            if watts != self._limit_w:
                self._board.limit(watts)
        except RefusedError:  # the board is gone, or the rights are: told with the window's joules
            self._meter = None
        self._limit_w, self._skip = watts, True
        self._tell.limited(None if watts == self._full_w else watts, how)

    def _choose(self, step: int) -> None:
        full, chosen = self._windows[0], knee(self._windows, self._rules.slower_at_most)
        self._set(chosen.limit_w, "found")
        self._tell.event(
            "power_limit",
            step,
            watts=chosen.limit_w,
            full_w=self._full_w,
            found="measured",
            device=self._board.device,
            layout=self._rules.layout,
            slower_at_most=self._rules.slower_at_most,
            windows=[asdict(window) for window in self._windows],
        )
        saved = 1.0 - chosen.joules_per_token / full.joules_per_token
        slower = chosen.step_time_s / full.step_time_s - 1.0
        tried = ", ".join(f"{window.limit_w:.0f}" for window in self._windows)
        found = f"{saved:.0%} less energy a token, {slower:+.1%} time a step"
        if chosen is full:
            found = f"no lower one saves energy within {self._rules.slower_at_most:.0%} more time"
        if len(self._windows) == 1:
            found = f"the lowest, {self._lowest_w:.0f} W, is not below what the boards draw"
        self._tell.line(
            f"power limit: {chosen.limit_w:.0f} of {self._full_w:.0f} W: {found} (tried {tried} W)"
        )


def _joined(limit_w: float, told: list[list[float]], batch_tokens: int) -> Window:
    """Of (steps, seconds, joules) by rank. A step takes as long as on the slowest rank."""
    step_s = max(seconds / steps for steps, seconds, _ in told)
    joules = sum(joules / steps for steps, _, joules in told)
    return Window(limit_w, step_s, joules / batch_tokens, joules / step_s / len(told))


def earlier_choice(events: Iterable[Row], device: str, rules: Mapping[str, Any]) -> float | None:
    """The limit that an earlier attempt found for this device, layout and allowance; None: none did."""
    for row in reversed(list(events)):
        if row["kind"] == "power_limit" and row["found"] == "measured":
            same = row["device"] == device and all(row[key] == value for key, value in rules.items())
            return float(row["watts"]) if same else None
    return None


def guard_environment() -> dict[str, str]:
    """Without the mark by which launch/tether.py finds, and kills, what a worker has started."""
    return {name: value for name, value in os.environ.items() if name != WORKER}
