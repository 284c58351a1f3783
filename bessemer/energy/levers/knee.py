"""Which power limit needs least energy per token without costing more time than allowed.

Below what a board draws anyway a limit takes clocks away. At first energy per token falls, as power grows
faster than speed; at some point what is drawn without any work, for longer, outweighs that: the knee. So
limits are tried downwards, and no further than the first that is worse than the best so far, or too slow.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """Steps under one limit, of all ranks together."""

    limit_w: float
    step_time_s: float
    joules_per_token: float
    power_w: float  # of a board, on average


def levels(highest_w: float, lowest_w: float, count: int) -> list[float]:
    """Limits to try, from the highest down: evenly spaced, whole watts, `highest_w` itself left out."""
    if highest_w <= lowest_w:
        return []
    stride_w = (highest_w - lowest_w) / count
    return [max(lowest_w, round(highest_w - number * stride_w)) for number in range(1, count + 1)]


def knee(windows: Sequence[Window], slower_at_most: float) -> Window:
    """The first window is without a lower limit: it is always allowed."""
    allowed = [window for window in windows if _slowdown(windows, window) <= slower_at_most]
    return min(allowed, key=lambda window: window.joules_per_token)


def is_past(windows: Sequence[Window], slower_at_most: float) -> bool:
    """Whether limits below the last one are not worth trying."""
    last = windows[-1]
    best = min(window.joules_per_token for window in windows)
    return _slowdown(windows, last) > slower_at_most or last.joules_per_token > best


def _slowdown(windows: Sequence[Window], window: Window) -> float:
    return window.step_time_s / windows[0].step_time_s - 1.0
