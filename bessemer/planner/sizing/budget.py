"""What [budget] allows, what a run would take of it, and which of its limits binds.

Two uses. A length or a size that the recipe leaves to us follows from the limits, each turned into hours at
what an hour is likely to cost (`limits`), less a reserve (`reserve_of`): planned to the brim every other run
would stop a little before its end. And whatever was decided is held against them: a run is refused where
even the low end of what it is predicted to take exceeds one (`check_budget`).
Fine-tuning after pre-training is part of the run. How long it is shows when its data is prepared, which needs
the tokenizer; until then it counts as a thousand rows at pre-training's pace, and at the low end as nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bessemer.energy.accounting.limits import UNITS, in_unit, limits_of, rounded_up
from bessemer.errors import RecipeError, RefusedError
from bessemer.planner.machine.facts import Facts
from bessemer.planner.plan import UNKNOWN, Derived, Estimate, StagePlan
from bessemer.planner.predict import kg_per_kwh, kw_per_device, usd_per_device_hour
from bessemer.planner.rules.rollout import is_sampled
from bessemer.recipe.schema import Finetune, Recipe
from bessemer.units import format_hours, format_short

TASK_ROWS = 1000
# A comparison (finetune/compare_scratch.py) trains on a 64th of the examples, a 16th …
COMPARED_PARTS = (64, 16, 4, 1)
_MOST_LATER = 0.5  # of a budget that decides the length, kept for fine-tuning
MOST_RESERVE = 0.1  # of such a budget, left unplanned; where little is known a run may be off by far more
_ENDS = ("value", "low", "high")
_NOTHING = Estimate(0.0, 0.0, 0.0, "assumed")


@dataclass(frozen=True)
class Limit:
    """One limit that is set: budget.<name> = amount, of which an hour takes `per_hour`.

    reserve: the share of it that a length which it decides leaves unplanned.
    """

    name: str
    amount: float
    per_hour: float
    reserve: float = 0.0

    @property
    def hours(self) -> float:
        return self.amount / self.per_hour

    @property
    def planned_hours(self) -> float:
        return (1.0 - self.reserve) * self.hours

    def __str__(self) -> str:
        return f"budget.{self.name} = {self.amount:g}"


@dataclass(frozen=True)
class Use:
    """What a run takes of a limit: `spent` by now, `left` for its stage, `later` for the stage after that."""

    name: str
    amount: float
    spent: float
    left: Estimate
    later: Estimate

    @property
    def whole(self) -> Estimate:
        """Unknown where what is left is."""
        one, two = self.left, self.later
        sums = [
            None if first is None or second is None else self.spent + first + second
            for first, second in ((one.value, two.value), (one.low, two.low), (one.high, two.high))
        ]
        return Estimate(sums[0], sums[1], sums[2], one.basis)

    def to_json(self) -> dict[str, Any]:
        """share: of the limit."""
        ends = {end: getattr(self.whole, end) for end in _ENDS}
        shares = {end: None if value is None else value / self.amount for end, value in ends.items()}
        return {"name": self.name, "limit": self.amount, "spent": self.spent, "finetuning": self.later.value,
                "takes": {**ends, "basis": self.whole.basis}, "share": shares}  # fmt: skip

    def __str__(self) -> str:
        return f"budget.{self.name} = {self.amount:g}"


def limits(
    recipe: Recipe,
    facts: Facts,
    *,
    decide: bool = True,
    reserve: float = 0.0,
    predicted: Mapping[str, Estimate] | None = None,
) -> list[Limit]:
    """The limits that are set, the one that binds first. RecipeError for one that nothing is known of.

    decide: whether length or size follow from them; else the power of an unlisted device may be unknown, as a
    run is held to what its meter tells. reserve: as in Limit. predicted: of a plan, an hour of which takes
    what its own step draws; None: what is typical of the device, as there is no step yet.
    """
    devices = facts.devices
    kw = kw_per_device(recipe, facts).value
    kg = kg_per_kwh(recipe).value
    costs = {
        "hours": (1.0, ""),
        "device_hours": (float(devices), ""),
        "usd": (_product(usd_per_device_hour(recipe, facts).value, devices),
                "set cluster.usd_per_device_hour, or energy.tariff_usd_per_kwh"),
        "kwh": (_product(kw, devices), "name a device of the catalogue in cluster.device"),
        "kg_co2e": (_product(_product(kw, kg), devices), 'set cluster.region, e.g. "DEU"'),
    }  # fmt: skip
    found = []
    for name, amount in limits_of(recipe).items():
        typical, fix = costs[name]
        per_hour = _an_hour_of(name, predicted or {}) or typical
        of_the_device = name == "kwh" or (name == "kg_co2e" and kg is not None)
        if per_hour is None and of_the_device and not decide:
            continue
        if per_hour is None:
            raise RecipeError(
                f"budget.{name} cannot be turned into hours",
                found=f"budget.{name} = {amount:g}, and nothing is known of it for {facts.device}",
                wanted="a price, a power or a region to count with",
                fix=fix,
            )
        found.append(Limit(name, amount, per_hour, reserve))
    return sorted(found, key=lambda limit: limit.hours)


def binding_rule(found: list[Limit]) -> str:
    """Which limit binds, and what the others would have allowed."""
    first, *others = found
    rule = f"{first} binds: {format_hours(first.hours)}"
    slack = ", ".join(f"{limit} allows {limit.hours:.3g}" for limit in others)
    return rule + (f" ({slack})" if slack else "")


def reserve_of(name: str, predicted: Mapping[str, Estimate]) -> float:
    """Share of the limit `name` to leave unplanned: what the high end of its band has beyond the likely
    value, at most a tenth.

    A machine that runs have taught its speed has a narrow band (planner/calibrated/taught.py). Of the same
    reserve comes what no prediction has: validation, saves, the first steps.
    """
    takes = predicted.get(name, UNKNOWN)
    return min(MOST_RESERVE, 1.0 - takes.value / takes.high) if takes.value and takes.high else MOST_RESERVE


def decided_by(found: Sequence[Limit]) -> list[Derived]:
    """What a length or size was decided by: the limit, and how much of it is planned for."""
    first = found[0]
    rule = f"planned for {first.planned_hours:.3g} of {format_hours(first.hours)}: the high end of the band "
    rule += f"is kept in reserve, at most {MOST_RESERVE:.0%}; a run that is quicker gets no longer"
    return [
        Derived("budget", first.name, binding_rule(list(found))),
        Derived("budget.reserve", round(first.reserve, 4), rule),
    ]


def later_tokens(recipe: Recipe) -> float:
    """What [finetune] trains on after pre-training, with its comparison: assumed."""
    section = recipe.finetune
    if section is None:
        return 0.0
    context = recipe.model.context if section.context == "auto" else section.context
    row = _sampled_tokens(section, context) if is_sampled(section) else context
    return times_compared(section) * section.epochs * TASK_ROWS * row


def _sampled_tokens(section: Finetune, context: int) -> int:
    """Of a prompt, assumed as long as its answers: drawn, at about the cost of training, and trained on."""
    group = section.group_size if section.method == "grpo" else 1
    return 2 * group * min(context, 2 * section.answer_tokens)


def times_compared(section: Finetune) -> float:
    """How many times as long as itself fine-tuning takes with its comparison."""
    if not section.compare_scratch:
        return 1.0
    seeds = section.compare_seeds
    # Of each share `seeds` trainings, the recipe's own one of them; and as many from random weights with one
    # rate more, twice as long. One seed has fewer shares, and all examples alone from random weights.
    shares = [1.0 / part for part in (COMPARED_PARTS if seeds > 1 else COMPARED_PARTS[1:])]
    at_random = shares if seeds > 1 else [1.0]
    return seeds * sum(shares) + 2.0 * (seeds + 1.0) * sum(at_random)


def finetuning_after(
    recipe: Recipe, stage: StagePlan, predicted: Mapping[str, Estimate]
) -> dict[str, Estimate]:
    """What fine-tuning takes of each limit after pre-training, `stage`, for which `predicted` is."""
    share = later_tokens(recipe) / (stage.steps * stage.batch_tokens)
    return {name: replace(predicted[name].times(share), low=0.0) for name in UNITS} if share else {}


def comparison_after(recipe: Recipe, predicted: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """What the comparison takes of each limit after the fine-tuning itself, for which `predicted` is."""
    share = 0.0 if recipe.finetune is None else times_compared(recipe.finetune) - 1.0
    return {name: replace(predicted[name].times(share), low=0.0) for name in UNITS} if share else {}


def length_hours(recipe: Recipe, found: Sequence[Limit], tokens_per_hour: float | None) -> float | None:
    """For a length that is left to us: pretrain.hours, or what the budget leaves beside fine-tuning and its
    reserve.

    found: `limits`. tokens_per_hour: None before there is a speed.
    """
    if recipe.pretrain.hours is not None or not found:
        return recipe.pretrain.hours
    whole = found[0].planned_hours
    later = later_tokens(recipe) / tokens_per_hour if tokens_per_hour else 0.0
    return whole - min(_MOST_LATER * whole, later)


def uses(
    recipe: Recipe,
    facts: Facts,
    left: Mapping[str, Estimate],
    *,
    spent: Mapping[str, float] | None = None,
    later: Mapping[str, Estimate] | None = None,
) -> list[Use]:
    """Of each limit that is set, the fullest first. left: predicted, of the stage or of what is left of it.

    RecipeError for a limit that nothing is known of.
    """
    limits(recipe, facts, decide=False)
    found = [
        Use(name, amount, (spent or {}).get(name, 0.0), left[name], (later or {}).get(name, _NOTHING))
        for name, amount in limits_of(recipe).items()
    ]
    return sorted(found, key=lambda use: -(use.whole.value or 0.0) / use.amount)


def exceeded(found: Sequence[Use]) -> Use | None:
    """The limit that even the low end exceeds, by the largest share."""
    over = [use for use in found if (use.whole.low or 0.0) > use.amount]
    return max(over, key=lambda use: (use.whole.low or 0.0) / use.amount, default=None)


def check_budget(
    found: Sequence[Use],
    steps: int,
    fewer_devices: Callable[[], int | None] = lambda: None,
    *,
    made: int = 0,
) -> None:
    """RefusedError where `steps` cannot come within the budget, even if all goes well.

    steps: 0: cannot be fewer. fewer_devices: how many of them would do, as they waste less; asked only then.
    made: by the run that a fork goes on from, before those steps.
    """
    use = exceeded(found)
    if use is None:
        return
    low, likely = use.whole.low or 0.0, use.whole.value or 0.0
    spent = f", {format_short(use.spent)} of them spent already" if use.spent else ""
    # So many as are likely to come within it, not only if all goes well.
    enough, devices = int(steps * (use.amount - use.spent) / (use.left.value or 1.0)), fewer_devices()
    fewer = f"set fewer steps ({made + enough} would do), or " if enough > 0 else ""
    cheaper = f"take {devices:,} devices, or " if devices is not None else ""
    raise RefusedError(
        "the run does not fit its budget",
        found=f"{in_unit(format_short(low), use.name)} at the least, {format_short(likely)} likely{spent}",
        wanted=f"{use}, which binds",
        fix=f"{fewer}{cheaper}raise it with --set budget.{use.name}={rounded_up(likely)}",
    )


def warning(found: Sequence[Use]) -> str | None:
    """Of a limit that the run is likely to reach, though it might not."""
    over = [use for use in found if (use.whole.value or 0.0) > use.amount]
    if not over:
        return None
    use, whole = over[0], over[0].whole
    ends = f"{format_short(whole.low or 0.0)} to {format_short(whole.high or 0.0)}"
    return (
        f"{use} is likely to be reached: {in_unit(format_short(whole.value or 0.0), use.name)} "
        f"({ends}) are predicted for the whole run; it would stop there, saved"
    )


def too_small(limit: Limit, needed_hours: float, what: str) -> RecipeError:
    """The error of a budget in which nothing sensible fits. what: the least that was tried."""
    return RecipeError(
        "the budget is too small for any run",
        found=f"{limit}, which binds: {format_hours(limit.hours)}",
        wanted=f"{in_unit(f'{needed_hours * limit.per_hour:.3g}', limit.name)} at least: {what}",
        fix=f"raise budget.{limit.name}, or leave it out",
    )


def _an_hour_of(name: str, predicted: Mapping[str, Estimate]) -> float | None:
    takes, hours = (predicted.get(key, UNKNOWN).value for key in (name, "hours"))
    return takes / hours if takes and hours else None


def _product(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one * other
