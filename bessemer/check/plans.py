"""The plans of a check: a recipe under many layouts, with the same batch, rate and compute type under each.

By the rules of every run (planner/resolve.py), and refused as a run would be. Compiled code is left out: it
differs from eager code in its last bits, and would take minutes a layout. The rate is at its peak from the
first step, so that a wrong gradient moves the weights and shows in the next loss.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bessemer.errors import RecipeError, RefusedError
from bessemer.formulas.layout import ONE_PROCESS, Layout
from bessemer.planner.limits import check_start, check_trainable
from bessemer.planner.machine.facts import Facts
from bessemer.planner.plan import StagePlan
from bessemer.planner.rules.layout import allows
from bessemer.recipe.schema import Optimization, Parallel, Recipe
from bessemer.train.stage import Stage

WHERE = "--layouts"  # what an error calls the layout's setting


@dataclass(frozen=True)
class Subject:
    """The stage of a recipe that is to train alike under every layout."""

    recipe: Recipe
    facts: Facts
    stage: Stage  # its folder and plan are still to come
    plan_of: Callable[[Recipe], StagePlan]  # under the recipe's layout

    @property
    def section(self) -> Optimization:
        """Of the recipe: the stage's kind is its name."""
        found: Optimization = getattr(self.recipe, self.stage.kind)
        return found

    def with_settings(self, **changes: Any) -> "Subject":
        section = self.section.model_copy(update=changes)
        return replace(self, recipe=self.recipe.model_copy(update={self.stage.kind: section}))


@dataclass(frozen=True)
class Planned:
    """A layout, with the plan under it or the reason why there is none."""

    layout: Layout
    plan: StagePlan | None
    refused: str | None = None


def plan_one(subject: Subject) -> StagePlan:
    """Of one process: what the others are held against."""
    return _plan(subject.with_settings(compile=False), ONE_PROCESS)


def plan_layouts(
    subject: Subject, one: StagePlan, layouts: Sequence[Layout], *, named: bool
) -> list[Planned]:
    """named: by the user, to whom a refusal is an error: RecipeError, or RefusedError for want of memory."""
    decided = _decided(subject, one)
    found = []
    for layout in layouts:
        try:
            found.append(Planned(layout, _plan(decided, layout)))
        except (RecipeError, RefusedError) as error:
            if named:
                raise
            reason = f"{error.problem.removeprefix(f'{WHERE}: ')} ({error.found})"
            found.append(Planned(layout, None, reason))
    return found


def under(recipe: Recipe, layout: Layout) -> Recipe:
    return recipe.model_copy(update={"parallel": Parallel(layout=str(layout))})


def _decided(subject: Subject, one: StagePlan) -> Subject:
    """What the recipe leaves to us must not follow from the layout."""
    same = {"batch_tokens": one.batch_tokens, "lr": one.lr, "dtype": one.dtype, "warmup": one.warmup}
    length = {"steps": one.steps, "tokens": None} if subject.stage.kind == "pretrain" else {}
    return subject.with_settings(compile=False, **same, **length)


def _plan(subject: Subject, layout: Layout) -> StagePlan:
    """With the recipe's micro-batch where the layout takes it."""
    given = subject.section.micro_batch != "auto"
    try:
        plan = subject.plan_of(under(subject.recipe, layout))
    except RecipeError:
        if not given:
            raise
        given = False  # the pipeline's schedule may want another number of them
        plan = subject.plan_of(under(subject.with_settings(micro_batch="auto").recipe, layout))
    plan = replace(plan, schedule="constant", warmup=0, decay_steps=0)
    plan = plan if given else _several(plan)
    shape = subject.stage.shape
    check_trainable(subject.recipe, shape)
    check_start(under(subject.recipe, layout), shape, plan, subject.facts)
    return plan


def _several(plan: StagePlan) -> StagePlan:
    """With two micro-batches at least where the rows allow it, so that gradients are accumulated too."""
    share = -(-plan.batch_rows // plan.layout.data)
    half = replace(plan, micro_batch=min(plan.micro_batch, -(-share // 2)))
    return half if allows(plan.layout, half.micro_batches) else plan
