"""What [budget] allows, as hours of this cluster, and which of its limits binds.

Each limit is turned into hours at what an hour costs of it; the shortest binds, the others are slack.
"""

from dataclasses import dataclass

from bessemer.errors import RecipeError, RefusedError
from bessemer.planner.facts import Facts
from bessemer.planner.predict import kg_per_kwh, kw_per_device, usd_per_device_hour
from bessemer.recipe.schema import Recipe


@dataclass(frozen=True)
class Limit:
    """One limit that is set: budget.<name> = amount, of which an hour takes `per_hour`."""

    name: str
    amount: float
    per_hour: float

    @property
    def hours(self) -> float:
        return self.amount / self.per_hour

    def __str__(self) -> str:
        return f"budget.{self.name} = {self.amount:g}"


def limits(recipe: Recipe, facts: Facts) -> list[Limit]:
    """The limits that are set, the one that binds first. RecipeError for one that nothing is known of."""
    budget, devices = recipe.budget, facts.devices
    kw = kw_per_device(recipe, facts).value
    kg = kg_per_kwh(recipe).value
    rows = [
        ("hours", budget.hours, 1.0, ""),
        ("device_hours", budget.device_hours, float(devices), ""),
        ("usd", budget.usd, _product(usd_per_device_hour(recipe, facts).value, devices),
         "set cluster.usd_per_device_hour"),
        ("kwh", budget.kwh, _product(kw, devices), "name a device of the catalogue in cluster.device"),
        ("kg_co2e", budget.kg_co2e, _product(_product(kw, kg), devices), 'set cluster.region, e.g. "DEU"'),
    ]  # fmt: skip
    found = []
    for name, amount, per_hour, fix in rows:
        if amount is None:
            continue
        if per_hour is None:
            raise RecipeError(
                f"budget.{name} cannot be turned into hours",
                found=f"budget.{name} = {amount}, and nothing is known of it for {facts.device}",
                wanted="a price, a power or a region to count with",
                fix=fix,
            )
        found.append(Limit(name, amount, per_hour))
    return sorted(found, key=lambda limit: limit.hours)


def binding(recipe: Recipe, facts: Facts) -> Limit | None:
    """The tightest of the limits that are set; None when none is."""
    return next(iter(limits(recipe, facts)), None)


def binding_rule(found: list[Limit]) -> str:
    """Which limit binds, and what the others would have allowed."""
    first, *others = found
    rule = f"{first} binds: {first.hours:.3g} hours"
    slack = ", ".join(f"{limit} allows {limit.hours:.3g}" for limit in others)
    return rule + (f" ({slack})" if slack else "")


def check_budget(recipe: Recipe, facts: Facts, hours: float | None, steps: int) -> None:
    """RefusedError when `steps` cannot come within the budget, even if all goes well.

    hours: the low end of what they are predicted to take.
    """
    limit = binding(recipe, facts)
    if limit is None or hours is None or hours <= limit.hours:
        return
    needed = hours * limit.per_hour
    enough = int(steps * limit.hours / hours)
    raise RefusedError(
        "the run does not fit its budget",
        found=f"{needed:.3g} {_UNITS[limit.name]} at the least ({hours:.3g} hours)",
        wanted=f"{limit}, which binds: {limit.hours:.3g} hours",
        fix=f"set fewer steps ({enough} would do), or raise the budget"
        if enough
        else f"raise budget.{limit.name}: it does not pay for one step",
    )


def too_small(limit: Limit, needed_hours: float, what: str) -> RecipeError:
    """The error of a budget in which nothing sensible fits. what: the least that was tried."""
    return RecipeError(
        "the budget is too small for any run",
        found=f"{limit}, which binds: {limit.hours:.3g} hours",
        wanted=f"{needed_hours * limit.per_hour:.3g} {_UNITS[limit.name]} at least: {what}",
        fix=f"raise budget.{limit.name}, or leave it out",
    )


_UNITS = {"hours": "hours", "device_hours": "device-hours", "usd": "USD", "kwh": "kWh", "kg_co2e": "kg CO2e"}


def _product(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one * other
