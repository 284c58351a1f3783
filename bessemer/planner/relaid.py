"""A stage that is planned already, under a recipe whose layout and other execution keys have changed.

What the recipe leaves to us stays as it was decided, unless the new layout does not allow it. An automatic
layout is searched again when another number of processes was started: a run goes on with the nodes that are
left, in the layout that is best on them.
"""

from dataclasses import replace

from bessemer.formulas.layout import Layout
from bessemer.formulas.shape import ModelShape
from bessemer.planner.layout import check_cluster, stage_layout
from bessemer.planner.limits import fits
from bessemer.planner.machine.facts import Facts
from bessemer.planner.micro_batch import choose_micro_batch
from bessemer.planner.plan import StagePlan
from bessemer.planner.predict import devices_of
from bessemer.planner.recompute import settle_recompute
from bessemer.planner.rules.layout import allows, check_micro_batches
from bessemer.planner.rules.stage import check_micro_batch, compile_for, eager_only
from bessemer.planner.searched import Place, choose, with_devices
from bessemer.planner.stage import Decided
from bessemer.recipe.schema import Optimization, Recipe


def relaid(
    plan: StagePlan,
    recipe: Recipe,
    name: str,
    shape: ModelShape,
    facts: Facts,
    world: int | None = None,
    *,
    said: bool = False,
) -> StagePlan:
    """The stage with layout, micro-batch, compilation and recomputation as the recipe has them now.

    RecipeError as in `resolve`, and RefusedError where the processes that were started are too few for the
    model. name: of the section, "pretrain" or "finetune". world: processes that were started, None: any.
    said: the recipe has said until now what is recomputed, so it was not chosen. Doing it again changes
    nothing.
    """
    section = section_of(recipe, name)
    layout = stage_layout(recipe, shape, context=plan.context, world=world, kept=plan.layout)
    if recipe.parallel.layout != "auto":
        check_cluster(layout, facts)
    elif layout != plan.layout:
        layout, section = _searched_again(replace(plan, layout=layout), recipe, section, shape, facts, world)
    elif not said and _is_chosen(plan, section, shape, facts):
        section = section.model_copy(update={"recompute": plan.recompute})
    facts = devices_of(layout, facts)
    compiles = compile_for(section, layout, name)
    if compiles == "auto" and eager_only(plan.layout, plan.recompute) is None:
        compiles = plan.compile
    changed = layout != plan.layout
    plan = replace(plan, layout=layout, compile=compiles, recompute=section.recompute, recompute_layers=None)
    if section.micro_batch != "auto":
        plan = replace(plan, micro_batch=section.micro_batch)
    elif changed or not allows(layout, plan.micro_batches):
        plan = replace(plan, micro_batch=choose_micro_batch(section, shape, plan, facts)[0])
    check_micro_batch(plan.micro_batch, plan.batch_rows, name)
    check_micro_batches(layout, plan.batch_rows, plan.micro_batch, name)
    recompute = settle_recompute(section, shape, plan, facts, name)
    return replace(plan, recompute=recompute.kind, recompute_layers=recompute.layers)


def _is_chosen(plan: StagePlan, section: Optimization, shape: ModelShape, facts: Facts) -> bool:
    """Whether its recomputation was chosen with its layout, which may not fit without. That of one process is
    chosen only where it does not."""
    if "recompute" in section.model_fields_set or section.activation_memory is not None:
        return False
    without = replace(plan, recompute="none", recompute_layers=None)
    return not plan.recompute_layers and (plan.layout.world > 1 or not fits(shape, without, facts))


def section_of(recipe: Recipe, name: str) -> Optimization:
    """Of a stage: "pretrain" or "finetune"."""
    section: Optimization | None = recipe.finetune if name == "finetune" else recipe.pretrain
    assert section is not None, f"a stage without its section [{name}]"
    return section


def _searched_again(
    plan: StagePlan,
    recipe: Recipe,
    section: Optimization,
    shape: ModelShape,
    facts: Facts,
    world: int | None,
) -> tuple[Layout, Optimization]:
    """The layout of so many processes, and the section with what was chosen beside it. plan: with the layout
    to take where nothing can be compared."""
    place = Place(world)
    decided = Decided(
        plan.context, plan.steps, plan.batch_rows, plan.lr, plan.dtype, plan.layout, plan.objective
    )
    decided, chosen, _ = choose(recipe, section, shape, decided, with_devices(recipe, facts, place), place)
    return decided.layout, section if chosen is None else chosen.section(section)
