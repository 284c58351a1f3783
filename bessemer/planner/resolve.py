"""From a recipe and the facts to a plan. Pure, torch-free, and the one home of cross-checks.

`resolve` raises RecipeError for a recipe that contradicts itself or asks for what cannot be. What can
be planned but not trained yet (`planner/limits.py`) is refused by `check_trainable` and `check_start`,
which the training verbs call and `bessemer plan` does not.
"""

from bessemer.errors import RecipeError
from bessemer.formulas import sizing
from bessemer.formulas.flops import train_flops_per_token
from bessemer.formulas.layout import Layout
from bessemer.formulas.parameters import active_params, total_params
from bessemer.formulas.shape import ModelShape
from bessemer.planner.budget import hours_allowed
from bessemer.planner.facts import Facts
from bessemer.planner.layout import WHERE, check_cluster, parse_layout, stage_layout
from bessemer.planner.plan import Derived, Plan, StagePlan
from bessemer.planner.predict import devices_of, predict
from bessemer.planner.shape import resolve_shape
from bessemer.planner.stage import Decided, Rules, choose_dtype, pretrain_length, rows_of, stage_plan
from bessemer.recipe.schema import Finetune, Recipe

_FINETUNE_LR_SHARE = 0.1
_FINETUNE_LR_ALONE = 3e-5
_FINETUNE_ROWS_ALONE = 16
_FINETUNE_MIN_STEPS = 100


def resolve(recipe: Recipe, facts: Facts, *, world: int | None = None, layout_from: str = WHERE) -> Plan:
    """Everything that a run needs to know, decided once.

    world: processes that were started (torchrun); None: as many are started as the layout has ranks.
    layout_from: what an error calls the layout's setting.
    """
    check_recipe(recipe, world=world, layout_from=layout_from)
    shape, derived = resolve_shape(recipe, facts)
    _check_data(shape, facts)
    layout = stage_layout(recipe, shape, world=world, where=layout_from)
    if recipe.parallel.layout != "auto":
        check_cluster(layout, facts, layout_from)
    facts = devices_of(layout, facts)
    rules = Rules("pretrain")
    dtype = choose_dtype(recipe.pretrain.dtype, facts, rules)
    hours = hours_allowed(recipe, facts)
    steps, rows = pretrain_length(recipe.pretrain, shape, facts, hours, dtype, rules)
    flops = train_flops_per_token(shape, shape.context) * steps * rows * shape.context
    rule = f"0.3118 C^-0.125 at C = {flops:.1e} FLOPs, between 1e-4 and 3e-3 (arXiv:2401.02954)"
    lr = rules.settle("lr", recipe.pretrain.lr, sizing.learning_rate_for(flops), rule)
    decided = Decided(shape.context, steps, rows, lr, dtype, layout)
    stage = stage_plan(recipe.pretrain, shape, decided, facts, rules)
    return Plan(
        name=recipe.name,
        seed=recipe.seed,
        shape=shape,
        params=total_params(shape),
        params_active=active_params(shape),
        pretrain=stage,
        device=facts.device,
        layout=layout_document(stage),
        predicted=predict(recipe, shape, stage, facts),
        derived=[*derived, *rules.derived],
    )


def check_recipe(recipe: Recipe, *, world: int | None = None, layout_from: str = WHERE) -> Layout:
    """What holds for every recipe, also under a run that exists. Returns its layout, not yet checked
    against a model."""
    layout = parse_layout(recipe.parallel.layout, layout_from, world)
    _refuse_contradictions(recipe)
    return layout


def resolve_finetune(
    recipe: Recipe,
    shape: ModelShape,
    num_rows: int,
    facts: Facts,
    pretrain: StagePlan | None = None,
    *,
    world: int | None = None,
) -> tuple[StagePlan, list[Derived]]:
    """The fine-tuning stage for `num_rows` packed rows of examples.

    pretrain: the stage that made the weights, where it is known; rate and batch follow from it.
    world: as in `resolve`; the layout is that of [parallel] too.
    """
    section = recipe.finetune
    if section is None:
        raise RecipeError(
            "the recipe has no [finetune] section",
            found=f"recipe {recipe.name} with pre-training only",
            wanted="[finetune] with the task's data",
            fix='add [finetune] and data = { path = "train.jsonl" }',
        )
    rules = Rules("finetune")
    context = finetune_context(section, shape)
    layout = stage_layout(recipe, shape, context=context, world=world)
    facts = devices_of(layout, facts)
    dtype = pretrain.dtype if pretrain and section.dtype == "auto" else section.dtype
    dtype = choose_dtype(dtype, facts, rules)
    rows = _finetune_rows(section, context, num_rows, pretrain, rules)
    steps = max(1, -(-section.epochs * num_rows // rows))
    rules.settle("steps", "auto", steps, f"{section.epochs} epochs of {num_rows} rows, {rows} rows a step")
    lr, rule = _FINETUNE_LR_ALONE, "usual for full fine-tuning of a model that was made elsewhere"
    if pretrain is not None:
        lr = float(f"{_FINETUNE_LR_SHARE * pretrain.lr:.1e}")
        rule = "a tenth of the peak in pre-training: the weights are to be moved, not replaced"
    lr = rules.settle("lr", section.lr, lr, rule)
    stage = stage_plan(section, shape, Decided(context, steps, rows, lr, dtype, layout), facts, rules)
    return stage, rules.derived


def finetune_context(section: Finetune, shape: ModelShape) -> int:
    """Tokens in a row of the task. Longer rows than the model has seen are refused."""
    if section.context == "auto":
        return shape.context
    longest = max(shape.context, shape.max_positions or 0)
    if section.context > longest:
        raise RecipeError(
            "finetune.context is longer than the model has seen",
            found=f"finetune.context = {section.context}, model.context = {longest}",
            wanted=f"at most {longest}",
            fix=f"set finetune.context={longest}, or pre-train with a longer model.context",
        )
    return section.context


def _finetune_rows(
    section: Finetune, context: int, num_rows: int, pretrain: StagePlan | None, rules: Rules
) -> int:
    given = rows_of(section, "finetune", context)
    if given is not None:
        return given
    largest = pretrain.batch_rows if pretrain else _FINETUNE_ROWS_ALONE
    rows = max(1, min(largest, section.epochs * num_rows // _FINETUNE_MIN_STEPS))
    rule = f"{_FINETUNE_MIN_STEPS} steps or more, at most {largest} rows"
    rules.settle("batch_tokens", "auto", rows * context, rule)
    return rows


def _refuse_contradictions(recipe: Recipe) -> None:
    """Settings of different sections that exclude each other, or that would have no effect."""
    tokenizer, pretrain, cluster, energy = recipe.tokenizer, recipe.pretrain, recipe.cluster, recipe.energy
    checks = [
        (isinstance(pretrain.steps, int) and pretrain.tokens is not None,
         f"pretrain.steps = {pretrain.steps} and pretrain.tokens = {pretrain.tokens}",
         "one of them", "remove one: the other follows from batch_tokens"),
        (tokenizer.path is not None and "vocab" in tokenizer.model_fields_set,
         "tokenizer.path and tokenizer.vocab", "one of them",
         "remove tokenizer.vocab: a ready tokenizer has its own"),
        (cluster.region is not None and energy.region is not None and cluster.region != energy.region,
         f"cluster.region = {cluster.region} and energy.region = {energy.region}",
         "one region", "remove energy.region"),
        (energy.prefer != "time", f'energy.prefer = "{energy.prefer}"',
         'energy.prefer = "time": with one layout there is nothing to choose from',
         "remove energy.prefer: it has no effect in this version"),
    ]  # fmt: skip
    for wrong, found, wanted, fix in checks:
        if wrong:
            raise RecipeError("the recipe contradicts itself", found=found, wanted=wanted, fix=fix)


def _check_data(shape: ModelShape, facts: Facts) -> None:
    if facts.train_tokens is not None and facts.train_tokens <= shape.context:
        raise RecipeError(
            "the data does not fill one row",
            found=f"{facts.train_tokens} training tokens, model.context = {shape.context}",
            wanted="at least one row of tokens, and sensibly thousands",
            fix="add data, or set a smaller model.context",
        )


def layout_document(stage: StagePlan) -> dict[str, object]:
    """As in the `plan` document. `schedule` is null where there is no pipeline."""
    layout = stage.layout
    return {
        **layout.to_json(),
        "micro_batch": stage.micro_batch,
        "schedule": layout.schedule if layout.pipeline > 1 else None,
        "recompute": stage.recompute,
        "recompute_layers": stage.recompute_layers,
    }
