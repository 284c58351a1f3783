"""The plan, the rules behind what was derived, and the prediction graded against what happened."""

from typing import Any

from bessemer.energy.accounting.account import relaid_after
from bessemer.report.grades import Grade, grades, steps_made
from bessemer.report.html import Markup, heading, paragraph, table, verdict
from bessemer.report.record import RunRecord


def planned(run: RunRecord) -> str:
    if run.plan is None:
        return ""
    return _graded(run) + _rules(run.plan) + _shape(run.plan)


def _graded(run: RunRecord) -> str:
    found = grades(run)
    if not found:
        return ""
    headings = ["Pre-training", "predicted", "band", "basis", "measured", "measured / predicted", "verdict"]
    title = heading("Predicted before the run, measured in it")
    return title + _score(run, found) + table(headings, list(map(_row, found)), numbers=(1, 2, 4, 5))


def _score(run: RunRecord, found: list[Grade]) -> str:
    """How many were right, for how much of the run, and what the run itself saw apart."""
    graded = [grade for grade in found if grade.inside is not None]
    words = f"{sum(map(bool, (grade.inside for grade in graded)))} of {len(graded)} predictions hold."
    stage = run.first_of_kind("pretrain")
    assert stage is not None and run.plan is not None, "graded without a stage"
    share, since = steps_made(stage, run.plan), relaid_after(stage.rows, run.plan)
    if since:
        words += (
            f" The layout changed after step {since:,}: they are for the {share:.0%} of its steps that were "
            "made since. Energy, money, carbon and goodput are of all steps, which no one plan predicts."
        )
    elif share < 1:
        words += f" Those of the whole run are for the {share:.0%} of its steps that were made."
    apart = [event for event in stage.events if event.get("kind") == "deviation"]
    if apart:
        times = "once" if len(apart) == 1 else f"{len(apart)} times"
        words += f" While it ran, steps left the prediction {times}; last: {apart[-1].get('cause')}."
    return paragraph(words, "note")


def _row(grade: Grade) -> list[Any]:
    is_predicted = grade.predicted is not None
    has_band = grade.low is not None and grade.high is not None
    band = f"{_figure(grade.low)} to {_figure(grade.high)}" if has_band else "no band given"
    found = grade.measured
    ratio = f"{found / grade.predicted:.2f} ×" if found is not None and grade.predicted else Markup("–")
    return [
        f"{grade.name} [{grade.unit}]" if grade.unit else grade.name,
        _figure(grade.predicted) if is_predicted else Markup('<span class="absent">not predicted</span>'),
        band if is_predicted else Markup("–"),
        grade.basis or Markup("–"),
        None if found is None else _figure(found),
        ratio,
        _verdict(grade),
    ]


def _verdict(grade: Grade) -> Markup:
    if grade.inside is None or grade.measured is None or grade.low is None or grade.high is None:
        return Markup("–")
    if grade.inside:
        return verdict("inside the band", tone="good")
    words = f"{grade.beyond:.0%} above the band"
    if grade.measured < grade.low:  # of the low end, so that nothing is more than 100 % below
        words = f"{1.0 - grade.measured / grade.low:.0%} below the band"
    return verdict(words, tone="warm" if grade.beyond < 0.25 else "bad")


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
