"""What a plan's money, energy and carbon are counted with: price, PUE, grid; or the key that is missing.

The table of predictions has the sums alone; a reader who cannot see the price of an hour cannot check them.
"""

from typing import Any

from bessemer.energy.accounting.facility import (
    CHEAPEST,
    DEAREST,
    grid_region,
    kg_per_kwh,
    power_usage_effectiveness,
    prices,
)


def rates_document(recipe: Any, facts: Any, devices: int) -> dict[str, Any]:
    """`counted_with`. devices: of the job."""
    from bessemer.planner.machine.planned import listed_device

    device, code = listed_device(facts), grid_region(recipe)
    bill, grid = prices(recipe, device), kg_per_kwh(code)
    pue, pue_from = power_usage_effectiveness(recipe.cluster.pue, code, devices)
    listed = bill.whence.startswith("list price")
    return {
        "price": bill.whence,
        "price_source": device.price_source if device and listed else None,
        "servers": facts.kind != "cpu",  # that energy is counted around the devices too
        "tdp_w": device.tdp_w if device else None,
        "pue": pue,
        "pue_from": pue_from,
        "region": code,
        "g_co2e_per_kwh": None if grid.value is None else 1000.0 * grid.value,
    }


def show_rates(rates: dict[str, Any]) -> str:
    money = f"money: {rates['price']}"
    if rates["price_source"]:
        elsewhere = f"{CHEAPEST:g} to {DEAREST:g} times that elsewhere"
        money += f" ({rates['price_source']}), {elsewhere}: cluster.usd_per_device_hour is yours"
    servers = "with the servers around the devices, and " if rates["servers"] else ""
    energy = f"energy: {servers}PUE {rates['pue']:g} ({rates['pue_from']})"
    if rates["servers"] and rates["tdp_w"] is None:
        energy = "energy: nobody knows the device's watts: tdp_w of [device] in a cluster file"
    carbon = 'carbon: no region is named: cluster.region, such as "DEU"'
    if rates["region"]:
        carbon = f"carbon: {rates['g_co2e_per_kwh']:.0f} g CO2e a kWh, the yearly mean of {rates['region']}"
    return "\n".join([money, energy, carbon])
