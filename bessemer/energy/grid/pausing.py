"""When to pause for the grid: above a threshold of carbon, or in hours of the day (UTC).

Unknown is not dirty: where the intensity is not known, a run goes on. It pauses above one threshold and goes
on at or below another one (the same where only one is given), so that a grid around the threshold does not
make it pause every hour. After the longest pause that is allowed it goes on, and does not pause again before
the grid has been clean once.
Hours of the day are UTC, like those of a file of intensities: local time has an hour twice in autumn.
The clock is a parameter: seconds since 1970.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bessemer.errors import RecipeError
from bessemer.recipe.schema import Energy

if TYPE_CHECKING:  # a plan checks the settings and opens nothing
    from bessemer.energy.grid.intensity import Intensity

_DAY = 24 * 60  # minutes
_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-(?:([01]\d|2[0-3]):([0-5]\d)|24:00)")


@dataclass(frozen=True)
class PauseRule:
    """What a recipe says, as the ranks get it."""

    above_g: float | None = None  # of a kWh: above it a run pauses
    below_g: float | None = None  # at or below it goes on
    hours: list[str] = field(default_factory=list)  # "17:00-21:00"
    most_hours: float | None = None  # of one pause
    intensity: str | None = None  # file, absolute
    command: list[str] = field(default_factory=list)

    @property
    def pauses(self) -> bool:
        """Or else the intensity is for the account alone."""
        return self.above_g is not None or bool(self.hours)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Schedule:
    """Hours of every day in which nothing is computed."""

    minutes: frozenset[int]  # of the day, UTC

    @staticmethod
    def of(texts: Sequence[str]) -> "Schedule":
        """From "17:00-21:00"; also across midnight. RecipeError: no such hours."""
        return Schedule(frozenset(minute for text in texts for minute in _minutes(text)))

    def ends(self, time_s: float) -> float | None:
        """When the hours that it lies in are over; None: it lies in none."""
        minute = first = int(time_s // 60)
        while minute % _DAY in self.minutes:
            minute += 1
        return None if minute == first else minute * 60.0


class Pausing:
    """Whether to pause now; it knows whether it does already. One for an attempt, of the first rank."""

    def __init__(self, rule: PauseRule, intensity: "Intensity | None") -> None:
        self.intensity = intensity
        self._rule, self._schedule = rule, Schedule.of(rule.hours)
        self._since_s: float | None = None  # of the pause under way
        self.has_waited = False  # as long as it may, and the grid is dirty still

    def reason(self, time_s: float) -> str | None:
        """Why to pause, or not to go on yet; None: go."""
        why = self._why(time_s)
        if why is None:
            self._since_s, self.has_waited = None, False
        elif not self.has_waited:
            self._since_s = time_s if self._since_s is None else self._since_s
            self.has_waited = self._latest_s() <= time_s
        if self.has_waited:
            self._since_s = None
            return None
        return why

    def until(self, time_s: float) -> float | None:
        """When it is expected to go on; None: nobody can tell."""
        latest_s = self._latest_s()
        while time_s < latest_s:
            then_s = self._schedule.ends(time_s) or time_s
            if self.intensity is not None and self._rule.below_g is not None:
                found_s = self.intensity.next_below(then_s, self._rule.below_g)
                then_s = math.inf if found_s is None else found_s
            if then_s == time_s:
                break
            time_s = then_s
        return None if min(time_s, latest_s) == math.inf else min(time_s, latest_s)

    def _why(self, time_s: float) -> str | None:
        grams = None if self.intensity is None else self.intensity.now(time_s)
        limit_g = self._rule.above_g if self._since_s is None else self._rule.below_g
        if grams is not None and limit_g is not None and grams > limit_g:
            return f"the grid is at {grams:g} g CO2e per kWh, above {limit_g:g}"
        if self._schedule.ends(time_s) is not None:
            return f"pause hours {', '.join(self._rule.hours)} UTC"
        return None

    def _latest_s(self) -> float:
        """When the pause under way is over in any case."""
        if self._since_s is None or self._rule.most_hours is None:
            return math.inf
        return self._since_s + 3600.0 * self._rule.most_hours


def rule_of(energy: Energy, base: Path) -> PauseRule | None:
    """base: the recipe's folder. None: nothing of the grid is asked. RecipeError: a contradiction."""
    check_pausing(energy)
    if energy.intensity is None and energy.intensity_command is None and energy.pause_hours is None:
        return None
    above_g, below_g = energy.pause_above_g_per_kwh, energy.resume_below_g_per_kwh
    return PauseRule(
        above_g,
        above_g if below_g is None else below_g,
        energy.pause_hours or [],
        energy.pause_most_hours,
        None if energy.intensity is None else str((base / energy.intensity).absolute()),
        energy.intensity_command or [],
    )


def open_intensity(rule: PauseRule) -> "Intensity | None":
    """RecipeError where it tells nothing. None: hours of the day alone."""
    from bessemer.energy.grid.intensity import Command, HourlyFile

    if rule.command:
        return Command(rule.command)
    return None if rule.intensity is None else HourlyFile(Path(rule.intensity))


def check_pausing(energy: Energy) -> None:
    """RecipeError for settings that contradict each other, or that would have no effect."""
    above_g, below_g = energy.pause_above_g_per_kwh, energy.resume_below_g_per_kwh
    most_hours, hours = energy.pause_most_hours, energy.pause_hours or []
    checks = [
        (energy.intensity is not None and energy.intensity_command is not None,
         "energy.intensity and energy.intensity_command", "one of them", "take one of them out"),
        (above_g is not None and energy.intensity is None and energy.intensity_command is None,
         f"energy.pause_above_g_per_kwh = {above_g} and no intensity", "one that says when the grid is above",
         'add energy.intensity="hours.csv", or give energy.pause_hours instead'),
        (below_g is not None and above_g is None, f"energy.resume_below_g_per_kwh = {below_g} alone",
         "energy.pause_above_g_per_kwh beside it", "add that, or take this out"),
        (below_g is not None and above_g is not None and below_g > above_g,
         f"energy.resume_below_g_per_kwh = {below_g}, energy.pause_above_g_per_kwh = {above_g}",
         "going on at no more than it pauses above", "lower energy.resume_below_g_per_kwh, or take it out"),
        (most_hours is not None and above_g is None and not hours,
         f"energy.pause_most_hours = {most_hours} and nothing to pause for",
         "energy.pause_above_g_per_kwh or energy.pause_hours", "add one of them, or take this out"),
        (len(Schedule.of(hours).minutes) == _DAY, f"energy.pause_hours = {hours}, the whole day",
         "minutes in which it may run", "shorten the hours"),
    ]  # fmt: skip
    for wrong, found, wanted, fix in checks:
        if wrong:
            raise RecipeError("the recipe contradicts itself", found=found, wanted=wanted, fix=fix)


def time_text(time_s: float) -> str:
    """To the minute that has begun by then."""
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%MZ")


def _minutes(text: str) -> list[int]:
    match = _HOURS.fullmatch(text)
    begin, end = 0, 0
    if match is not None:
        begin = 60 * int(match[1]) + int(match[2])
        end = _DAY if match[3] is None else 60 * int(match[3]) + int(match[4])
    if begin == end:
        raise RecipeError(
            "energy.pause_hours has hours that are none",
            found=f'"{text}"',
            wanted='from when to when of each day, UTC: "17:00-21:00", or "22:30-06:00" across midnight',
            fix='write energy.pause_hours=["17:00-21:00"]',
        )
    return [minute % _DAY for minute in range(begin, end if end > begin else end + _DAY)]
