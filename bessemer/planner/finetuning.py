"""The fine-tuning stage of a recipe, from the number of its examples: rows, steps, rate and layout.

As planner/resolve.py decides pre-training, and by the same functions where both ask the same. Batch and rate
follow from the stage that made the weights, where it is known: few examples get smaller batches, so that
there are steps enough, and the weights are to be moved and not replaced.
"""

from collections.abc import Sequence
from dataclasses import replace

from bessemer.errors import RecipeError
from bessemer.formulas.objective import NEXT_TOKEN, Objective
from bessemer.formulas.shape import ModelShape
from bessemer.planner.layout import WHERE
from bessemer.planner.machine.facts import Facts
from bessemer.planner.plan import Derived, StagePlan
from bessemer.planner.rules.adapter import adapter_lr, check_adapter_stages
from bessemer.planner.rules.objective import preference_lr
from bessemer.planner.rules.rollout import is_sampled, rollouts_of
from bessemer.planner.searched import Place, choose, given_layout, with_chosen, with_devices
from bessemer.planner.stage import Decided, Rules, choose_dtype, rows_of, stage_plan
from bessemer.recipe.schema import Finetune, Recipe

_LR_SHARE = 0.1
_LR_ALONE = 3e-5
_ROWS_ALONE = 16
_MIN_STEPS = 100


def resolve_finetune(
    recipe: Recipe,
    shape: ModelShape,
    num_rows: int,
    facts: Facts,
    pretrain: StagePlan | None = None,
    *,
    world: int | None = None,
    objective: Objective = NEXT_TOKEN,
    prompts: Sequence[int] = (),
    layout_from: str = WHERE,
) -> tuple[StagePlan, list[Derived]]:
    """The fine-tuning stage for `num_rows` packed rows of examples.

    pretrain: the stage that made the weights, where it is known; rate and batch follow from it.
    world, layout_from: as in `resolve`; the layout is that of [parallel] too.
    objective: planner/rules/objective.py.
    prompts: tokens of each, where the answers are to be the model's own.
    """
    section = _section(recipe)
    rules = Rules("finetune")
    context, place = finetune_context(section, shape), Place(world, layout_from)
    layout, facts = given_layout(recipe, shape, context, with_devices(recipe, facts, place), place)
    dtype = pretrain.dtype if pretrain and section.dtype == "auto" else section.dtype
    dtype = choose_dtype(dtype, facts, rules)
    if is_sampled(section):
        rollouts, rows = rollouts_of(section, prompts, context, rules)
        steps = rollouts.rounds * rollouts.steps
        objective = replace(objective, temperature=section.temperature, rollouts=rollouts)
    else:
        rows = _rows(section, context, num_rows, pretrain, rules)
        steps = max(1, -(-section.epochs * num_rows // rows))
        rules.settle(
            "steps", "auto", steps, f"{section.epochs} epochs of {num_rows} rows, {rows} rows a step"
        )
    lr = rules.settle("lr", section.lr, *_learning_rate(section, shape, pretrain, objective))
    decided = Decided(context, steps, rows, lr, dtype, layout, objective)
    decided, chosen, facts = choose(recipe, section, shape, decided, facts, place)
    check_adapter_stages(shape, decided.layout)
    settled = with_chosen(section, chosen, rules)
    return stage_plan(recipe, settled, shape, decided, facts, rules), rules.derived


def finetune_context(section: Finetune, shape: ModelShape) -> int:
    """Tokens in a row of the task. Longer rows than the model has seen are refused."""
    if section.context == "auto":
        return shape.context
    longest = shape.longest_row
    if section.context > longest:
        raise RecipeError(
            "finetune.context is longer than the model has seen",
            found=f"finetune.context = {section.context}, model.context = {longest}",
            wanted=f"at most {longest}",
            fix=f"set finetune.context={longest}, or pre-train with a longer model.context",
        )
    return section.context


def _section(recipe: Recipe) -> Finetune:
    if recipe.finetune is None:
        raise RecipeError(
            "the recipe has no [finetune] section",
            found=f"recipe {recipe.name} with pre-training only",
            wanted="[finetune] with the task's data",
            fix='add [finetune] and data = { path = "train.jsonl" }',
        )
    return recipe.finetune


def _learning_rate(
    section: Finetune, shape: ModelShape, pretrain: StagePlan | None, objective: Objective
) -> tuple[float, str]:
    """(peak, the rule that it follows from), where the recipe has "auto"."""
    lr, rule = _LR_ALONE, "usual for full fine-tuning of a model that was made elsewhere"
    if pretrain is not None:
        lr = float(f"{_LR_SHARE * pretrain.lr:.1e}")
        rule = "a tenth of the peak in pre-training: the weights are to be moved, not replaced"
    lr, rule = preference_lr(section.method, None if pretrain is None else pretrain.lr) or (lr, rule)
    if shape.adapter is not None:
        return adapter_lr(lr, alone=pretrain is None and objective == NEXT_TOKEN)
    return lr, rule


def _rows(section: Finetune, context: int, num_rows: int, pretrain: StagePlan | None, rules: Rules) -> int:
    given = rows_of(section, "finetune", context)
    if given is not None:
        return given
    largest = pretrain.batch_rows if pretrain else _ROWS_ALONE
    rows = max(1, min(largest, section.epochs * num_rows // _MIN_STEPS))
    rule = f"{_MIN_STEPS} steps or more, at most {largest} rows"
    rules.settle("batch_tokens", "auto", rows * context, rule)
    return rows
