"""The limits of [budget]: their units, which a recipe sets, and a figure rounded up for a setting.

Apart from what counts against them (spending.py, allowance.py), as a plan needs no more than this.
"""

import math

from bessemer.recipe.schema import Recipe

UNITS = {"hours": "hours", "device_hours": "device-hours", "usd": "USD", "kwh": "kWh", "kg_co2e": "kg CO2e"}


def limits_of(recipe: Recipe) -> dict[str, float]:
    """Those of [budget] that are set, by name."""
    given = {name: getattr(recipe.budget, name) for name in UNITS}
    return {name: float(amount) for name, amount in given.items() if amount is not None}


def in_unit(figure: str, name: str) -> str:
    """ "2", "hours" -> "2 hours"; of 1 in the singular."""
    return f"{figure} {UNITS[name].removesuffix('s' if figure == '1' else '')}"


def rounded_up(value: float) -> str:
    """To three digits and always to more, as a setting has it."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return f"{(math.floor(value / unit) + 1) * unit:g}"
