"""What [budget] allows, as hours of this cluster."""

from bessemer.errors import RecipeError
from bessemer.planner.facts import Facts
from bessemer.planner.predict import kg_per_kwh, kw_per_device, usd_per_device_hour
from bessemer.recipe.schema import Recipe


def hours_allowed(recipe: Recipe, facts: Facts) -> float | None:
    """The tightest of the limits that are set; None when none is."""
    budget, devices = recipe.budget, facts.devices
    kw = kw_per_device(recipe, facts).value
    kg = kg_per_kwh(recipe).value
    limits = [
        ("hours", budget.hours, 1.0, ""),
        ("device_hours", budget.device_hours, float(devices), ""),
        ("usd", budget.usd, _product(usd_per_device_hour(recipe, facts).value, devices),
         "set cluster.usd_per_device_hour"),
        ("kwh", budget.kwh, _product(kw, devices), "name a device of the catalogue in cluster.device"),
        ("kg_co2e", budget.kg_co2e, _product(_product(kw, kg), devices), 'set cluster.region, e.g. "DEU"'),
    ]  # fmt: skip
    hours = []
    for name, limit, per_hour, fix in limits:
        if limit is None:
            continue
        if per_hour is None:
            raise RecipeError(
                f"budget.{name} cannot be turned into hours",
                found=f"budget.{name} = {limit}, and nothing is known of it for {facts.device}",
                wanted="a price, a power or a region to count with",
                fix=fix,
            )
        hours.append(limit / per_hour)
    return min(hours) if hours else None


def _product(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one * other
