"""The plan, the rules behind what was derived, and the prediction graded against what happened."""

from typing import Any

from bessemer.report.html import Markup, heading, paragraph, table, verdict
from bessemer.report.record import RunRecord, StageRecord, number

# predicted quantity: (what it is called, unit, digits)
_QUANTITIES = {
    "step_time_s": ("Step time", "s"),
    "tokens_per_s": ("Throughput", "tokens/s"),
    "memory_gib": ("Memory", "GiB"),
    "mfu": ("MFU", ""),
    "hours": ("Time in steps", "h"),
    "kwh": ("Energy", "kWh"),
}


def planned(run: RunRecord) -> str:
    if run.plan is None:
        return ""
    return _graded(run) + _rules(run.plan) + _shape(run.plan)


def measured(stage: StageRecord) -> dict[str, float | None]:
    """What the rows say, in the plan's words and units."""
    memory, seconds = stage.largest("memory_bytes"), stage.time_in_steps_s
    energy = number(stage.last.get("energy_j"))
    return {
        "step_time_s": stage.middle("step_time_s"),
        "tokens_per_s": stage.middle("tokens_per_s"),
        "memory_gib": None if memory is None else memory / 2**30,
        "mfu": stage.middle("mfu"),
        "hours": None if seconds is None else seconds / 3600.0,
        "kwh": None if energy is None else energy / 3.6e6,
    }


def _graded(run: RunRecord) -> str:
    stage = run.first_of_kind("pretrain")
    if stage is None or run.plan is None:
        return ""
    predicted: dict[str, Any] = run.plan.get("predicted") or {}
    found = measured(stage)
    graded = (
        _row(name, unit, predicted.get(key) or {}, found[key]) for key, (name, unit) in _QUANTITIES.items()
    )
    rows = [row for row in graded if row is not None]
    if not rows:
        return ""
    headings = ["Pre-training", "predicted", "band", "basis", "measured", "measured / predicted", "verdict"]
    return heading("Predicted before the run, measured in it") + table(headings, rows, numbers=(1, 2, 4, 5))


def _row(name: str, unit: str, estimate: dict[str, Any], found: float | None) -> list[Any] | None:
    value, low, high = (number(estimate.get(key)) for key in ("value", "low", "high"))
    if value is None and found is None:
        return None
    band = f"{_figure(low)} to {_figure(high)}" if low is not None and high is not None else "no band given"
    ratio = f"{found / value:.2f} ×" if found is not None and value else Markup("–")
    return [
        f"{name} [{unit}]" if unit else name,
        Markup('<span class="absent">not predicted</span>') if value is None else _figure(value),
        band if value is not None else Markup("–"),
        estimate.get("basis", "") if value is not None else Markup("–"),
        None if found is None else _figure(found),
        ratio,
        _verdict(low, high, found),
    ]


def _verdict(low: float | None, high: float | None, found: float | None) -> Markup:
    if low is None or high is None or found is None:
        return Markup("–")
    if low <= found <= high:
        return verdict("inside the band", tone="good")
    beyond = (found / high if found > high else low / found) - 1.0 if found and high and low else 1.0
    words = f"{beyond:.0%} {'above' if found > high else 'below'} the band"
    return verdict(words, tone="warm" if beyond < 0.25 else "bad")


def _rules(plan: dict[str, Any]) -> str:
    rows = [[row["key"], _plain(row["value"]), row["rule"]] for row in plan.get("derived") or []]
    if not rows:
        return ""
    lead = paragraph("The recipe left these to Bessemer. Each can be set with --set key=value.", "note")
    return heading("What was derived, and by which rule") + lead + table(["key", "value", "rule"], rows)


def _shape(plan: dict[str, Any]) -> str:
    shape, layout = plan.get("shape") or {}, plan.get("layout") or {}
    rows = [[name, _plain(value)] for name, value in shape.items() if value not in (None, 0, False, "", {})]
    degrees = ", ".join(f"{name} {_plain(value)}" for name, value in layout.items() if value not in (None, 1))
    note = paragraph(f"On {plan.get('device', 'an unnamed device')}; layout: {degrees or 'one process'}.")
    opening = "<details><summary>The shape of the model and the layout</summary>"
    return f"{opening}{note}{table(['shape', 'value'], rows, numbers=(1,))}</details>"


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict | list):
        return ", ".join(map(_plain, value)) if isinstance(value, list) else _pairs(value)
    return str(value)


def _pairs(value: dict[str, Any]) -> str:
    return ", ".join(f"{key} = {_plain(entry)}" for key, entry in value.items())


def _figure(value: float | None) -> str:
    """Four digits, without an exponent for what people read every day."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}" if abs(value) >= 1e-3 else f"{value:.2e}"
