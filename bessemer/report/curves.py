"""The curves of every training stage, against tokens."""

from html import escape

from bessemer.report.html import heading
from bessemer.report.record import RunRecord, StageRecord, number
from bessemer.report.svg import Chart, Series, draw

_TOKENS = "tokens"
_MAIN = ("pretrain", "finetune")


def curves(run: RunRecord) -> str:
    """All curves of the main stages; those of further ones (finetune-scratch …) open when clicked."""
    parts = []
    for stage in run.stages:
        if len(stage.rows) > 1:
            charts = f'<div class="charts">{"".join(draw(chart) for chart in _charts(stage))}</div>'
            title = f"{stage.name}: {len(stage.rows)} steps"
            if stage.name in _MAIN:
                parts.append((heading(title) if len(run.stages) > 1 else "") + charts)
            else:
                parts.append(f"<details><summary>{escape(title)}</summary>{charts}</details>")
    return "".join(parts)


def _charts(stage: StageRecord) -> list[Chart]:
    marks = _marks(stage)
    basis = _power_basis(stage)
    plain = [
        ("Learning rate", "lr", "learning rate", 1.0, 4, ""),
        ("Throughput", "tokens_per_s", "tokens / s", 1.0, 3, ""),
        ("Gradient norm", "grad_norm", "global L2 norm", 1.0, 5, "before clipping"),
        ("Memory", "memory_bytes", "GiB", 2.0**-30, 6, "peak of the largest rank"),
        ("Power", "power_w", "W", 1.0, 2, f"all devices of the run, {basis}"),
    ]
    charts = [_loss(stage, marks)]
    for title, key, label, scale, colour, note in plain:
        points = [(x, None if y is None else y * scale) for x, y in stage.curve(key)]
        from_zero = key != "grad_norm"
        series = [Series(title, points, colour)]
        charts.append(Chart(title, series, _TOKENS, label, from_zero=from_zero, marks=marks, note=note))
    return charts


def _loss(stage: StageRecord, marks: list[tuple[float, str]]) -> Chart:
    series = [Series("training", stage.curve("loss"), 1, faint=len(stage.rows) > 200)]
    if len(stage.rows) > 200:
        series.append(Series("training, running mean", _running_mean(stage.curve("loss")), 1))
    if stage.validations:
        points = [
            (row["tokens"], number(row["validation_loss"])) for row in stage.validations if "tokens" in row
        ]
        series.append(Series("validation", points, 2))
    target = "answer token" if stage.kind == "finetune" else "token"
    return Chart("Loss", series, _TOKENS, f"nat / {target}", marks=marks)


def _running_mean(points: list[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """Exponential, over about a fiftieth of the run, without the pull of its start."""
    keep = 1.0 - 1.0 / max(2.0, len(points) / 50.0)
    mean, weight, smooth = 0.0, 0.0, list[tuple[float, float | None]]()
    for x, y in points:
        if y is not None:
            mean, weight = keep * mean + (1.0 - keep) * y, keep * weight + 1.0 - keep
        smooth.append((x, mean / weight if weight else None))
    return smooth


def _marks(stage: StageRecord) -> list[tuple[float, str]]:
    """Where a new process took over."""
    tokens_at = {row["step"]: row.get("tokens") for row in stage.rows}
    return [
        (float(tokens), f"resumed at step {event['step']}, attempt {event.get('attempt')}")
        for event in stage.events
        if event.get("kind") == "resume" and (tokens := tokens_at.get(event.get("step"))) is not None
    ]


def _power_basis(stage: StageRecord) -> str:
    row = stage.last
    power = row.get("power_w")
    energy = row.get("energy_j")
    for part in (power, energy):
        if isinstance(part, dict) and part.get("basis"):
            return escape(str(part["basis"]))
    return escape(str(row.get("power_basis") or row.get("energy_basis") or "basis not recorded"))
