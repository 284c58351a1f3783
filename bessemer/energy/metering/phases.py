"""Joules and seconds by what they are spent on: a meter that is read at each border between two phases.

    starting     of every attempt, from when its meter begins to its first step: building, a checkpoint
    steps        whatever is under no other name, waiting for data included
    validation   saving (what the steps wait for it)   sampling (of answers to learn from)   paused
A phase within another is taken out of it, so that all of them add up to the run. Of a run that began before
there were phases nobody knows how its first joules were spent: it has none until its end.
Cost: a reading at each end of a phase (energy/metering/meter.py).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from bessemer.energy.metering.meter import PowerMeter
from bessemer.energy.reading import BESIDE_STEPS, PHASES, STARTING, STEPS, ZERO, PowerReading


@dataclass
class Phase:
    """One stretch of a phase: what was drawn in it so far. joules None: not known."""

    name: str
    joules: float | None = 0.0
    seconds: float = 0.0


class PhasedMeter:
    """Begins in the phase `starting`."""

    def __init__(self, meter: PowerMeter, earlier: Mapping[str, Any]) -> None:
        """earlier: the newest row of the attempt before, {} where there was none."""
        self.meter = meter
        joules, seconds = earlier.get("energy_phases_j"), earlier.get("time_phases_s")
        self._is_whole = (joules is not None and seconds is not None) or not earlier
        self._joules: dict[str, float | None] = dict(joules or {})
        self._seconds: dict[str, float] = dict(seconds or {})
        self._under = [Phase(STARTING)]
        self._row = Phase(STEPS)  # since the row before
        self._newest = PowerReading(None, ZERO)

    @property
    def columns(self) -> dict[str, Any]:
        """What a row of metrics has of phases, since the run began."""
        told = {"energy_phases_j": dict(self._joules), "time_phases_s": dict(self._seconds)}
        return told if self._is_whole else dict.fromkeys(told)

    def started(self) -> None:
        """The first step begins."""
        self._book()
        self._under = [Phase(STEPS)]

    @contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        """What is drawn within the block. What it gives is whole when the block has ended."""
        assert name in PHASES, name
        self._book()
        self._under.append(Phase(name))
        try:
            yield self._under[-1]
        finally:
            self._book()
            self._under.pop()

    def read(self) -> PowerReading:
        """Energy so far; the power is the mean since the last reading, without starting and pauses."""
        self._book()
        row, self._row = self._row, Phase(STEPS)
        power_w = None if row.joules is None or row.seconds <= 0.0 else row.joules / row.seconds
        return replace(self._newest, power_w=power_w)

    def _book(self) -> None:
        """All since the last border belongs to the phase under way."""
        self._newest = self.meter.read()
        drawn_j, seconds = self._newest.drawn_j, self._newest.seconds
        name = self._under[-1].name
        for phase in (self._under[-1], *(() if name in BESIDE_STEPS else (self._row,))):
            phase.joules, phase.seconds = _sum(phase.joules, drawn_j), phase.seconds + seconds
        self._joules[name] = _sum(self._joules.get(name, 0.0), drawn_j)
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other
