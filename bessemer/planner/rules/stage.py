"""What the keys of one training section allow beside each other: checks, and what follows from them."""

from bessemer.errors import RecipeError
from bessemer.formulas.layout import V_SHAPED, Layout
from bessemer.formulas.shape import ModelShape
from bessemer.recipe.schema import Optimization


def check_micro_batch(micro_batch: int, rows: int, name: str) -> None:
    """RecipeError when a micro-batch holds more rows than a step has. `name`: of the recipe's section."""
    if micro_batch > rows:
        raise RecipeError(
            "micro_batch is larger than the batch",
            found=f"{name}.micro_batch = {micro_batch} rows, a step has {rows}",
            wanted=f"at most {rows}",
            fix=f"set {name}.micro_batch={rows}, or raise {name}.batch_tokens",
        )


def compile_for(section: Optimization, layout: Layout, name: str) -> bool | str:
    """The section's `compile`, and False for "auto" where layout or recomputation does not run compiled.

    RecipeError where `compile = true` is asked for there. name: of the recipe's section.
    """
    reason = eager_only(layout, section.recompute)
    if reason is None:
        return section.compile
    if section.compile is True:
        by_layout = reason.startswith("schedule")
        raise RecipeError(
            f"{reason} does not run compiled",
            found=f"{name}.compile = true" + ("" if by_layout else f', {name}.recompute = "selective"'),
            wanted=f'compile = false or "auto" with {reason}',
            fix=f"set {name}.compile=false, or {'schedule=1f1b' if by_layout else 'recompute=full'}",
        )
    return False


def eager_only(layout: Layout, recompute: str) -> str | None:
    """What of a stage cannot be compiled: V-shaped schedules make weight gradients later (model/deferred.py),
    and selective recomputation picks single operators (model/recompute.py). None: all can."""
    if layout.pipeline > 1 and layout.schedule in V_SHAPED:
        return f"schedule={layout.schedule}"
    return "recompute=selective" if recompute == "selective" else None


def check_balance(section: Optimization, shape: ModelShape, name: str) -> None:
    if "router_balance" in section.model_fields_set and not shape.experts:
        raise RecipeError(
            f"{name}.router_balance has no effect",
            found=f"router_balance = {section.router_balance} with a dense model",
            wanted="router_balance only with experts to balance",
            fix=f"remove {name}.router_balance, or choose a model.family with experts",
        )


def check_schedule(section: Optimization, steps: int, warmup: int, decay_steps: int) -> None:
    given, schedule = section.model_fields_set, section.schedule
    checks = [
        (warmup >= steps and warmup > 0, f"warmup = {warmup}, steps = {steps}",
         "a warm-up shorter than the run", f"set warmup={steps // 20}"),
        (warmup + decay_steps > steps, f"warmup = {warmup} and {decay_steps} steps of decay in {steps} steps",
         "warm-up and decay within the run", "lower warmup or decay"),
        ("decay" in given and schedule != "wsd", f'decay = {section.decay} with schedule = "{schedule}"',
         'decay only with schedule = "wsd"', "remove decay: it has no effect"),
        ("final_lr" in given and schedule != "cosine",
         f'final_lr = {section.final_lr} with schedule = "{schedule}"',
         'final_lr only with schedule = "cosine"', "remove final_lr: it has no effect"),
    ]  # fmt: skip
    for wrong, found, wanted, fix in checks:
        if wrong:
            raise RecipeError("the schedule contradicts itself", found=found, wanted=wanted, fix=fix)
