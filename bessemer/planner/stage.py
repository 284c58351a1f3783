"""One training stage from the recipe's section: batch, length, learning rate and intervals.

Every "auto" is decided here, and told with its rule.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from bessemer.errors import RecipeError
from bessemer.formulas.flops import train_flops_per_token
from bessemer.formulas.layout import ONE_PROCESS, Layout
from bessemer.formulas.objective import NEXT_TOKEN, Objective
from bessemer.formulas.parameters import total_params
from bessemer.formulas.scaling import sizing
from bessemer.formulas.scaling.law import BESIROGLU
from bessemer.formulas.shape import ModelShape
from bessemer.planner.machine.facts import Facts
from bessemer.planner.micro_batch import CPU_MICRO_BATCH_TOKENS, choose_micro_batch
from bessemer.planner.plan import Derived, StagePlan
from bessemer.planner.predict import copy_fits, devices_of, failures_of, longest_interval, predict_step
from bessemer.planner.recompute import Recompute, settle_recompute
from bessemer.planner.rules.layout import check_micro_batches
from bessemer.planner.rules.stage import check_balance, check_micro_batch, check_schedule, compile_for
from bessemer.planner.speed import step_time, training_speed
from bessemer.recipe.schema import Optimization, Pretrain, Recipe
from bessemer.units import format_bytes, format_count, format_hours, format_seconds

_MIN_STEPS = 50  # a batch rule fitted on large runs must not leave a short one with a handful of updates
_MAX_BATCH_TOKENS = 16_777_216
_SAVE_INTERVAL_S = (60.0, 1800.0)
_VALIDATE_STEPS = 1000


@dataclass(frozen=True)
class Decided:
    """What must be known of a stage before the rest follows."""

    context: int
    steps: int
    batch_rows: int
    lr: float
    dtype: str
    layout: Layout = ONE_PROCESS
    objective: Objective = NEXT_TOKEN

    @property
    def batch_tokens(self) -> int:
        return self.batch_rows * self.context


class Rules:
    """The derived values so far."""

    def __init__(self, section: str) -> None:
        self.section = section
        self.derived: list[Derived] = []

    def settle(self, name: str, given: Any, value: Any, rule: str) -> Any:
        """The given value, or if it is "auto" the derived one, noted with its rule."""
        if given != "auto":
            return given
        self.derived.append(Derived(f"{self.section}.{name}", value, rule))
        return value


def choose_dtype(given: str, facts: Facts, rules: Rules) -> str:
    """bf16, but for a CPU on which it was measured to be slower than fp32."""
    measured = facts.ceilings if facts.kind == "cpu" else None
    slow = measured is not None and measured.matmul_bf16_tflops < 1.2 * measured.matmul_fp32_tflops
    rule = "the compute type of accelerators and of CPUs that multiply it faster"
    if slow and measured is not None:
        rule = f"this CPU multiplies bf16 at {measured.matmul_bf16_tflops:.2f} TFLOP/s, "
        rule += f"fp32 at {measured.matmul_fp32_tflops:.2f}"
    return str(rules.settle("dtype", given, "fp32" if slow else "bf16", rule))


def pretrain_length(
    section: Pretrain,
    shape: ModelShape,
    facts: Facts,
    hours: float | None,
    dtype: str,
    rules: Rules,
    flops_per_s: float | None = None,
) -> tuple[int, int]:
    """Steps and rows per step, from whichever of steps, tokens, budget and data is there.

    hours: of the budget, for steps that count. flops_per_s: of the chosen layout, all devices together.
    """
    flops = train_flops_per_token(shape, shape.context)
    if isinstance(section.steps, int):
        wanted = sizing.batch_tokens_for_steps(flops, section.steps)
        rule = f"0.292 C^0.3271 at C = {flops * section.steps * wanted:.1e} FLOPs (arXiv:2401.02954)"
        rows = _batch_rows(section, shape, facts, wanted, rule, rules)
        return section.steps, rows
    update_s = 0.0  # of the optimizer, where it is not in the speed
    speed = training_speed(shape, facts, dtype, section.recompute)
    if flops_per_s is None and speed is not None:
        flops_per_s = speed.tflops.value * 1e12 * facts.devices
        update_s = step_time(shape, 0, speed, facts).value or 0.0
    tokens, source = _tokens(section, shape, facts, hours, flops_per_s)
    wanted = sizing.batch_tokens_for(flops * tokens)
    rule = f"0.292 C^0.3271 at C = {flops * tokens:.1e} FLOPs (arXiv:2401.02954)"
    if tokens / _MIN_STEPS < wanted:
        wanted, rule = tokens / _MIN_STEPS, f"{_MIN_STEPS} steps at least"
    rows = _batch_rows(section, shape, facts, wanted, rule, rules)
    steps = max(1, math.ceil(tokens / (rows * shape.context)))
    if hours is not None and section.tokens is None and flops_per_s is not None:
        # Now that the batch is known, so is the share of the optimizer's update in a step.
        step_s = flops * rows * shape.context / flops_per_s + update_s
        steps = min(steps, max(1, int(hours * 3600.0 / step_s)))
    return rules.settle("steps", section.steps, steps, source), rows


def stage_plan(
    recipe: Recipe, section: Optimization, shape: ModelShape, decided: Decided, facts: Facts, rules: Rules
) -> StagePlan:
    """Everything else of a stage, once its length is known. section: with what a search has settled."""
    steps = decided.steps
    batch = _single_rows(section, decided, rules.section)
    batch = replace(batch, micro_batch=_micro_batch(section, shape, batch, facts, rules))
    recompute = settle_recompute(section, shape, batch, facts, rules.section)
    if section.activation_memory is not None:
        _tell_recompute(section, recompute, rules)
    warmup = min(2000, math.ceil(steps / 20)) if steps > 1 else 0
    warmup = rules.settle("warmup", section.warmup, warmup, "a twentieth of the steps, at most 2000")
    decay_steps = round(section.decay * steps) if section.schedule == "wsd" else 0
    check_schedule(section, steps, warmup, decay_steps)
    check_balance(section, shape, rules.section)
    batch = replace(batch, recompute=recompute.kind, recompute_layers=recompute.layers)
    saves = section.async_save if section.async_save != "auto" else copy_fits(shape, batch, facts)
    batch = replace(batch, async_save=saves)
    return replace(
        batch,
        schedule=section.schedule,
        warmup=warmup,
        decay_steps=decay_steps,
        final_lr=section.final_lr,
        betas=section.betas,
        eps=section.eps,
        weight_decay=section.weight_decay,
        grad_clip=None if section.grad_clip == "off" else section.grad_clip,
        validate_every=rules.settle(
            "validate_every",
            section.validate_every,
            max(1, min(_VALIDATE_STEPS, round(steps / 10))),
            f"a tenth of the steps, at most {_VALIDATE_STEPS}",
        ),
        save_every=_save_every(recipe, section, shape, batch, facts, rules),
        log_every=section.log_every,
        keep=section.keep,
        optimizer=section.optimizer,
        router_balance=section.router_balance,
    )


def _single_rows(section: Optimization, decided: Decided, name: str) -> StagePlan:
    """What is computed, in micro-batches of one row: with it the choices are made that memory decides."""
    return StagePlan(
        steps=decided.steps,
        context=decided.context,
        batch_rows=decided.batch_rows,
        micro_batch=1,
        lr=decided.lr,
        dtype=decided.dtype,
        compile=compile_for(section, decided.layout, name),
        recompute=section.recompute,
        layout=decided.layout,
        # Left to us, it is what memory is left over for: decided at the end.
        async_save=section.async_save is True,
        objective=decided.objective,
    )


def rows_of(section: Optimization, name: str, context: int) -> int | None:
    """batch_tokens in rows; None when it is "auto"."""
    if section.batch_tokens == "auto":
        return None
    rows, rest = divmod(section.batch_tokens, context)
    if rest or not rows:
        raise RecipeError(
            f"{name}.batch_tokens is not a whole number of rows",
            found=f"batch_tokens = {section.batch_tokens}, context = {context}",
            wanted=f"a multiple of {context}",
            fix=f"set {name}.batch_tokens={max(1, round(section.batch_tokens / context)) * context}",
        )
    return rows


def _tokens(
    section: Pretrain, shape: ModelShape, facts: Facts, hours: float | None, flops_per_s: float | None
) -> tuple[float, str]:
    """How many tokens to train on, and why."""
    if section.tokens is not None:
        return float(
            section.tokens
        ), f"pretrain.tokens = {format_count(float(section.tokens))} over batch_tokens"
    params = total_params(shape)
    law = facts.law or BESIROGLU
    tokens = law.best_tokens(params)
    rule = f"{format_count(tokens)} tokens, compute-optimal for {format_count(params)} parameters"
    rule += " (arXiv:2404.10102)" if facts.law is None else f" ({law.name})"
    if hours is not None:
        if flops_per_s is None:
            raise RecipeError(
                "the budget cannot be turned into steps",
                found=f"{format_hours(hours)}, and no speed is known for {facts.device}",
                wanted="a measured device, or one of the catalogue",
                fix="run `bessemer doctor --calibrate`, or set pretrain.steps or pretrain.tokens",
            )
        per_s = flops_per_s / train_flops_per_token(shape, shape.context)
        tokens = hours * 3600.0 * per_s
        rule = f"{format_hours(hours)} at a predicted {format_count(per_s)} tokens/s"
    if facts.train_tokens and tokens > sizing.MAX_EPOCHS * facts.train_tokens:
        tokens = float(sizing.MAX_EPOCHS * facts.train_tokens)
        rule = f"{sizing.MAX_EPOCHS} epochs of {format_count(facts.train_tokens)} tokens: more repetition"
        rule += " gains little (arXiv:2305.16264)"
    return tokens, rule


def _batch_rows(
    section: Pretrain, shape: ModelShape, facts: Facts, wanted: float, rule: str, rules: Rules
) -> int:
    given = rows_of(section, "pretrain", shape.context)
    if given is not None:
        return given
    rows = max(1, round(min(wanted, _MAX_BATCH_TOKENS) / shape.context))
    whole = max(1, CPU_MICRO_BATCH_TOKENS // shape.context)
    if rows > whole:  # so that micro-batches of the usual size fill it
        rows = round(rows / whole) * whole
    rules.settle("batch_tokens", "auto", rows * shape.context, f"{rule}, in whole rows")
    return rows


def _micro_batch(
    section: Optimization, shape: ModelShape, batch: StagePlan, facts: Facts, rules: Rules
) -> int:
    if section.micro_batch == "auto":
        size, rule = choose_micro_batch(section, shape, batch, facts)
        return int(rules.settle("micro_batch", "auto", size, rule))
    check_micro_batch(section.micro_batch, batch.batch_rows, rules.section)
    check_micro_batches(batch.layout, batch.batch_rows, section.micro_batch, rules.section)
    return section.micro_batch


def _tell_recompute(section: Optimization, chosen: Recompute, rules: Rules) -> None:
    rule = f"the fewest first layers, so that {format_bytes(float(section.activation_memory or 0))} "
    rules.settle(
        "recompute_layers", "auto", chosen.layers or 0, rule + "hold the activations of the fullest one"
    )


def _save_every(
    recipe: Recipe, section: Optimization, shape: ModelShape, batch: StagePlan, facts: Facts, rules: Rules
) -> int:
    """On accelerators the best interval for their failures, up to half an hour. On a CPU a minute's work is
    at risk, or in a long run a two-hundredth of it, up to the same."""
    if section.save_every != "auto":
        return section.save_every
    fifth = longest_interval(batch.steps)
    step_s = predict_step(recipe, shape, batch, facts)[0].best.value
    if step_s is None:
        return int(rules.settle("save_every", "auto", fifth, "a fifth of the steps"))
    shortest_s, longest_s = _SAVE_INTERVAL_S
    failures = failures_of(recipe, shape, devices_of(batch.layout, facts), batch.async_save)
    if failures is None:
        interval_s, why = min(longest_s, max(shortest_s, batch.steps * step_s / 200.0)), ""
    elif failures.interval_s <= longest_s:
        interval_s, why = failures.interval_s, ": the best interval for the failures to expect"
    else:
        best = format_seconds(failures.interval_s)
        interval_s, why = longest_s, f": half an hour at most, though {best} would be best for the failures"
    every = max(1, round(interval_s / step_s))
    if fifth < every:
        every, why = fifth, ""
    rule = f"about every {format_seconds(every * step_s)} as predicted{why or ', five times at least'}"
    return int(rules.settle("save_every", "auto", every, rule))
