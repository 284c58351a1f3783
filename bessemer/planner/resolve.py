"""From a recipe and the facts to a plan. Pure, torch-free, and the one home of cross-checks.

`resolve` raises RecipeError for a recipe that contradicts itself or asks for what cannot be. What can
be planned but not trained yet (`planner/limits.py`) is refused by `check_trainable` and `check_start`,
which the training verbs call and `bessemer plan` does not.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from bessemer.energy.grid.pausing import check_pausing
from bessemer.errors import RecipeError, UserError
from bessemer.formulas.flops import train_flops_per_token
from bessemer.formulas.layout import Layout
from bessemer.formulas.parameters import active_params, total_params
from bessemer.formulas.scaling import sizing
from bessemer.formulas.shape import ModelShape
from bessemer.planner.layout import WHERE, parse_layout
from bessemer.planner.limits import fits
from bessemer.planner.machine.facts import Facts
from bessemer.planner.plan import Derived, Estimate, Plan, StagePlan
from bessemer.planner.predict import goodput_of, predict
from bessemer.planner.search.choose import Chosen
from bessemer.planner.search.processes import ChosenProcesses
from bessemer.planner.searched import Place, choose, given_layout, with_chosen, with_devices
from bessemer.planner.shape import resolve_shape, sized_shape
from bessemer.planner.sizing.budget import (
    MOST_RESERVE,
    Use,
    check_budget,
    decided_by,
    exceeded,
    finetuning_after,
    length_hours,
    limits,
    reserve_of,
    uses,
)
from bessemer.planner.sizing.sized import check_size_keys, size_for_budget, wants_size
from bessemer.planner.speed import training_speed
from bessemer.planner.stage import Decided, Rules, choose_dtype, pretrain_length, stage_plan
from bessemer.recipe.schema import Optimization, Recipe

_ROUNDS = 3
_PARTS = (2, 4, 8, 16)  # of the devices, tried where all together take too much
_STILL = 0.02  # relative change of the speed from which on another round would change nothing
_STILL_RESERVE = 0.005


def resolve(
    recipe: Recipe, facts: Facts, *, world: int | None = None, layout_from: str = WHERE, made: int = 0
) -> Plan:
    """Everything that a run needs to know, decided once.

    world: processes that were started (torchrun); None: as many are started as the layout has ranks.
    layout_from: what an error calls the layout's setting. made: steps that another run has made, from which
    this one goes on; the budget is for those after them.
    """
    return resolve_searched(recipe, facts, world=world, layout_from=layout_from, made=made)[0]


def resolve_searched(
    recipe: Recipe, facts: Facts, *, world: int | None = None, layout_from: str = WHERE, made: int = 0
) -> tuple[Plan, Chosen | ChosenProcesses | None]:
    """The plan, and the search that its layout came from; None where there was nothing to search."""
    check_recipe(recipe, world=world, layout_from=layout_from, devices=facts.devices)
    place = Place(world, layout_from, made=made)
    plan, draft = _settle(recipe, facts, place)
    fewer = partial(_fewer_devices, recipe, facts, place) if draft.chosen else lambda: None
    check_budget(_uses(recipe, draft, plan, made), plan.pretrain.steps - made, fewer, made=made)
    return plan, draft.chosen


def _settle(recipe: Recipe, facts: Facts, place: Place) -> tuple[Plan, "_Draft"]:
    draft = _draft(recipe, facts, place)
    plan, speed = _plan(recipe, draft), None
    alone = facts.cluster is not None and facts.devices == 1 and recipe.parallel.layout == "auto"
    if alone and not fits(plan.shape, plan.pretrain, facts):
        place = replace(place, crowded=True)
        draft = _draft(recipe, facts, place)
        plan = _plan(recipe, draft)
    for _ in range(_ROUNDS if draft.by_hours else 0):
        # Size and length came from another speed: again with the plan's own, until it stands still.
        before, speed, reserve = speed, _flops_per_s(plan), _reserve(recipe, draft, plan)
        same = abs(reserve - draft.reserve) < _STILL_RESERVE
        if speed is None or (before is not None and same and abs(speed / before - 1.0) < _STILL):
            break
        draft = _draft(recipe, facts, place, _Before(speed, reserve, plan.predicted))
        plan = _plan(recipe, draft)
    return _within(recipe, draft, plan, place.made), draft


def _reserve(recipe: Recipe, draft: "_Draft", plan: Plan) -> float:
    """Of the limit that decides, by the band that the plan has."""
    found = limits(recipe, draft.facts, predicted=plan.predicted)
    return reserve_of(found[0].name, plan.predicted) if found else MOST_RESERVE


def _uses(recipe: Recipe, draft: "_Draft", plan: Plan, made: int) -> list[Use]:
    later, own = finetuning_after(recipe, plan.pretrain, plan.predicted), _own_share(plan, made)
    left = {name: estimate.times(own) for name, estimate in plan.predicted.items()}
    return uses(recipe, draft.facts, left, later=later)


def _own_share(plan: Plan, made: int) -> float:
    """Of the planned steps, those that this run makes; what is refused elsewhere may be fewer than none."""
    return max(0.0, 1.0 - made / plan.pretrain.steps)


def _fewer_devices(recipe: Recipe, facts: Facts, place: Place) -> int | None:
    """The largest part of the devices on which the low end of the run fits its budget; None: none does."""
    for part in _PARTS:
        less = replace(facts, devices=facts.devices // part)
        with suppress(UserError):
            if less.devices > 1:
                plan, draft = _settle(recipe, less, place)
                if not exceeded(_uses(recipe, draft, plan, place.made)):
                    return less.devices
    return None


@dataclass(frozen=True)
class _Draft:
    """What one round came to. facts: with the devices of the layout."""

    shape: ModelShape
    derived: list[Derived]
    facts: Facts
    decided: Decided
    section: Optimization
    rules: Rules
    loss: Estimate | None
    chosen: Chosen | ChosenProcesses | None
    by_hours: bool  # the speed decided size or length
    reserve: float  # of the budget, where that did


@dataclass(frozen=True)
class _Before:
    """What the plan of the round before says; of the first round nothing, and typical figures count."""

    flops_per_s: float | None = None
    reserve: float = MOST_RESERVE
    predicted: Mapping[str, Estimate] | None = None


def _draft(recipe: Recipe, facts: Facts, place: Place, before: _Before = _Before()) -> _Draft:
    rules = Rules("pretrain")
    section = recipe.pretrain
    facts = with_devices(recipe, facts, place)
    flops_per_s, reserve = before.flops_per_s, before.reserve
    shape, derived, loss = _shape(recipe, facts, before)
    _check_data(shape, facts)
    layout, facts = given_layout(recipe, shape, shape.context, facts, place)
    dtype = choose_dtype(section.dtype, facts, rules)
    decides = section.steps == "auto" and section.tokens is None
    found = limits(recipe, facts, decide=decides, reserve=reserve, predicted=before.predicted)
    per_hour = 3600.0 * flops_per_s / train_flops_per_token(shape, shape.context) if flops_per_s else None
    hours = length_hours(recipe, found, per_hour)
    by_hours = hours is not None and decides
    if hours is not None:
        hours *= goodput_of(recipe, shape, facts).value or 1.0
    if by_hours and section.hours is None and loss is None:
        rules.derived.extend(decided_by(found))
    steps, rows = pretrain_length(section, shape, facts, hours, dtype, rules, flops_per_s)
    if by_hours and place.made:  # hours are of its own steps
        steps += place.made
        rules.derived[:] = _with_steps(rules.derived, steps)
    flops = train_flops_per_token(shape, shape.context) * steps * rows * shape.context
    rule = f"0.3118 C^-0.125 at C = {flops:.1e} FLOPs, between 1e-4 and 3e-3 (arXiv:2401.02954)"
    lr = rules.settle("lr", section.lr, sizing.learning_rate_for(flops), rule)
    decided = Decided(shape.context, steps, rows, lr, dtype, layout)
    decided, chosen, facts = choose(recipe, section, shape, decided, facts, place)
    settled = with_chosen(section, chosen, rules)
    by_hours = by_hours or loss is not None
    return _Draft(shape, derived, facts, decided, settled, rules, loss, chosen, by_hours, reserve)


def _shape(
    recipe: Recipe, facts: Facts, before: _Before
) -> tuple[ModelShape, list[Derived], Estimate | None]:
    """The shape, what was derived of it, and the loss that its size was chosen for."""
    check_size_keys(recipe)
    if not wants_size(recipe):
        return *resolve_shape(recipe, facts), None
    dtype = choose_dtype(recipe.pretrain.dtype, facts, Rules("pretrain"))

    def speed(shape: ModelShape) -> float | None:
        """Of all devices together, failures taken off."""
        given = before.flops_per_s
        if given is None:
            found = training_speed(shape, facts, dtype, recipe.pretrain.recompute)
            given = None if found is None else found.tflops.value * 1e12 * facts.devices
        kept = goodput_of(recipe, shape, facts).value or 1.0
        return None if given is None else given * kept

    found = limits(recipe, facts, reserve=before.reserve, predicted=before.predicted)
    return sized_shape(recipe, facts, lambda shape_of: size_for_budget(recipe, facts, found, shape_of, speed))


def _with_steps(derived: Sequence[Derived], steps: int) -> list[Derived]:
    return [replace(row, value=steps) if row.key == "pretrain.steps" else row for row in derived]


def _within(recipe: Recipe, draft: _Draft, plan: Plan, made: int) -> Plan:
    """The plan with the last steps taken off that its hours do not hold, as is likely."""
    own = _own_share(plan, made)
    hours, steps = plan.predicted["hours"].times(own).value, plan.pretrain.steps - made
    if not draft.by_hours or not hours or recipe.pretrain.tokens is not None:
        return plan
    per_hour = steps * plan.pretrain.batch_tokens / hours
    found = limits(recipe, draft.facts, reserve=draft.reserve, predicted=plan.predicted)
    share = (length_hours(recipe, found, per_hour) or hours) / hours
    if share >= 1.0 or recipe.pretrain.steps != "auto":
        return plan
    steps = made + max(1, int(share * steps))
    rules = Rules(draft.rules.section)
    rules.derived.extend(_with_steps(draft.rules.derived, steps))
    return _plan(recipe, replace(draft, decided=replace(draft.decided, steps=steps), rules=rules))


def _plan(recipe: Recipe, draft: _Draft) -> Plan:
    shape, facts = draft.shape, draft.facts
    rules = Rules(draft.rules.section)
    rules.derived.extend(draft.rules.derived)
    stage = stage_plan(recipe, draft.section, shape, draft.decided, facts, rules)
    plan = plan_of(recipe, shape, stage, facts, [*draft.derived, *rules.derived])
    return plan if draft.loss is None else replace(plan, predicted={**plan.predicted, "loss": draft.loss})


def plan_of(
    recipe: Recipe, shape: ModelShape, stage: StagePlan, facts: Facts, derived: list[Derived]
) -> Plan:
    """The plan of a stage that is decided."""
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
        derived=derived,
    )


def _flops_per_s(plan: Plan) -> float | None:
    """Model FLOP/s of all devices together, as the plan predicts them."""
    tokens_per_s = plan.predicted["tokens_per_s"].value
    if tokens_per_s is None:
        return None
    return tokens_per_s * train_flops_per_token(plan.shape, plan.pretrain.context)


def check_recipe(
    recipe: Recipe, *, world: int | None = None, layout_from: str = WHERE, devices: int = 1
) -> Layout:
    """What holds for every recipe, also under a run that exists. Returns its layout, not yet checked
    against a model. devices: as in `check_layout`."""
    layout = parse_layout(recipe.parallel.layout, layout_from, world, devices)
    _refuse_contradictions(recipe)
    check_pausing(recipe.energy)
    return layout


def _refuse_contradictions(recipe: Recipe) -> None:
    """Settings of different sections that exclude each other, or that would have no effect."""
    tokenizer, pretrain, cluster, energy = recipe.tokenizer, recipe.pretrain, recipe.cluster, recipe.energy
    checks = [
        (isinstance(pretrain.steps, int) and pretrain.tokens is not None,
         f"pretrain.steps = {pretrain.steps} and pretrain.tokens = {pretrain.tokens}",
         "one of them", "remove one: the other follows from batch_tokens"),
        (pretrain.hours is not None and (pretrain.steps != "auto" or pretrain.tokens is not None),
         f"pretrain.hours = {pretrain.hours} beside steps or tokens", "one of them", "remove pretrain.hours"),
        (pretrain.hours is not None and recipe.model.size == "auto",
         f'pretrain.hours = {pretrain.hours} and model.size = "auto"',
         "a size, or a budget that decides both", "set model.size, or remove pretrain.hours"),
        (tokenizer.path is not None and "vocab" in tokenizer.model_fields_set,
         "tokenizer.path and tokenizer.vocab", "one of them",
         "remove tokenizer.vocab: a ready tokenizer has its own"),
        (cluster.region is not None and energy.region is not None and cluster.region != energy.region,
         f"cluster.region = {cluster.region} and energy.region = {energy.region}",
         "one region", "remove energy.region"),
        ("slower_at_most" in energy.model_fields_set and energy.power_limit != "auto",
         f"energy.slower_at_most with energy.power_limit = {energy.power_limit!r}",
         "slower_at_most beside power_limit = \"auto\" only", "remove energy.slower_at_most"),
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
