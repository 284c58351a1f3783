"""A stage that is planned already, under a recipe whose layout and other execution keys have changed.

What the recipe leaves to us stays as it was decided, unless the new layout does not allow it.
"""

from dataclasses import replace

from bessemer.formulas.shape import ModelShape
from bessemer.planner.layout import check_cluster, stage_layout
from bessemer.planner.machine.facts import Facts
from bessemer.planner.micro_batch import choose_micro_batch
from bessemer.planner.plan import StagePlan
from bessemer.planner.predict import devices_of
from bessemer.planner.recompute import settle_recompute
from bessemer.planner.rules.layout import allows, check_micro_batches
from bessemer.planner.rules.stage import check_micro_batch, compile_for, eager_only
from bessemer.recipe.schema import Optimization, Recipe


def relaid(
    plan: StagePlan, recipe: Recipe, name: str, shape: ModelShape, facts: Facts, world: int | None = None
) -> StagePlan:
    """The stage with layout, micro-batch, compilation and recomputation as the recipe has them now.

    RecipeError as in `resolve`. name: of the section, "pretrain" or "finetune". world: processes that were
    started, None: any. Doing it again changes nothing.
    """
    section: Optimization | None = recipe.finetune if name == "finetune" else recipe.pretrain
    assert section is not None, f"a stage without its section [{name}]"
    layout = stage_layout(recipe, shape, context=plan.context, world=world, kept=plan.layout)
    if recipe.parallel.layout != "auto":
        check_cluster(layout, facts)
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
