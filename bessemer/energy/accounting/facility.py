"""From the node to the building, the grid and the bill: PUE, carbon of a kilowatt-hour, price.

One rule for plans and accounts. PUE: the recipe's, else the cloud region's, else 1.0 for one device under a
desk and 1.25 for a cluster (computing centres; large clouds publish 1.1, the mean of all is 1.56).
Around accelerators a server draws 240 W each, +-50, its CPUs included; a workstation around a lone one 100 W,
60 to 200 (energy/power.py). Where no meter reads the node that is added, less what its CPUs drew.
"""

from dataclasses import dataclass

from bessemer.energy.grid.regions import region
from bessemer.energy.power import Band, around_each
from bessemer.energy.quantity import UNKNOWN, Quantity, exactly
from bessemer.errors import RecipeError
from bessemer.hardware import Device
from bessemer.recipe.schema import Recipe

_ALONE_PUE, _CLUSTER_PUE = 1.0, 1.25
# List prices of one device differ by a factor of three between sellers.
CHEAPEST, DEAREST = 0.8, 3.0


@dataclass(frozen=True)
class Prices:
    """What a run is billed by."""

    device_hour: Quantity  # [USD] rent, or the wear of own machines
    usd_per_kwh: float  # 0 where the rent pays for it
    whence: str

    def usd(self, device_hours: Quantity, kwh: Quantity) -> Quantity:
        """kwh: at the meter of the building."""
        hours = device_hours.multiplied(self.device_hour)
        return hours.plus(kwh.times(self.usd_per_kwh)) if self.usd_per_kwh else hours


def grid_region(recipe: Recipe) -> str | None:
    return recipe.cluster.region or recipe.energy.region


def power_usage_effectiveness(given: float | None, code: str | None, devices: int) -> tuple[float, str]:
    """(facility over IT energy, whence). given: the recipe's; code: of the region."""
    if given is not None:
        return _checked_pue(given), "as given"
    known = region(code).pue if code else None
    if known is not None:
        return known, f"of {code}"
    return (_ALONE_PUE, "assumed: one machine") if devices == 1 else (_CLUSTER_PUE, "assumed: a cluster")


def kg_per_kwh(code: str | None) -> Quantity:
    """Yearly mean of the region's grid. UNKNOWN without a region: no grid is an average one."""
    if code is None:
        return UNKNOWN
    grid = region(code)
    low, high = grid.band
    return Quantity.of(Band(grid.g_co2e_per_kwh, low, high), "assumed").times(1e-3)


def prices(recipe: Recipe, device: Device | None) -> Prices:
    """RecipeError where the recipe names two prices."""
    check_prices(recipe)
    tariff, wear = recipe.energy.tariff_usd_per_kwh, recipe.energy.amortisation_usd_per_device_hour
    given = recipe.cluster.usd_per_device_hour
    if tariff is not None:
        words = f"{tariff:g} USD a kWh" + (f" and {wear:g} USD of wear a device-hour" if wear else "")
        return Prices(exactly(wear or 0.0), tariff, words)
    if given is not None:
        return Prices(exactly(given), 0.0, f"{given:g} USD a device-hour")
    listed = device.usd_per_device_hour if device else None
    if not listed:
        words = "no price: name cluster.usd_per_device_hour, or energy.tariff_usd_per_kwh"
        return Prices(UNKNOWN, 0.0, words)
    band = Band(listed, CHEAPEST * listed, DEAREST * listed)
    return Prices(Quantity.of(band, "assumed"), 0.0, f"list price, {listed:g} USD a device-hour")


def check_prices(recipe: Recipe) -> None:
    """Rented or own: two prices would be two bills."""
    tariff, wear = recipe.energy.tariff_usd_per_kwh, recipe.energy.amortisation_usd_per_device_hour
    if tariff is not None and recipe.cluster.usd_per_device_hour is not None:
        raise RecipeError(
            "two prices for one run",
            found=f"cluster.usd_per_device_hour = {recipe.cluster.usd_per_device_hour:g}, "
            f"energy.tariff_usd_per_kwh = {tariff:g}",
            wanted="the price of a rented device-hour, or that of electricity for own machines",
            fix="take one of them out",
        )
    if wear is not None and tariff is None:
        raise RecipeError(
            "energy.amortisation_usd_per_device_hour has no effect",
            found="no energy.tariff_usd_per_kwh beside it",
            wanted="both, for own machines",
            fix="add energy.tariff_usd_per_kwh, or take it out",
        )


def around_device(recipe: Recipe, device: Device | None, devices: int) -> Band:
    """Watts of the server around each of a job's `devices`, for plans and for accounts."""
    return around_each(device, devices, recipe.cluster.per_node)


def rest_of_node_j(around_w: Band, device_hours: float, cpu_j: float) -> Quantity:
    """What servers draw around their accelerators beside the CPUs that were read."""
    watts = (around_w.value, around_w.low, around_w.high)
    joules = [max(0.0, each * device_hours * 3600.0 - cpu_j) for each in watts]
    return Quantity.of(Band(*joules), "assumed")


def _checked_pue(value: float) -> float:
    if not 1.0 <= value <= 5.0:
        raise RecipeError(
            "no facility has such a PUE",
            found=f"{value:g}",
            wanted="facility over IT energy: 1.0 (nothing beside the machines) to 5",
            fix="large clouds publish 1.1, the mean of all centres is 1.56",
        )
    return value
