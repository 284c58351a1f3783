"""Where a run stood and on what, from its directory: region, PUE, prices, devices."""

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from bessemer.energy.accounting.facility import grid_region, kg_per_kwh, power_usage_effectiveness
from bessemer.energy.grid.hourly import Hourly, read_hourly
from bessemer.energy.grid.intensity import seen_hours
from bessemer.energy.grid.regions import region
from bessemer.errors import RecipeError
from bessemer.hardware import Device, find
from bessemer.recipe.load import load
from bessemer.recipe.schema import Recipe
from bessemer.rundir import Row, read_object, read_rows, stages

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

    @property
    def listed(self) -> Device | None:
        """The catalogue's row; None where it has none."""
        return find(self.device) if self.device else None

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
    return replace(place, hourly=_hourly(run, recipe) if intensity is None else read_hourly(intensity))


def _hourly(run: Path, recipe: Recipe) -> Hourly | None:
    """The hours that the run saw, and what the recipe's file has beside them. None: neither.

    That file is renewed while a run goes on, and may be another one by now, or none: that is no mistake here.
    """
    grams: dict[int, float] = {}
    if recipe.energy.intensity is not None:
        base = (read_object(run / "receipt.json") or {}).get("recipe_folder") or "."
        with suppress(RecipeError):
            grams |= read_hourly(Path(base) / recipe.energy.intensity).grams
    for stage in stages(run):
        grams |= seen_hours(read_rows(stage / "events.jsonl"))
    return Hourly(grams) if grams else None


def _world(stage: Row) -> int:
    """Ranks of a stage's layout."""
    layout = (stage.get("plan") or {}).get("layout") or {}
    return math.prod(int(layout.get(axis) or 1) for axis in _AXES)
