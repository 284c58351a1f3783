"""`parallel.layout = "auto"`: when the layout is searched, and on how many devices.

- For a cluster that is planned: on all of its devices; on one, where the model does not fit as the recipe
  has it, how it would.
- In training under torchrun or srun: on all processes that were started, each an accelerator.
- In training on a machine with several accelerators: on all of them, or where the batch does not fill them
  on the most that it fills.
- On a CPU, whose ranks share the same cores: for as many processes as torchrun or srun started, by what was
  calibrated here (search/processes.py); where none were started, one, or as many as were calibrated together
  if that is a tenth faster.
- Else one process, or as many as were started, sharded: a device that the catalogue does not know has no
  links to choose a layout by.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from bessemer.errors import RecipeError
from bessemer.formulas.layout import ONE_PROCESS, Layout
from bessemer.formulas.shape import ModelShape
from bessemer.planner.layout import WHERE, check_cluster, stage_layout
from bessemer.planner.machine.facts import Facts
from bessemer.planner.machine.planned import cluster_of, listed_device
from bessemer.planner.plan import Derived
from bessemer.planner.predict import devices_of
from bessemer.planner.search.choose import Chosen, choose_layout
from bessemer.planner.search.processes import ChosenProcesses, choose_processes
from bessemer.planner.stage import Decided, Rules
from bessemer.recipe.schema import Optimization, Recipe


@dataclass(frozen=True)
class Place:
    """world: processes that were started; None: as many are started as the layout has ranks.
    layout_from: what an error calls the layout's setting. crowded: one device too is searched, for how to
    run a model that does not fit on it as the recipe has it. made: steps of the plan that another run has
    made, from which this one goes on as a fork."""

    world: int | None = None
    layout_from: str = WHERE
    crowded: bool = False
    made: int = 0


def with_devices(recipe: Recipe, facts: Facts, place: Place) -> Facts:
    """The facts with as many devices as an automatic layout is searched for, else as they are."""
    more = replace(facts, devices=_devices(facts, place))
    return more if is_searched(recipe, more, place) else facts


def is_searched(recipe: Recipe, facts: Facts, place: Place) -> bool:
    """Whether there is a choice. facts: those of `with_devices`."""
    known = facts.kind != "cpu" and listed_device(facts) is not None
    return recipe.parallel.layout == "auto" and known and (facts.devices > 1 or place.crowded)


def choose(
    recipe: Recipe,
    section: Optimization,
    shape: ModelShape,
    decided: Decided,
    facts: Facts,
    place: Place,
) -> tuple[Decided, Chosen | ChosenProcesses | None, Facts]:
    """The stage with the layout that the search found, and the facts with its devices.

    None where there was nothing to search: then `decided` has the layout that was asked for.
    RefusedError when nothing fits; RecipeError when the model cannot be split so, or when energy.prefer has
    nothing to choose from.
    """
    if not is_searched(recipe, facts, place):
        _check_preference(recipe, facts)
        if facts.kind != "cpu" or recipe.parallel.layout != "auto" or facts.cluster is not None:
            return decided, None, facts
        processes = choose_processes(recipe, section, shape, decided, facts, place.world)
        layout = decided.layout if processes is None else processes.layout
        return replace(decided, layout=layout), processes, facts
    # Processes that were started must all have work; a machine's accelerators need not.
    counts = _fewer(facts.devices) if _is_own_machine(facts, place) else iter([facts.devices])
    for devices in counts:
        less = replace(facts, devices=devices)
        if devices == 1 and not place.crowded:
            return decided, None, less
        try:
            chosen = choose_layout(section, shape, decided, cluster_of(recipe, less), recipe.energy.prefer)
        except RecipeError:
            if not _is_own_machine(facts, place):
                raise
            continue
        return replace(decided, layout=chosen.layout), chosen, less
    raise AssertionError(f"no count of devices was tried on {facts.devices}")


def given_layout(
    recipe: Recipe, shape: ModelShape, context: int, facts: Facts, place: Place
) -> tuple[Layout, Facts]:
    """The recipe's layout, checked, with the facts of as many devices; one process where it is searched."""
    if is_searched(recipe, facts, place):
        return ONE_PROCESS, facts
    where, devices = place.layout_from, facts.devices
    layout = stage_layout(recipe, shape, context=context, world=place.world, where=where, devices=devices)
    if recipe.parallel.layout != "auto":
        check_cluster(layout, facts, where, shape, context)
    return layout, devices_of(layout, facts)


def with_chosen(section: Optimization, chosen: Chosen | ChosenProcesses | None, rules: Rules) -> Optimization:
    """The section with what the search has chosen beside the layout."""
    if chosen is None:
        return section
    rules.derived.append(Derived("parallel.layout", str(chosen.layout), chosen.rule))
    settled = chosen.section(section)
    if settled.recompute != section.recompute:
        key = f"{rules.section}.recompute"
        rules.derived.append(Derived(key, settled.recompute, "chosen with the layout, for what memory holds"))
    return settled


def _devices(facts: Facts, place: Place) -> int:
    if facts.kind == "cpu" or facts.devices > 1:
        return facts.devices
    return place.world or facts.local_devices or 1


def _is_own_machine(facts: Facts, place: Place) -> bool:
    return place.world is None and facts.cluster is None


def _fewer(devices: int) -> Iterator[int]:
    """Counts that divide a machine's devices, the most first."""
    return (count for count in range(devices, 0, -1) if devices % count == 0)


def _check_preference(recipe: Recipe, facts: Facts) -> None:
    if recipe.energy.prefer != "time":
        is_chosen = facts.kind == "cpu" and recipe.parallel.layout == "auto"
        where = "on a CPU, whose energy goes with the time" if is_chosen else "with one layout"
        raise RecipeError(
            "energy.prefer has no effect here",
            found=f'energy.prefer = "{recipe.energy.prefer}" {where}',
            wanted='several accelerators and parallel.layout = "auto": else there is nothing to choose from',
            fix="remove energy.prefer, or plan for a cluster such as --cluster 64xH100",
        )
