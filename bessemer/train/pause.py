"""Standing still while the grid is dirty: the state is saved, the processes live, and nothing is computed.

The first rank looks at the grid (grid/pausing.py) before an attempt's first step, with each row of metrics
and after the last step; the ranks agree in one exchange. While they wait they exchange once a second whether
any was asked to stop and whether it goes on, so that no signal goes unheard and no collective times out.
Devices keep their memory and draw what they draw idle: booked as `paused`. Time in a pause is no step's.
Cost: where nothing is configured none; else 3 µs a row (2 cores, 2026-11-28), and with several ranks an
exchange of one number.
"""

import time
from pathlib import Path
from typing import Any

from bessemer.energy.grid.hourly import HOUR_S, hour_text, read_hourly
from bessemer.energy.grid.pausing import PauseRule, Pausing, open_intensity, rule_of, time_text
from bessemer.errors import RecipeError
from bessemer.log import Console
from bessemer.parallel.engine import Engine
from bessemer.recipe.schema import Energy
from bessemer.train.record import Recorder
from bessemer.train.silence import Silence
from bessemer.train.stop import Stop
from bessemer.units import format_seconds

_POLL_S = 1.0
_NEVER = -1  # no hour since 1970


class Pause:
    """Of one rank and attempt."""

    def __init__(
        self, rule: PauseRule, engine: Engine, record: Recorder | Silence, stop: Stop, console: Console
    ) -> None:
        self._engine, self._record, self._stop, self._console = engine, record, stop, console
        self._rule = rule
        self._grid: Pausing | None = None  # of the first rank
        self._reason: str | None = None  # to pause
        self._is_first = True
        self._told: tuple[int, float | None] = (_NEVER, None)  # hour and grams
        self._told_unknown = False

    def open(self) -> dict[str, Any]:
        """By the first rank, before training. RecipeError where the intensity cannot be read."""
        self._grid = Pausing(self._rule, open_intensity(self._rule))
        return {}

    def is_due(self, step: int, every: int) -> bool:
        """Whether to pause after `step`, on which all ranks agree. every: steps between two rows."""
        if not self._is_first and step % every:
            return False
        self._is_first = False
        self.look(step)
        return self._rule.pauses and self._engine.any(self._reason is not None)

    def wait(self, step: int) -> bool:
        """Stand still until the grid is clean or any rank is to stop: whether to stop."""
        self._tell_begin(step)
        with self._record.phase("paused") as drawn:
            stopping = self._until_clean(step)
        kind = "stop_in_pause" if stopping else "resume_after_pause"
        self._record.event(kind, step, seconds=round(drawn.seconds, 3), joules=drawn.joules)
        if self._grid is not None and not stopping:
            longest = " (energy.pause_most_hours)" if self._grid.has_waited else ""
            self._console.line(
                f"step {step:,}: going on after a pause of {format_seconds(drawn.seconds)}{longest}"
            )
        return stopping

    def look(self, step: int) -> None:
        """By the first rank: what the grid is at, told once an hour, and whether to pause for it."""
        if self._grid is None:
            return
        time_s = time.time()
        self._reason, intensity = self._grid.reason(time_s), self._grid.intensity
        if intensity is None:
            return
        for text in intensity.news():
            self._record.event("intensity", step, problem=text)
            self._console.line(f"energy: {text}")
        self._tell_hour(step, int(time_s // HOUR_S), intensity.now(time_s))

    def close(self) -> None:
        if self._grid is not None and self._grid.intensity is not None:
            self._grid.intensity.close()

    def _until_clean(self, step: int) -> bool:
        while True:
            self.look(step)
            self._record.waiting(step)
            goes_on = self._grid is not None and self._reason is None
            told = self._engine.each_rank([float(self._stop.asked), float(goes_on)])
            if any(asked for asked, _ in told):
                return True
            if told[0][1]:
                return False
            self._record.keep_up()
            time.sleep(_POLL_S)

    def _tell_hour(self, step: int, hour: int, grams: float | None) -> None:
        told_hour, told_g = self._told
        if hour == told_hour and (grams is None or told_g is not None):
            return
        self._told = hour, grams
        self._record.event("grid", step, hour=hour_text(hour), g_per_kwh=grams)
        if grams is None and not self._told_unknown:
            self._told_unknown = True
            goes_on = "; what is not known is not taken for dirty" if self._rule.pauses else ""
            self._console.line(f"energy: the grid's intensity is not known for {hour_text(hour)}{goes_on}")

    def _tell_begin(self, step: int) -> None:
        if self._grid is None:
            return
        until_s = self._grid.until(time.time())
        until = None if until_s is None else time_text(until_s)
        self._record.event("pause", step, reason=self._reason, until=until)
        words = "saved, and paused" if step else "paused"
        self._console.line(f"step {step:,}: {words} until {until or 'the grid is clean'}: {self._reason}")


def pause_rule(energy: Energy, base: Path, *, allow_code: bool) -> dict[str, Any] | None:
    """What a recipe asks of the grid, checked before anything is trained; as JSON. None: nothing.

    base: its folder.
    """
    rule = rule_of(energy, base)
    if rule is None:
        return None
    if rule.command and not allow_code:
        raise RecipeError(
            "energy.intensity_command is a program of the recipe's own",
            found=f"energy.intensity_command = {rule.command}",
            wanted="--allow-code, which says that it may run",
            fix="add --allow-code, or take energy.intensity_command out",
        )
    if rule.intensity is not None:
        read_hourly(Path(rule.intensity))
    return rule.to_json()
