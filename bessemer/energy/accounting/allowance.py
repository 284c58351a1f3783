"""How much of its [budget] a run has left, while it goes and before it goes on.

All stages of the run count, as the account counts them (energy/accounting/spending.py), by the likely value.
Looking ahead, a run stops where the next interval would go over, if its steps were like those of the last.
So a limit is exceeded by one logging interval at most, and only where steps have become longer or hungrier.
"""

import math
import time
from collections.abc import Iterable
from pathlib import Path

from bessemer.energy.accounting.facility import prices
from bessemer.energy.accounting.ledger import StageLedger
from bessemer.energy.accounting.limits import UNITS, limits_of, rounded_up
from bessemer.energy.accounting.place import Place, place_of
from bessemer.energy.accounting.spending import Spending, Spent, spent_of
from bessemer.energy.power import Band
from bessemer.energy.quantity import NOTHING, UNKNOWN, Quantity
from bessemer.errors import RefusedError, StoppedError
from bessemer.rundir import Row, read_rows, stages
from bessemer.units import format_short

_UNKNOWN: Spent = dict.fromkeys(UNITS, UNKNOWN)
_ENERGY = ("kwh", "kg_co2e")  # and dollars, where electricity is paid by the kilowatt-hour
_TO_COUNT_WITH = {
    "usd": ("price", "set cluster.usd_per_device_hour, or energy.tariff_usd_per_kwh"),
    "kg_co2e": ("region", 'set energy.region, e.g. "DEU"'),
}


def counts_energy(place: Place) -> list[str]:
    """The limits that need to know what the run draws."""
    by_meter = prices(place.recipe, place.listed).usd_per_kwh > 0.0
    return [name for name in limits_of(place.recipe) if name in _ENERGY or (name == "usd" and by_meter)]


def allowance_of(stage: Path) -> "Allowance | None":
    """Of a stage that has begun, by the run's own recipe.toml; None: the run has no limit."""
    place = place_of(stage.parent, None, None, None)
    return Allowance(stage, place) if limits_of(place.recipe) else None


class Allowance:
    """What a run may draw, and the one of its stages that draws."""

    def __init__(self, stage: Path, place: Place) -> None:
        self._stage, self._place = stage, place
        self.limits = limits_of(place.recipe)
        self._own = Spending(stage, place)
        others = [folder for folder in stages(stage.parent) if folder.name != stage.name]
        spent = [Spending(folder, place).spent for folder in others]
        self._others: Spent = {name: _sum(each[name] for each in spent) for name in UNITS}

    @property
    def bridged_w(self) -> float | None:
        """The power at which the newest row's energy goes on; None: it is known, or no limit counts any."""
        return self._own.bridged_w if counts_energy(self._place) else None

    @property
    def unknown(self) -> list[str]:
        """Limits of which nobody knows any more what was spent, as where a file of intensities has ended."""
        return [name for name in self.limits if self.spent(name).value is None]

    def spent(self, name: str) -> Quantity:
        return self._others[name].plus(self._own.spent[name])

    def event(self, event: Row) -> None:
        self._own.event(event)

    def row(self, row: Row) -> None:
        self._own.add(row)

    def waiting(self, time_s: float) -> None:
        """In a pause that goes on until `time_s` at least."""
        self._own.waiting(time_s)

    def reached(self, steps: int) -> str | None:
        """The limit that so many more steps, like the last ones, would exceed by most."""
        ahead = self._own.next(steps)
        return self._exceeded({name: ahead.get(name, 0.0) for name in self.limits})

    def left(self, steps: int) -> Spent:
        """What so many steps of this stage take, by its own pace; empty before that is known."""
        return self._own.left(steps) if self._own.is_steady else {}

    def check_watchable(self) -> None:
        """RefusedError for a limit that nothing could be counted of: without a region, a price, or a past."""
        row = {"attempt": 1, "step": 1, "time_s": 1.0, "energy_basis": "measured"}
        row |= dict.fromkeys(("energy_j", "energy_low_j", "energy_high_j"), 1.0)
        ledger = StageLedger([row], [{"attempt": 1, "kind": "start", "time": time.time()}])
        counted = spent_of(ledger, self._place, 1)
        for name, (wanted, fix) in _TO_COUNT_WITH.items():
            if name in self.limits and counted[name].value is None:
                raise RefusedError(
                    f"budget.{name} cannot be watched",
                    found=f"budget.{name} = {self.limits[name]:g}, and no {wanted} is known here",
                    wanted=f"a {wanted} to count with",
                    fix=f"{fix}, or take budget.{name} out",
                )
        for name in self.unknown:
            raise RefusedError(
                f"budget.{name} cannot be watched",
                found="an attempt or a stage of this run, of which nobody knows what it took",
                wanted="to know what was spent so far",
                fix=f"take budget.{name} out, or begin a new run with --run DIR",
            )

    def check_goes_on(self, steps: int) -> None:
        """RefusedError where the stage stopped at a limit that is no higher now, or where what is left does
        not fit even at the pace of its best steps. steps: of the stage, that are left."""
        not_raised = self._not_raised()
        if not_raised is not None:
            raise RefusedError(f"budget.{not_raised} is used up", **self._told(not_raised, steps))
        name = self._exceeded({name: left.low or 0.0 for name, left in self.left(steps).items()})
        if name is not None:
            raise RefusedError("what is left does not fit the budget", **self._told(name, steps))

    def stopped(self, name: str, step: int, steps: int) -> StoppedError:
        """The end of an attempt at `step` of `steps`, with a checkpoint."""
        problem = f"budget.{name} is used up: at step {step} of {steps}, and saved"
        return StoppedError(problem, **self._told(name, steps - step))

    def _exceeded(self, more: dict[str, float]) -> str | None:
        """The limit that is exceeded by the largest share with so much more; None: none is."""
        shares = {}
        for name in self.limits.keys() & more.keys():
            spent = self.spent(name).value
            shares[name] = 0.0 if spent is None else (spent + more[name]) / self.limits[name]
        worst = max(sorted(shares), key=lambda name: shares[name], default=None)
        return worst if worst is not None and shares[worst] > 1.0 else None

    def _not_raised(self) -> str | None:
        """The limit that the last attempt stopped at, if that is no higher now."""
        for event in reversed(read_rows(self._stage / "events.jsonl")):
            if event.get("kind") in ("start", "resume"):
                return None
            if event.get("kind") != "budget" or self.limits.get(event["name"], math.inf) > event["limit"]:
                continue
            spent = self.spent(event["name"]).value
            if spent is not None and spent >= event["spent"] * (1.0 - 1e-9):  # else: another price or region
                return str(event["name"])
        return None

    def _told(self, name: str, steps: int) -> dict[str, str]:
        """found, wanted and fix. name: of the limit that binds; steps: left to do."""
        spent, left, unit = self.spent(name), {**_UNKNOWN, **self._own.left(steps)}, UNITS[name]
        elsewhere = self._others[name].value or 0.0
        others = f", {format_short(elsewhere)} of them in other stages" if elsewhere else ""
        rest = f"for the {steps:,} steps that are left"
        wanted, goes_on = f"room {rest}, whose pace is not known yet", "goes on"
        if (band := left[name].band) is not None:
            wanted = f"{_banded(band, unit)} more {rest}, at this stage's own pace"
            goes_on = "goes on to the end of the stage"
        settings = " ".join(f"--set budget.{key}={least}" for key, least in self._least(name, left).items())
        return {
            "found": f"budget.{name} = {self.limits[name]:g}, of which {format_short(spent.value or 0.0)} "
            f"{unit} are spent{others}",
            "wanted": wanted,
            "fix": f"the same command with {settings} or more {goes_on}; or stop here",
        }

    def _least(self, name: str, left: Spent) -> dict[str, str]:
        """Of the limits that are too small: what is spent, another start, and the high end of the rest."""
        found: dict[str, str] = {}
        for key, limit in self.limits.items():
            more = self._own.start.get(key, 0.0) + (left[key].high or 0.0)
            whole = (self.spent(key).value or 0.0) + more
            if key == name or whole > limit:
                found[key] = rounded_up(max(whole, limit))
        return found


def _sum(quantities: Iterable[Quantity]) -> Quantity:
    whole = NOTHING
    for quantity in quantities:
        whole = whole.plus(quantity)
    return whole


def _banded(band: Band, unit: str) -> str:
    """ "3.2 kWh (2.9 to 3.6)"."""
    return f"{format_short(band.value)} {unit} ({format_short(band.low)} to {format_short(band.high)})"
