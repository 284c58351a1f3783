"""Predicted and measured step time side by side while a run goes on, and the cause where they part.

The first rank watches: the median of the last steps, without an attempt's first ones, against the prediction.
More than _DEVIATION apart for a whole window is an event, with the causes for which there is evidence
(train/evidence.py, the machine's /proc/stat, saves in flight); it is told again when it changes as much once
more, and when it is over. Without evidence the cause is "not known": nothing is guessed. What a run measured
is kept for the next prediction (planner/calibrated/taught.py), unless others disturbed it.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bessemer.errors import WriteError
from bessemer.measure.ceiling import core_ticks
from bessemer.planner.calibrated.taught import note_run
from bessemer.rundir import WARMUP_STEPS
from bessemer.train.evidence import Totals
from bessemer.train.expect import Expected

_WINDOW, _FEW = 10, 2
_DEVIATION = 0.15
_WORTH = 0.3  # of what a step takes too long: a cause that explains as much is named
_BUSY_SHARE = 0.1  # of the cores, used by others
_DISTURBED = 0.15
_TAUGHT_STEPS = 8  # steady ones, at least
_KEPT = 400
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_CPU_CLOCK = Path("/sys/devices/system/cpu/cpu0/cpufreq")


@dataclass(frozen=True)
class _Mark:
    """What had happened when a window began."""

    steps: int
    totals: list[Totals]  # by rank; empty where only the cores are asked about
    busy_s: float  # CPU time of all ranks
    ticks: tuple[int, int] | None


@dataclass(frozen=True)
class Told:
    """Something to tell: an event and its line."""

    kind: str  # "deviation", "as_predicted"
    line: str
    details: dict[str, Any]


class Watch:
    """Of one attempt."""

    def __init__(self, expected: Expected) -> None:
        self.expected = expected
        self._times_s: list[float] = []
        self._saving: list[bool] = []
        self._told_ratio = 1.0  # what the last line said; 1: as predicted
        self._is_first = True
        self._marks: list[_Mark] = []  # of the window that causes are looked for in
        self._kept: list[_Mark] = []  # of all steps that the run would teach
        self._in_flight = False
        self._done = 0
        self._limit_w: float | None = None  # of the accelerators' power, where it was lowered
        self._limit_is = ""  # "asked", "searching", "found"
        self.governor: str | None = None  # of the CPUs, where it was set for the run

    def begin_again(self) -> None:
        """As at the start of an attempt: in a pause the cores were others', and caches are cold after it."""
        self._times_s, self._saving, self._marks, self._kept, self._done = [], [], [], [], 0

    def save_began(self) -> None:
        self._in_flight = True

    def save_ended(self) -> None:
        self._in_flight = False

    def limited(self, watts: float | None, how: str) -> None:
        """As train/tune.py tells it. While it searches, what a step takes is no deviation."""
        self._limit_w, self._limit_is = watts, how

    def step(self, step_s: float) -> None:
        self._done += 1
        if self._done > WARMUP_STEPS and self._limit_is != "searching":
            self._times_s = [*self._times_s[1 - _KEPT :], step_s]
            self._saving = [*self._saving[1 - _KEPT :], self._in_flight]

    def row(self, totals: list[list[float]], busy_s: float) -> Told | None:
        """At a row of metrics. totals: train/evidence.py, by rank. busy_s: CPU time of all ranks so far."""
        if self._done >= WARMUP_STEPS:
            ranks, ticks = [Totals.of(values) for values in totals], core_ticks()
            self._marks.append(_Mark(self._done, ranks, busy_s, ticks))
            self._kept.append(_Mark(self._done, [], busy_s, ticks))
        _drop_before(self._done - _WINDOW, self._marks)
        _drop_before(self._done - _KEPT, self._kept)
        if len(self._times_s) < _WINDOW or len(self._marks) < 2:
            return None
        recent = sorted(self._times_s[-_WINDOW:])
        first, self._is_first = self._is_first, False
        if not first and not self._has_changed(recent[_FEW], recent[-1 - _FEW]):
            return None
        return self._tell(median(recent), median(recent) / self.expected.step_s)

    def _has_changed(self, low_s: float, high_s: float) -> bool:
        """Whether all steps but a few at each end have left what was told last."""
        told_s = self._told_ratio * self.expected.step_s
        return low_s / told_s > 1 + _DEVIATION or told_s / high_s > 1 + _DEVIATION

    def _tell(self, measured: float, ratio: float) -> Told:
        predicted = self.expected.step_s
        line = f"a step takes {_seconds(measured)}, predicted {_seconds(predicted)} ({ratio - 1:+.0%})"
        details = {"predicted_s": predicted, "measured_s": measured, "basis": self.expected.basis}
        self._told_ratio = 1.0 if _is_near(ratio) else ratio
        if _is_near(ratio):
            return Told("as_predicted", line, details)
        causes, evidence = self._causes(measured)
        cause = "; ".join(causes) or "cause not known"
        return Told("deviation", f"{line}: {cause}", {**details, "cause": cause, "evidence": evidence})

    def teach(self) -> str | None:
        """Keep what was measured for the next prediction; returns why not, where it was long enough."""
        if len(self._times_s) < _TAUGHT_STEPS:
            return None
        if self._limit_w is not None:
            return f"the power limit was set to {self._limit_w:.0f} W"
        if self.governor is not None:
            return f'the governor was set to "{self.governor}"'
        others = self._others(self._kept[0], self._kept[-1]) if len(self._kept) > 1 else None
        if others is not None and others > _DISTURBED:
            return f"other processes used {others:.0%} of the cores"
        with suppress(WriteError):  # as with ceilings: without a home nothing is kept
            note_run(
                self.expected.device,
                self.expected.key,
                median(self._times_s),
                self.expected.modelled_s,
                self.expected.modelled_basis,
                len(self._times_s),
            )
        return None

    def _causes(self, measured: float) -> tuple[list[str], dict[str, Any]]:
        """(in words, the likeliest first; the figures they stand on)."""
        then, now = self._marks[0], self._marks[-1]
        steps = max(1, now.steps - then.steps)
        added = [one.since(other) for one, other in zip(now.totals, then.totals, strict=True)]
        excess = measured - self.expected.step_s
        seen = _Seen(
            self.expected,
            added,
            steps,
            excess,
            self._others(then, now),
            self._saves(measured),
            _clock_share(),
            self._limit_w if self._limit_is == "asked" else None,  # one that was found costs little time
        )
        return (seen.slower() if excess > 0 else seen.faster()), seen.figures

    def _others(self, then: _Mark, now: _Mark) -> float | None:
        """Share of the machine's cores that processes not of this run used; None: nobody tells."""
        if then.ticks is None or now.ticks is None or now.ticks[1] <= then.ticks[1]:
            return None
        ticks, per_s = now.ticks[1] - then.ticks[1], _TICKS_PER_S
        busy_s = (ticks - (now.ticks[0] - then.ticks[0])) / per_s
        return max(0.0, busy_s - (now.busy_s - then.busy_s)) / (ticks / per_s)

    def _saves(self, measured: float) -> tuple[int, float]:
        """(steps of the window with a save in flight, seconds that those took longer than the others)."""
        recent = list(zip(self._times_s, self._saving, strict=True))
        during = [step_s for step_s, saving in recent[-_WINDOW:] if saving]
        calm = [step_s for step_s, saving in recent if not saving]
        if not during:
            return 0, 0.0
        return len(during), median(during) - (median(calm) if calm else self.expected.step_s)


@dataclass(frozen=True)
class _Seen:
    """A window of steps that took `excess_s` longer than predicted; less than 0: shorter."""

    expected: Expected
    added: list[Totals]  # in the window, by rank
    steps: int
    excess_s: float
    others: float | None
    saves: tuple[int, float]
    clock: float | None
    limit_w: float | None

    @property
    def figures(self) -> dict[str, Any]:
        """Per step, of the rank with most."""
        return {
            "data_s": self._most("data_s"),
            "waiting_for_a_core_s": self._most("waiting_s"),
            "pages_from_disk": self._most("faults"),
            "recompiled": max(part.recompiled for part in self.added),
            "threads": min(part.threads for part in self.added),
            "others_share": self.others,
            "steps_with_a_save": self.saves[0],
            "clock_share": self.clock,
        }

    def slower(self) -> list[str]:
        found = [(weight, words) for weight, words in self._slower() if words]
        return [words for _, words in sorted(found, key=lambda pair: -pair[0])]

    def faster(self) -> list[str]:
        if self.expected.calibrated_busy > _BUSY_SHARE and self.expected.basis != "measured":
            share = f"{self.expected.calibrated_busy:.0%}"
            return [f"others used {share} of the cores when this machine was calibrated"]
        return [] if self.expected.calibrated else [_NOT_CALIBRATED]

    def _slower(self) -> list[tuple[float, str]]:
        """(seconds of a step that it may explain, words; no words: no evidence)."""
        data_s, waiting_s, faults = self._most("data_s"), self._most("waiting_s"), self._most("faults")
        saves, save_s = self.saves
        threads = int(min(part.threads for part in self.added))
        graphs = int(max(part.recompiled for part in self.added))
        others = self.others or 0.0
        enough = _WORTH * self.excess_s
        rank = max(range(len(self.added)), key=lambda number: self.added[number].data_s)
        where = f" (rank {rank})" if len(self.added) > 1 else ""
        busy = others > _BUSY_SHARE or (waiting_s > enough and self.others is None)
        share = (
            f"other processes use {others:.0%} of the cores" if self.others is not None else "busy machine"
        )
        return [
            (data_s, f"waiting for data, {_seconds(data_s)} of each step{where}" if data_s > enough else ""),
            (max(waiting_s, others * self.expected.step_s), share if busy else ""),
            (save_s, f"a checkpoint was written during {saves} steps" if saves and save_s > enough else ""),
            (self.excess_s, f"memory is short: {faults:.0f} pages a step from disk" if faults > 20 else ""),
            (self.excess_s, f"code was compiled again ({graphs} ×)" if graphs > 0 else ""),
            (self.excess_s, f"{threads} threads a process, predicted for {self.expected.threads}"
             if threads < self.expected.threads else ""),
            (self.excess_s, "" if self.limit_w is None else f"the power limit is {self.limit_w:.0f} W"),
            (self.excess_s, f"the clock is at {self.clock:.0%} of its most"
             if self.clock is not None and self.clock < 1 - _DEVIATION else ""),
            (0.0, "" if self.expected.calibrated or self.expected.basis == "measured" else _NOT_CALIBRATED),
        ]  # fmt: skip

    def _most(self, name: str) -> float:
        return max(getattr(part, name) for part in self.added) / self.steps


_NOT_CALIBRATED = "the prediction knows no calibration of this machine (`bessemer doctor --calibrate`)"


def _clock_share() -> float | None:
    """Of a core's highest clock; None: nobody tells, as in most virtual machines."""
    try:
        now, most = (
            int((_CPU_CLOCK / name).read_text()) for name in ("scaling_cur_freq", "cpuinfo_max_freq")
        )
    except (OSError, ValueError):
        return None
    return now / most if most else None


def _drop_before(step: int, marks: list[_Mark]) -> None:
    """All but the last one that is no later than `step`."""
    while len(marks) > 2 and marks[1].steps <= step:
        marks.pop(0)


def _is_near(ratio: float) -> bool:
    return max(ratio, 1 / ratio) <= 1 + _DEVIATION


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"
