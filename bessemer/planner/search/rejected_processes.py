"""Why the other layouts of a CPU's processes were not chosen: of each combination of axes the best one."""

from collections.abc import Iterable
from typing import TypeVar

from bessemer.formulas.layout import AXES
from bessemer.formulas.shape import ModelShape
from bessemer.planner.calibrated.step_time import step_seconds
from bessemer.planner.compiling import as_run
from bessemer.planner.limits import usable_bytes
from bessemer.planner.machine.facts import Facts
from bessemer.planner.plan import StagePlan
from bessemer.planner.predict import device_bytes
from bessemer.planner.search.processes import ChosenProcesses, Way
from bessemer.planner.search.rejected import PART_WORDS, Rejected
from bessemer.units import format_bytes

_Each = TypeVar("_Each", StagePlan, Way)


def rejected_processes(chosen: ChosenProcesses, shape: ModelShape, facts: Facts) -> list[Rejected]:
    """First what does not fit, then what is slower."""
    rows = []
    # Of a layout that stands twice the first is as the recipe has it, the second with everything recomputed.
    for stages in _alike(chosen.too_large):
        stage, count = stages[0], len({each.layout for each in stages})
        needed, usable = device_bytes(shape, stage, facts), usable_bytes(facts)
        reason = f"its ranks need {format_bytes(needed)}, more than fits in the {format_bytes(usable)} "
        reason += "that they may take"
        rows.append(Rejected(stage.layout, stage.micro_batch, stage.recompute, reason, count))
    for ways in _alike(chosen.ranked[1:]):
        way = ways[0]
        reason = _slower(way, chosen.ranked[0], shape, facts)
        rows.append(Rejected(way.layout, way.stage.micro_batch, way.stage.recompute, reason, len(ways)))
    return rows


def _alike(found: Iterable[_Each]) -> list[list[_Each]]:
    """Those whose layouts have the same axes, in the order in which they stand."""
    groups: dict[tuple[str, ...], list[_Each]] = {}
    for each in found:
        axes = tuple(axis for axis in AXES if getattr(each.layout, axis) > 1)
        groups.setdefault(axes, []).append(each)
    return list(groups.values())


def _slower(way: Way, best: Way, shape: ModelShape, facts: Facts) -> str:
    change = (way.step_s or 0.0) / (best.step_s or 1.0) - 1.0
    if change < 0.005:
        too_little = "less than a prediction is sure of"
        if best.layout.world == 1 < way.layout.world:
            too_little = f"too little for starting {way.layout.world} processes"
        pace = "as fast" if change > -0.005 else f"{-change:.0%} faster, {too_little}"
        return f"fits and is {pace}; the chosen one is plainer"
    theirs, ours = (_parts(each, shape, facts) for each in (way, best))
    worse = max(theirs, key=lambda name: theirs[name] - ours[name])
    return (
        f"fits, {change:.0%} slower: {PART_WORDS[worse]} {theirs[worse]:.3g} s, "
        f"{ours[worse]:.3g} s in the chosen one"
    )


def _parts(way: Way, shape: ModelShape, facts: Facts) -> dict[str, float]:
    """Seconds by name, which add up to what the way takes."""
    found = step_seconds(shape, as_run(shape, way.stage, facts), facts)
    assert found is not None and way.step_s is not None, "a layout that was timed"
    return {name: seconds * way.step_s / found.value for name, seconds in found.parts.items()}
