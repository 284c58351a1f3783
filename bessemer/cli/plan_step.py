"""What `bessemer plan` tells of a step of the layout, part by part, and of failures between steps."""

from dataclasses import asdict
from typing import Any

from bessemer.cli.columns import text_table
from bessemer.units import format_seconds

_PART_NAMES = {
    "matmul_s": "matmuls", "attention_s": "attention", "vector_s": "norms, activations",
    "recompute_s": "recomputation", "tensor_s": "tensor exchanges", "context_s": "context exchanges",
    "expert_s": "expert exchanges", "pipeline_s": "pipeline sends", "bubble_s": "bubble",
    "data_s": "gradients, weights", "optimizer_s": "optimizer", "overhead_s": "overhead, waiting",
}  # fmt: skip
_HARDLY_ANY = 0.01  # failures in a run


def step_document(plan: Any, facts: Any, cluster: Any) -> dict[str, Any] | None:
    """Seconds of a step by part, each with its band; exchanges as far as they show. None: no cost model, and
    no calibration of this machine."""
    from bessemer.planner.calibrated.step_time import step_seconds
    from bessemer.planner.compiling import as_run
    from bessemer.planner.step import stage_step

    stage = as_run(plan.shape, plan.pretrain, facts)
    step, measured = stage_step(plan.shape, stage, cluster), step_seconds(plan.shape, stage, facts)
    if step is not None:
        whole, seconds, hidden_s = step.estimate, step.parts, step.hidden_s
    elif measured is not None:
        whole, hidden_s = plan.predicted["step_time_s"], 0.0
        seconds = {name: each * whole.value / measured.value for name, each in measured.parts.items()}
    else:
        return None
    assert whole.value is not None, "a step that was costed"
    parts = {name: asdict(whole.times(each / whole.value)) for name, each in seconds.items()}
    return {"parts": parts, "hidden_exchange_s": asdict(whole.times(hidden_s / whole.value))}


def reliability_document(plan: Any, cluster: Any) -> dict[str, Any] | None:
    """Failures to expect, and how often to save. None where hours are not known, and on a CPU."""
    from bessemer.formulas.goodput import daly_interval_s
    from bessemer.planner.machine.cluster import reliability_of
    from bessemer.planner.plan import Estimate

    hours = plan.predicted["hours"]
    if hours.value is None or cluster.device.kind == "cpu":
        return None
    found = reliability_of(plan.params, cluster, asynchronous=plan.pretrain.async_save)
    between_s, save_s = found.between_failures_s, found.save_s
    low_s, high_s = (daly_interval_s(end, between_s) for end in (save_s.low, save_s.high))
    interval = Estimate(
        found.interval_s, min(low_s, found.interval_s), max(high_s, found.interval_s), "assumed"
    )
    return {
        "expected_failures": asdict(hours.times(found.expected_failures(1.0))),
        "checkpoint_interval_s": asdict(interval),
        "saved_every_s": plan.predicted["step_time_s"].times(plan.pretrain.save_every).value,
        "hours_between_failures": between_s / 3600.0,
    }


def show_step(step: dict[str, Any]) -> str:
    """The step's parts, the large ones first."""
    rows = sorted(step["parts"].items(), key=lambda pair: -pair[1]["value"])
    whole = sum(row["value"] for _, row in rows)
    table = [
        [_PART_NAMES[name], *(f"{row[end]:.3g}" for end in ("value", "low", "high")),
         f"{row['value'] / whole:.1%}"]
        for name, row in rows if row["value"] > 0.0005 * whole
    ]  # fmt: skip
    lines = text_table(["A step, seconds", "", "low", "high", "share"], table)
    hidden = step["hidden_exchange_s"]["value"]
    if hidden > 0:
        lines.append(f"exchanges as far as they show; {hidden:.3g} s more hide behind compute")
    return "\n".join(lines)


def show_reliability(document: dict[str, Any]) -> str:
    failures, interval = document["expected_failures"], document["checkpoint_interval_s"]
    between_h = document["hours_between_failures"]
    if failures["high"] < _HARDLY_ANY:
        expected = f"hardly any (below {_HARDLY_ANY:g})"
    else:
        expected = f"{failures['value']:.3g} ({failures['low']:.3g} to {failures['high']:.3g})"
    ends = [format_seconds(interval[end]) for end in ("value", "low", "high")]
    best = f"{ends[0]} ({ends[1]} to {ends[2]})"
    if interval["value"] > 3600.0 * failures["value"] * between_h:
        best = "longer than the run"
    text = f"Failures to expect: {expected}, one in {between_h:,.1f} hours. Best checkpoint interval: {best}"
    return f"{text}; this run saves every {format_seconds(document['saved_every_s'])}"
