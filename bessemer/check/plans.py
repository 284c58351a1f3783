"""The plans of a check: a recipe under many layouts, with the same batch, rate and compute type under each.

By the rules of every run (planner/resolve.py), and refused as a run would be. Compiled code is left out: it
differs from eager code in its last bits, and would take minutes a layout. The rate is at its peak from the
first step, so that a wrong gradient moves the weights and shows in the next loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bessemer.errors import RecipeError, RefusedError
from bessemer.formulas.layout import ONE_PROCESS, Layout
from bessemer.planner.facts import Facts
from bessemer.planner.layout_rules import allows
from bessemer.planner.limits import check_start, check_trainable
from bessemer.planner.plan import Plan, StagePlan
from bessemer.planner.resolve import resolve
from bessemer.recipe.schema import Parallel, Recipe

WHERE = "--layouts"  # what an error calls the layout's setting


@dataclass(frozen=True)
class Planned:
    """A layout, with the plan under it or the reason why there is none."""

    layout: Layout
    plan: StagePlan | None
    refused: str | None = None


def plan_one(recipe: Recipe, facts: Facts) -> Plan:
    """Of one process: what the others are held against."""
    return _plan(_with(recipe, compile=False), ONE_PROCESS, facts)


def plan_layouts(
    recipe: Recipe, one: Plan, layouts: Sequence[Layout], facts: Facts, *, named: bool
) -> list[Planned]:
    """named: by the user, to whom a refusal is an error: RecipeError, or RefusedError for want of memory."""
    decided = _decided(recipe, one.pretrain)
    found = []
    for layout in layouts:
        try:
            found.append(Planned(layout, _plan(decided, layout, facts).pretrain))
        except (RecipeError, RefusedError) as error:
            if named:
                raise
            reason = f"{error.problem.removeprefix(f'{WHERE}: ')} ({error.found})"
            found.append(Planned(layout, None, reason))
    return found


def _decided(recipe: Recipe, one: StagePlan) -> Recipe:
    """What the recipe leaves to us must not follow from the layout."""
    same = {"steps": one.steps, "batch_tokens": one.batch_tokens, "lr": one.lr, "dtype": one.dtype}
    return _with(recipe, compile=False, tokens=None, warmup=one.warmup, **same)


def _plan(recipe: Recipe, layout: Layout, facts: Facts) -> Plan:
    """With the recipe's micro-batch where the layout takes it."""
    laid = recipe.model_copy(update={"parallel": Parallel(layout=str(layout))})
    given = recipe.pretrain.micro_batch != "auto"
    try:
        plan = resolve(laid, facts, layout_from=WHERE)
    except RecipeError:
        if not given:
            raise
        given = False  # the pipeline's schedule may want another number of them
        plan = resolve(_with(laid, micro_batch="auto"), facts, layout_from=WHERE)
    stage = replace(plan.pretrain, schedule="constant", warmup=0, decay_steps=0)
    stage = stage if given else _several(stage)
    check_trainable(laid, plan.shape)
    check_start(laid, plan.shape, stage, facts)
    return replace(plan, pretrain=stage)


def _several(plan: StagePlan) -> StagePlan:
    """With two micro-batches at least where the rows allow it, so that gradients are accumulated too."""
    share = -(-plan.batch_rows // plan.layout.data)
    half = replace(plan, micro_batch=min(plan.micro_batch, -(-share // 2)))
    return half if allows(plan.layout, half.micro_batches) else plan


def _with(recipe: Recipe, **pretrain: Any) -> Recipe:
    return recipe.model_copy(update={"pretrain": recipe.pretrain.model_copy(update=pretrain)})
