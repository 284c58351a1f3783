"""How much is computed twice so that activations fit.

`recompute` says it outright. `activation_memory` gives an amount for each rank instead: as many layers as
needed keep only their input and are recomputed fully, the first ones of the model, whose activations wait
longest.
"""

from dataclasses import dataclass, replace

from bessemer.errors import RecipeError
from bessemer.formulas.memory.rank import rank_activation_bytes
from bessemer.formulas.shape import ModelShape
from bessemer.planner.compiling import runs_compiled
from bessemer.planner.machine.facts import Facts
from bessemer.planner.plan import StagePlan
from bessemer.planner.predict import device_bytes, needed_bytes, workload
from bessemer.planner.rules.layout import allows
from bessemer.recipe.schema import Optimization
from bessemer.units import format_bytes


@dataclass(frozen=True)
class Recompute:
    """As StagePlan has it."""

    kind: str
    layers: int | None = None


def settle_recompute(
    section: Optimization, shape: ModelShape, stage: StagePlan, facts: Facts, name: str
) -> Recompute:
    """What a stage recomputes; of the stage's plan all but that is read.

    RecipeError when both keys are set, or when the amount is too small even with every layer recomputed.
    name: of the recipe's section.
    """
    limit = section.activation_memory
    if limit is None:
        return Recompute(section.recompute)
    assert isinstance(limit, int), f"{limit!r} was to be read by the schema"
    if section.recompute != "none":
        raise RecipeError(
            "activation_memory decides what is recomputed",
            found=f'{name}.activation_memory and {name}.recompute = "{section.recompute}"',
            wanted="one of them",
            fix=f"remove {name}.recompute",
        )
    chosen = _fewest(shape, stage, facts, limit)
    if chosen is None:
        least = _activations(shape, stage, facts, Recompute("full"))
        raise RecipeError(
            "activations do not fit in activation_memory",
            found=f"{format_bytes(least)} on the fullest rank with every layer recomputed, "
            f"{name}.activation_memory = {format_bytes(limit)}",
            wanted=f"{format_bytes(least)} or more",
            fix=_fix(shape, stage, facts, limit, least, name),
        )
    return chosen


def fits(section: Optimization, shape: ModelShape, stage: StagePlan, facts: Facts, share: float) -> bool:
    """Whether a micro-batch fits in `share` of a device's memory, and its activations where they may be."""
    recompute = Recompute(section.recompute)
    if isinstance(section.activation_memory, int):
        chosen = _fewest(shape, stage, facts, section.activation_memory)
        if chosen is None:
            return False
        recompute = chosen
    if facts.memory_bytes is None:
        return True
    stage = _with(stage, recompute)
    if facts.kind != "cpu" and needed_bytes(shape, stage, facts) > facts.memory_bytes:
        return False  # of a small device what is no tensor takes a larger share
    return device_bytes(shape, stage, facts) <= share * facts.memory_bytes


def _fewest(shape: ModelShape, stage: StagePlan, facts: Facts, limit: int) -> Recompute | None:
    """None: not even with all layers. More recomputed layers never hold more, but for the first one."""
    for count in range(shape.layers + 1):
        chosen = Recompute("full", count) if count else Recompute("none")
        if _activations(shape, stage, facts, chosen) <= limit:
            return chosen
    return None


def _activations(shape: ModelShape, stage: StagePlan, facts: Facts, chosen: Recompute) -> int:
    work = workload(_with(stage, chosen), facts, compiled=runs_compiled(shape, stage, facts))
    return rank_activation_bytes(shape, work, stage.layout)


def _with(stage: StagePlan, chosen: Recompute) -> StagePlan:
    return replace(stage, recompute=chosen.kind, recompute_layers=chosen.layers)


def _fix(shape: ModelShape, stage: StagePlan, facts: Facts, limit: int, least: int, name: str) -> str:
    """A smaller micro-batch where one will do, or enough memory, in whole MiB."""
    enough = f"set {name}.activation_memory={-(-least // 2**20)}MiB"
    for rows in range(stage.micro_batch - 1, 0, -1):
        smaller = replace(stage, micro_batch=rows)
        if allows(smaller.layout, smaller.micro_batches) and _fewest(shape, smaller, facts, limit):
            return f"{enough}, or {name}.micro_batch={rows}"
    return enough
