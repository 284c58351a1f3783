"""What nothing measures: bands by kind, and by what a device does times its watts."""

import os
import time
from collections.abc import Callable

from bessemer.energy.power import Band, assumed_accelerator_board, assumed_cpu_power
from bessemer.energy.reading import ACCELERATOR, CPU, Drawn
from bessemer.hardware import find


class AssumedCpu:
    """Band per core, times the cores that this process, its children and its fellow ranks kept busy."""

    name = "CPU by watts per core"
    component = CPU
    basis = "assumed"

    def __init__(self, cores: int, busy_s: Callable[[], float]) -> None:
        """busy_s: CPU time so far of all that is ours."""
        self._cores, self._busy_s = cores, busy_s
        self._last_s, self._at_s = busy_s(), time.monotonic()

    def advance(self, seconds: float) -> list[Drawn] | None:
        """Of a window that began earlier, as it stood by for a counter, the mean counts."""
        busy_s, now_s = self._busy_s(), time.monotonic()
        window_s = now_s - self._at_s
        busy = max(0.0, busy_s - self._last_s) / window_s if window_s > 0 else 0.0
        busy = min(float(self._cores), busy)
        self._last_s, self._at_s = busy_s, now_s
        return [Drawn(CPU, assumed_cpu_power(self._cores, busy).times(seconds), self.basis)]

    def keep_up(self) -> None:
        pass

    def close(self) -> None:
        pass


class AssumedBoard:
    """An accelerator of the catalogue that nothing reads: its share of the board's limit in training."""

    component = ACCELERATOR
    basis = "assumed"

    def __init__(self, device: int | str, power: Band) -> None:
        self.name = f"{device} by the limit of its board"
        self._power = power

    def advance(self, seconds: float) -> list[Drawn] | None:
        return [Drawn(ACCELERATOR, self._power.times(seconds), self.basis)]

    def keep_up(self) -> None:
        pass

    def close(self) -> None:
        pass


def assumed_board(device: int | str, kind: str | None) -> AssumedBoard | None:
    """kind: its name, as the catalogue or its driver writes it. None: a board of unknown limit."""
    known = find(kind) if kind else None
    if known is None or not known.tdp_w:
        return None
    return AssumedBoard(device, assumed_accelerator_board(known.tdp_w))


def busy_seconds() -> float:
    """CPU time of this process and of those children that have ended."""
    return sum(os.times()[:4])
