"""What came out: the two-stage comparison, the evaluation, samples, and the proof of the export."""

from html import escape
from typing import Any

from bessemer.report.html import Markup, heading, paragraph, table, text, verdict
from bessemer.report.record import RunRecord, number
from bessemer.report.svg import Chart, Series, draw

_MEASURES = [
    ("validation_loss", "Validation loss [nat / token]", "{:.4f}"),
    ("replayed_loss", "Loss on held-out documents of the replayed data [nat / token]", "{:.4f}"),
    ("perplexity", "Perplexity [per token]", "{:.2f}"),
    ("bits_per_byte", "Bits per byte", "{:.4f}"),
    ("task_loss", "Loss on held-out answers [nat / token]", "{:.4f}"),
    ("exact_match", "Exact match", "{:.1%}"),
    ("rouge_l", "ROUGE-L (F1)", "{:.3f}"),
    ("reward", "Mean reward", "{:.3f}"),
    ("pair_loss", "Loss on held-out pairs [nat / pair]", "{:.4f}"),
    ("pair_accuracy", "Pairs told apart", "{:.1%}"),
    ("mean_margin", "Mean margin of pairs", "{:.4f}"),
    ("text_loss", "Loss on held-out texts [nat / text]", "{:.4f}"),
    ("accuracy", "Accuracy", "{:.1%}"),
    ("macro_f1", "Macro F1", "{:.3f}"),
    ("calibration_error", "Expected calibration error", "{:.3f}"),
]


def two_stages(run: RunRecord) -> str:
    """Fine-tuning from the pretrained weights against training on the task from scratch."""
    result = run.comparison
    if result is None:
        return ""
    scratch, curve = result.get("scratch") or {}, _curve(result)
    unit, several = str(result.get("unit", "answer token")), int(result.get("seeds") or 1) > 1
    rows = [
        [name, f"{point['examples']:,}", *(_loss(point.get(key)) for key in ("mean", "low", "high"))]
        for name, points in zip(("pretrained", "from scratch"), curve, strict=True)
        for point in points
    ]
    headings = ["start", "examples", f"loss on held-out answers [nat / {unit}]", "lowest", "highest"]
    # Of one seed there is no spread to tell.
    shown = len(headings) if several else 3
    figures = table(headings[:shown], [row[:shown] for row in rows], numbers=range(1, shown))
    best = f"{result['sentence']} " if result.get("sentence") else ""
    lead = f"{best}Ratio of examples: {result.get('ratio', 'not measured')}."
    chart = draw(_against_examples(curve, unit, int(result.get("seeds") or 1)))
    return f'{paragraph(lead)}<div class="beside"><div>{figures}{_tried(scratch)}</div>{chart}</div>'


def _curve(result: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Points of the two starts. A comparison from before there were curves has means alone."""
    found = result.get("curve")
    if found is not None:
        return found["pretrained"], found["scratch"]
    counts, losses = result.get("examples") or [], result.get("pretrained") or []
    scratch = result.get("scratch") or {}
    points = [{"examples": n, "mean": loss} for n, loss in zip(counts, losses, strict=True)]
    return points, [{"examples": scratch["examples"], "mean": scratch.get("loss")}] if scratch else []


def _against_examples(
    curve: tuple[list[dict[str, Any]], list[dict[str, Any]]], unit: str, seeds: int
) -> Chart:
    """Where the random start was measured on all examples only, it is a level to compare with."""
    series = []
    for colour, (name, points) in enumerate(zip(("pretrained", "from scratch"), curve, strict=True), start=1):
        line = [(float(point["examples"]), number(point.get("mean"))) for point in points]
        spread = [(float(p["examples"]), p["low"], p["high"]) for p in points] if seeds > 1 else []
        if len(points) == 1 and len(curve[0]) > 1:
            ends = sorted(float(point["examples"]) for point in [*curve[0], *points])
            level = [(end, line[0][1]) for end in (ends[0], ends[-1])]
            series.append(Series(f"{name}, all examples", level, colour, dashed=True))
        else:
            series.append(Series(name, line, colour, spread=spread))
    note = f"mean, lowest and highest of {seeds} trainings each" if seeds > 1 else ""
    return Chart(
        "Loss against examples", series, "examples of the task (log)", f"nat / {unit}", log_x=True, note=note
    )


def evaluation(run: RunRecord) -> str:
    stages: dict[str, dict[str, Any]] = (run.evaluation or {}).get("stages") or {}
    if not stages:
        return ""
    rows = []
    for key, name, form in _MEASURES:
        values = [number(result.get(key)) for result in stages.values()]
        if any(value is not None for value in values):
            rows.append([name, *(Markup("–") if v is None else form.format(v) for v in values)])
    rows.append(["Held-out examples answered", *(str(r.get("examples") or "–") for r in stages.values())])
    rows.append(["Checkpoint, step", *(str(result.get("step", "–")) for result in stages.values())])
    names = {key: name.split(" [")[0] for key, name, _ in _MEASURES}
    notes = "".join(
        paragraph(f"{names.get(key, key.replace('_', ' '))}: {words}", "note")
        for key, words in ((run.evaluation or {}).get("conventions") or {}).items()
    )
    return table(["", *stages], rows, numbers=range(1, len(stages) + 1)) + notes


def samples(run: RunRecord) -> str:
    """What each evaluated stage wrote, next to what was expected. Everything is escaped."""
    stages: dict[str, dict[str, Any]] = (run.evaluation or {}).get("stages") or {}
    parts = []
    for name, result in stages.items():
        cards = "".join(_sample(sample) for sample in result.get("samples") or [])
        if cards:
            parts.append(heading(name) + f'<div class="samples">{cards}</div>')
    lead = paragraph("Greedy decoding, first held-out examples, not chosen by hand.", "note")
    return lead + "".join(parts) if parts else ""


def export_proof(run: RunRecord) -> str:
    if not run.exports:
        return ""
    rows = []
    for receipt in run.exports:
        difference = number(receipt.get("max_absolute_logit_difference"))
        fine = difference is not None and difference <= (number(receipt.get("tolerance")) or 0.0)
        told = f"{difference:.2e}" if difference is not None else str(receipt.get("reason") or "not measured")
        rows.append(
            [
                receipt["folder"],
                receipt.get("dtype"),
                str(receipt.get("weights", "")),
                verdict(told, tone="good" if fine else "bad") if difference is not None else told,
                f"transformers {receipt['transformers']}" if receipt.get("transformers") else "–",
            ]
        )
    headings = ["folder", "stored as", "weights", "largest |Δ logit| in fp32", "against"]
    return table(headings, rows)


def _tried(scratch: dict[str, Any]) -> str:
    tried = scratch.get("tried") or []
    if not tried:
        return ""
    rows = [
        [f"{row['lr']:g}", _loss(row.get("loss")), "taken" if row["lr"] == scratch.get("lr") else ""]
        for row in tried
    ]
    lead = paragraph("From scratch had its own search for a learning rate, so that the race is fair.", "note")
    return lead + table(["learning rate from scratch", "loss", ""], rows, numbers=(0, 1))


def _sample(sample: dict[str, Any]) -> str:
    parts = [("prompt", sample.get("prompt")), ("model", sample.get("answer"))]
    parts.append(("expected", sample.get("expected")))
    blocks = "".join(
        f"<h4>{name}</h4><pre>{escape(str(words))}</pre>" for name, words in parts if words is not None
    )
    rouge = number(sample.get("rouge_l"))
    score = f'<p class="note">ROUGE-L {text(f"{rouge:.2f}")}</p>' if rouge is not None else ""
    return f'<div class="sample">{blocks}{score}</div>'


def _loss(value: Any) -> str | None:
    known = number(value)
    return None if known is None else f"{known:.4f}"
