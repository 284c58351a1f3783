"""Where a run stood and on what, from its directory: region, PUE, prices, devices."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from bessemer.energy.facility import grid_region, kg_per_kwh, power_usage_effectiveness
from bessemer.energy.grid import region
from bessemer.energy.hourly import Hourly, read_hourly
from bessemer.recipe.load import load
from bessemer.recipe.schema import Recipe
from bessemer.rundir import Row, read_object

_AXES = ("replicate", "shard", "tensor", "pipeline", "context")


@dataclass(frozen=True)
class Place:
    """Where a run stood, and on what."""

    recipe: Recipe
    device: str | None
    is_cpu: bool
    devices: int  # of the stage that had the most
    hourly: Hourly | None = None

    @property
    def region(self) -> str | None:
        return grid_region(self.recipe)

    def devices_of(self, stage: Row) -> int:
        """Of one stage, by its stage.json; ranks of a CPU share the machine."""
        return 1 if self.is_cpu else _world(stage)

    @property
    def location(self) -> str | None:
        return None if self.region is None else region(self.region).name

    @property
    def hardware(self) -> str | None:
        return None if self.device is None else f"{self.devices} x {self.device}"

    @property
    def pue(self) -> tuple[float, str]:
        return power_usage_effectiveness(self.recipe.cluster.pue, self.region, self.devices)


def place_of(run: Path, code: str | None, pue: float | None, intensity: Path | None) -> Place:
    """code, pue: instead of the recipe's. RecipeError for a region that there is not, with the nearest."""
    file = run / "recipe.toml"
    recipe = load(str(file), []).recipe if file.is_file() else Recipe(name="run")
    asked = {"region": code, "pue": pue}
    given = {name: value for name, value in asked.items() if value is not None}
    if given:
        recipe = recipe.model_copy(update={"cluster": recipe.cluster.model_copy(update=given)})
    device = (read_object(run / "receipt.json") or {}).get("device") or {}
    plan = read_object(run / "plan.json") or {}
    is_cpu = device.get("kind", "cpu") == "cpu"
    worlds = [_world(read_object(file) or {}) for file in run.glob("*/stage.json")]
    devices = 1 if is_cpu else max(worlds, default=1)
    place = Place(recipe, plan.get("device") or device.get("name"), is_cpu, devices)
    kg_per_kwh(place.region)  # an unknown region is told before anything is counted
    return place if intensity is None else replace(place, hourly=read_hourly(intensity))


def _world(stage: Row) -> int:
    """Ranks of a stage's layout."""
    layout = (stage.get("plan") or {}).get("layout") or {}
    return math.prod(int(layout.get(axis) or 1) for axis in _AXES)
