"""`model.size = "auto"` within a budget: the size that makes the most of it, and the loss to expect.

The budget, less a reserve, gives hours, hours at a speed give tokens, and the law of formulas/scaling/law.py
gives the size whose tokens and parameters are in balance. The speed depends on the size, so this goes round
until it stands still; `resolve` goes round again with the speed of the layout that the search has chosen.
With tokens that the model will read and write in use, the size is smaller and trains longer (Sardana).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bessemer.errors import RecipeError
from bessemer.formulas.flops import train_flops_per_token
from bessemer.formulas.goodput import Range
from bessemer.formulas.parameters import total_params
from bessemer.formulas.scaling import sizing
from bessemer.formulas.scaling.law import BESIROGLU, Law
from bessemer.formulas.shape import ModelShape
from bessemer.planner.machine.facts import Facts
from bessemer.planner.plan import Derived, Estimate
from bessemer.planner.sizing.budget import Limit, decided_by, too_small
from bessemer.recipe.schema import Recipe
from bessemer.units import format_count

_ROUNDS = 20
_STILL = 0.005  # relative change of the size from which on it stands still
# Weights, gradients and optimizer, 16 bytes a parameter, of what programs and drivers leave of the memory;
# the rest is for activations.
_STATE_SHARE, _STATE_BYTES, _BASE_BYTES = 0.7, 16, 3 * 2**30

Speed = Callable[[ModelShape], float | None]  # model FLOP/s of all devices together, lost time taken off
ShapeOf = Callable[[float], ModelShape]  # of so many parameters, or the nearest to it


@dataclass(frozen=True)
class Sized:
    """params: embeddings included. loss: predicted; "modelled" by a law of own runs, else "assumed"."""

    params: int
    loss: Estimate
    derived: list[Derived]


def wants_size(recipe: Recipe) -> bool:
    """Whether the budget decides the size."""
    budget = recipe.budget
    limited = (budget.usd, budget.kwh, budget.kg_co2e, budget.hours, budget.device_hours)
    return recipe.model.size == "auto" and any(limit is not None for limit in limited)


def check_size_keys(recipe: Recipe) -> None:
    """RecipeError for keys that only a size from the budget reads."""
    for name in ("inference_tokens", "runs"):
        if getattr(recipe.budget, name) is not None and not wants_size(recipe):
            raise RecipeError(
                f"budget.{name} has no effect",
                found=f"budget.{name} without a size that a budget decides",
                wanted='model.size = "auto" with a limit in [budget]: usd, kwh, kg_co2e, hours, device_hours',
                fix=f"add them, or remove budget.{name}",
            )


def size_for_budget(
    recipe: Recipe, facts: Facts, found: Sequence[Limit], shape_of: ShapeOf, speed: Speed
) -> Sized:
    """The size that its budget pays for. found: its limits (planner/sizing/budget.py), at least one.

    RecipeError: no speed is known, or the budget does not pay for the smallest model.
    """
    budget = _Budget(recipe, facts, found[0], facts.law or BESIROGLU, speed)
    smallest = shape_of(1.0)
    least = total_params(smallest)
    if budget.wanted(smallest) < least:
        if budget.tokens(smallest) >= budget.least_tokens(smallest):
            raise _used_too_much(budget, smallest)
        hours = budget.least_tokens(smallest) / budget.tokens(smallest) * found[0].hours
        what = f"the smallest model with this vocabulary has {format_count(least)} parameters"
        raise too_small(found[0], hours, what)
    best = _balanced(budget.wanted, shape_of, smallest)
    params = round(max(least, min(best, _most_params(facts))))
    shape = shape_of(params)
    tokens, count = budget.tokens(shape), total_params(shape)
    loss = budget.law.loss_range(count, tokens)
    derived = [
        *decided_by(found),
        Derived("model.size", params, _size_rule(budget, shape, tokens) + _held(best, params, facts)),
        Derived("loss", round(loss.value, 3), _loss_rule(budget.law, loss, 6.0 * count * tokens)),
    ]
    basis = "assumed" if facts.law is None else "modelled"
    return Sized(params, Estimate(loss.value, loss.low, loss.high, basis), derived)


@dataclass(frozen=True)
class _Budget:
    """What a size is weighed with."""

    recipe: Recipe
    facts: Facts
    limit: Limit
    law: Law
    speed: Speed

    @property
    def inference_tokens(self) -> float:
        return float(self.recipe.budget.inference_tokens or 0)

    def tokens(self, shape: ModelShape) -> float:
        """How many this model could be trained on."""
        flops_per_s = self.speed(shape)
        if flops_per_s is None:
            raise RecipeError(
                "the budget cannot be turned into a size",
                found=f"no speed is known for {self.facts.device}",
                wanted="a measured device, or one of the catalogue",
                fix="run `bessemer doctor --calibrate`, or set model.size",
            )
        per_token = train_flops_per_token(shape, shape.context)
        return 3600.0 * self.limit.planned_hours * flops_per_s / per_token

    def wanted(self, shape: ModelShape) -> float:
        """The size that goes with that much compute."""
        given = self.given_tokens(shape)
        if given is not None:  # then the size is what is left to choose
            return total_params(shape) * self.tokens(shape) / given
        return self.law.best_params(6.0 * total_params(shape) * self.tokens(shape), self.inference_tokens)

    def least_tokens(self, shape: ModelShape) -> float:
        return self.given_tokens(shape) or self.law.best_tokens(total_params(shape))

    def given_tokens(self, shape: ModelShape) -> float | None:
        """Of pretrain.tokens, or of pretrain.steps with their batch; None: the budget's."""
        section = self.recipe.pretrain
        if section.tokens is not None:
            return float(section.tokens)
        if not isinstance(section.steps, int):
            return None
        if section.batch_tokens != "auto":
            return float(section.steps * section.batch_tokens)
        per_token = train_flops_per_token(shape, shape.context)
        return section.steps * sizing.batch_tokens_for_steps(per_token, section.steps)


def _balanced(wanted: Callable[[ModelShape], float], shape_of: ShapeOf, smallest: ModelShape) -> float:
    """The size whose speed gives the tokens that ask for this size."""
    params = wanted(smallest)
    for _ in range(_ROUNDS):
        new = wanted(shape_of(params))
        if abs(math.log(new / params)) < _STILL:
            return new
        params = new
    return params


def _used_too_much(budget: _Budget, smallest: ModelShape) -> RecipeError:
    """The budget would do, but so much use asks for a model that is smaller than any."""
    flops, least = 6.0 * total_params(smallest) * budget.tokens(smallest), total_params(smallest)
    low, high = 0.0, math.log(budget.inference_tokens)
    for _ in range(50):  # the size falls with the tokens: halving finds where it is the smallest there is
        centre = 0.5 * (low + high)
        enough = budget.law.best_params(flops, math.exp(centre)) >= least
        low, high = (centre, high) if enough else (low, centre)
    return RecipeError(
        "budget.inference_tokens ask for a model smaller than any",
        found=f"{format_count(budget.inference_tokens)} tokens of use, beside which training for "
        f"{budget.limit} is nothing; "
        f"the smallest model with this vocabulary has {format_count(least)} parameters",
        wanted=f"at most {format_count(math.exp(low))} tokens of use",
        fix=f"lower budget.inference_tokens, raise budget.{budget.limit.name}, or set model.size",
    )


def _most_params(facts: Facts) -> float:
    if facts.memory_bytes is None:
        return math.inf
    devices = 1 if facts.kind == "cpu" else facts.devices
    return _STATE_SHARE * max(0, facts.memory_bytes - _BASE_BYTES) * devices / _STATE_BYTES


def _held(best: float, params: int, facts: Facts) -> str:
    """Where memory and not the budget decided."""
    if params >= 0.99 * best:
        return ""
    memory = f"{facts.devices} x {facts.device} hold the state of {format_count(params)}"
    return f"; {format_count(best)} would be best, but {memory}"


def _size_rule(budget: _Budget, shape: ModelShape, tokens: float) -> str:
    params, law, used = total_params(shape), budget.law, budget.inference_tokens
    flops = 6.0 * params * tokens
    interval = law.params_range(flops, used)
    low, high = format_count(interval.low), format_count(interval.high)
    count = f"{format_count(params)} parameters on {format_count(tokens)} tokens"
    if budget.given_tokens(shape) is not None:
        return f"{count}, as [pretrain] and the budget say; best for this compute {low} to {high}"
    if not used:
        return f"{count}, compute-optimal between {low} and {high} ({law.name})"
    rule = f"{count}, the least compute in training and {format_count(used)} tokens of use together"
    plain = format_count(law.best_params(flops))
    return f"{rule}, {low} to {high} (arXiv:2401.00448; {law.name}); for training alone {plain}"


def _loss_rule(law: Law, loss: Range, flops: float) -> str:
    beyond = law.extrapolates(flops)
    rule = f"{loss.low:.3f} to {loss.high:.3f} nats a token: only as precise as its law ({law.name})"
    if law is BESIROGLU:
        rule += ", of other text and another tokenizer"
    return rule + (f", at {beyond:.3g} times the compute of its largest run" if beyond > 1.0 else "")
