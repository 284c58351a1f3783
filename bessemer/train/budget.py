"""A stage within its run's [budget]: whether it may begin or go on, and when it is to stop.

check_allowance    before anything is built: the whole run against each limit, with what it has drawn so far
check_metered      before the model is built: whether there is a meter for what a limit counts
BudgetWatch        while it trains, at every row and in pauses: the first rank asks to stop, and all agree as
                   on a signal
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from bessemer.energy.accounting.allowance import Allowance, allowance_of, counts_energy
from bessemer.energy.accounting.limits import UNITS, limits_of
from bessemer.energy.accounting.place import place_of
from bessemer.energy.quantity import Quantity
from bessemer.errors import RefusedError, StoppedError
from bessemer.log import Console
from bessemer.planner.machine.facts import Facts
from bessemer.planner.plan import Estimate, StagePlan
from bessemer.planner.predict import predict
from bessemer.planner.sizing.budget import check_budget, comparison_after, finetuning_after, uses, warning
from bessemer.recipe.schema import Recipe
from bessemer.rundir import Row
from bessemer.train.stage import Stage
from bessemer.train.stop import Stop
from bessemer.train.watch import Told


def check_allowance(stage: Stage, recipe: Recipe, facts: Facts, console: Console, *, made: int = 0) -> None:
    """RefusedError where the run does not fit its budget, or a limit cannot be watched. Writes nothing.

    What is left of a stage is told by its own pace, once that is known, else by the planner. made: steps that
    another run has made, from which this one goes on: that one has paid for them.
    """
    if not limits_of(recipe):
        return
    allowance = _allowance(stage, recipe, facts)
    allowance.check_watchable()
    steps = stage.plan.steps - max(stage.newest_step, made)
    allowance.check_goes_on(steps)
    predicted = predict(recipe, stage.shape, stage.plan, facts)
    left = {name: predicted[name].times(steps / stage.plan.steps) for name in UNITS}
    left |= {name: _estimate(quantity) for name, quantity in allowance.left(steps).items()}
    later = {}
    if stage.kind == "pretrain":
        later = finetuning_after(recipe, stage.plan, predicted)
    elif stage.folder.name == "finetune":  # the parts of its comparison are stages of other names
        later = comparison_after(recipe, predicted)
    spent = {name: allowance.spent(name).value or 0.0 for name in allowance.limits}
    found = uses(recipe, facts, left, spent=spent, later=later)
    # A stage that has begun cannot be made shorter.
    check_budget(found, 0 if stage.newest_step else steps, made=made)
    if (told := warning(found)) is not None:
        console.line(told)


def check_metered(stage: Path, missing: list[str]) -> dict[str, Any]:
    """RefusedError where a limit counts energy, and of this machine something draws that nothing reads.

    stage: has begun. Returns nothing to tell the other ranks.
    """
    place = place_of(stage.parent, None, None, None)
    counted = counts_energy(place)
    if missing and counted:
        raise RefusedError(
            f"budget.{counted[0]} cannot be watched",
            found=f"{', '.join(missing)}: nothing reads what it draws",
            wanted="a meter of everything that trains",
            fix=f"install nvidia-ml-py (AMD: amdsmi), name energy.command, or take budget.{counted[0]} out",
        )
    return {}


class BudgetWatch:
    """Of one attempt, on the first rank."""

    def __init__(self, allowance: Allowance, plan: StagePlan, world: int, stop: Stop) -> None:
        self._allowance, self._plan, self._stop = allowance, plan, stop
        self._late = int(world > 1)  # steps until the other ranks have heard
        self._reached: str | None = None
        self._told_bridged = self._told_unknown = False

    def event(self, event: Row) -> None:
        self._allowance.event(event)

    def row(self, row: Row) -> list[Told]:
        """What is to be told of it: events, with their lines. Where a limit is reached it asks to stop."""
        self._allowance.row(row)
        return [*self._in_doubt(), *self._look_ahead(row["step"], self._late)]

    def waiting(self, step: int) -> list[Told]:
        """The same in a pause after `step`, where no row tells of the hours; and all ranks hear at once."""
        self._allowance.waiting(time.time())
        return self._look_ahead(step, 0)

    def _look_ahead(self, step: int, late: int) -> list[Told]:
        """Over the next interval. late: steps until the other ranks have heard."""
        left = self._plan.steps - step - late
        if left <= 0 or self._reached is not None:
            return []
        every = self._plan.log_every
        self._reached = name = self._allowance.reached(min(left, every - step % every) + late)
        if name is None:
            return []
        spent, limit = self._allowance.spent(name).value, self._allowance.limits[name]
        line = f"budget.{name} = {limit:g} is used up: saving, and stopping"
        self._stop.ask(f"budget.{name} = {limit:g} is used up")
        return [Told("budget", line, {"name": name, "spent": spent, "limit": limit})]

    def error(self, step: int) -> StoppedError | None:
        """Where it was this that stopped the attempt."""
        if self._reached is None:
            return None
        return self._allowance.stopped(self._reached, step, self._plan.steps)

    def _in_doubt(self) -> list[Told]:
        """Once each, when the meter is lost and when a limit cannot be watched any more."""
        told, watts, unknown = [], self._allowance.bridged_w, self._allowance.unknown
        if watts is not None and not self._told_bridged:
            self._told_bridged = True
            line = (
                f"the meter is lost; for the budget energy goes on at the last known {watts:.0f} W, assumed"
            )
            told.append(Told("unmetered", line, {"power_w": watts, "basis": "assumed"}))
        if unknown and not self._told_unknown:
            self._told_unknown = True
            names = ", ".join(f"budget.{name}" for name in unknown)
            line = f"{names} cannot be watched any more: what was spent is not known"
            told.append(Told("unmetered", line, {"limits": unknown}))
        return told


def budget_watch(stage: Path, plan: StagePlan, world: int, stop: Stop) -> BudgetWatch | None:
    """None: the run has no limit."""
    allowance = allowance_of(stage)
    return None if allowance is None else BudgetWatch(allowance, plan, world, stop)


def _allowance(stage: Stage, recipe: Recipe, facts: Facts) -> Allowance:
    """As `recipe` has it now, which the run may not have yet."""
    place, is_cpu = place_of(stage.folder.parent, None, None, None), facts.kind == "cpu"
    devices = 1 if is_cpu else max(place.devices, stage.plan.layout.world)
    place = replace(place, recipe=recipe, device=facts.device, is_cpu=is_cpu, devices=devices)
    return Allowance(stage.folder, place)


def _estimate(quantity: Quantity) -> Estimate:
    return Estimate(quantity.value, quantity.low, quantity.high, quantity.basis)
