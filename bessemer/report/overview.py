"""The top of the report: what was trained and how it came out, in one sentence and a few figures."""

from html import escape

from bessemer.formulas.objective import PREFERENCES
from bessemer.report.html import Tile, tiles
from bessemer.report.record import RunRecord, StageRecord, number
from bessemer.units import format_count, format_joules, format_seconds


def header(run: RunRecord) -> str:
    figures = [_model_tile(run), *_training_tiles(run), *_result_tiles(run)]
    return f'<h1>{escape(run.name)}</h1><p class="lead">{escape(result_sentence(run))}</p>{tiles(figures)}'


def result_sentence(run: RunRecord) -> str:
    """What was trained on what, and the result, from the figures that are there."""
    parts = []
    pretrain = run.first_of_kind("pretrain")
    if pretrain is not None:
        parts.append(_pretrain_words(run, pretrain))
    finetune = run.first_of_kind("finetune")
    if finetune is not None:
        parts.append(_finetune_words(run, finetune, begun=pretrain is not None))
    sentence = ("; ".join(parts) or "Nothing has been trained yet") + "."
    return sentence if run.comparison is None else f"{sentence} {run.comparison.get('sentence', '')}".strip()


def held_out(run: RunRecord, stage: StageRecord) -> tuple[float | None, float | None]:
    """Loss and bits per byte of the stage's end: on all held-out rows where they were evaluated since, else
    the loss on those that training measures."""
    result = ((run.evaluation or {}).get("stages") or {}).get(stage.name) or {}
    if result.get("step") == stage.last.get("step") and number(result.get("validation_loss")) is not None:
        return number(result["validation_loss"]), number(result.get("bits_per_byte"))
    return stage.final_validation, None


def _pretrain_words(run: RunRecord, stage: StageRecord) -> str:
    shape = (run.plan or {}).get("shape") or stage.info.get("shape") or {}
    params = number((run.plan or {}).get("params"))
    size = f"{format_count(params)}-parameter " if params else ""
    tokens = number(stage.last.get("tokens"))
    words = f"A {size}{shape.get('family', 'language')} model read "
    words += f"{format_count(tokens)} tokens" if tokens else "its first tokens"
    sources = (stage.data or {}).get("sources")
    words += f" of {len(sources)} source{'s' * (len(sources) != 1)}" if sources else ""
    seconds = stage.time_in_steps_s
    words += f" in {format_seconds(seconds)}" if seconds else ""
    validation, bits = held_out(run, stage)
    if validation is not None:
        words += f" and ends at a validation loss of {validation:.3f} nat per token"
        words += f" ({bits:.3f} bits per byte)" if bits is not None else ""
    elif number(stage.last.get("loss")) is not None:
        words += f" and ends at a training loss of {stage.last['loss']:.3f} nat per token"
    return words


def _finetune_words(run: RunRecord, stage: StageRecord, *, begun: bool) -> str:
    subject = "fine-tuning" if begun else "Fine-tuning"
    first, last = (
        (number(stage.validations[0]["validation_loss"]), stage.final_validation)
        if stage.validations
        else (None, None)
    )
    words = f"{subject} took {format_count(len(stage.rows))} steps"
    if first is not None and last is not None and len(stage.validations) > 1:
        kind = ((stage.info.get("plan") or {}).get("objective") or {}).get("kind")
        what = "pairs" if kind in PREFERENCES else "texts" if kind == "classify" else "answers"
        words += f" and brought the loss on held-out {what} from {first:.3f} to {last:.3f}"
    result = ((run.evaluation or {}).get("stages") or {}).get(stage.name) or {}
    rouge, exact = number(result.get("rouge_l")), number(result.get("exact_match"))
    if rouge is not None and exact is not None:
        words += f", with ROUGE-L {rouge:.2f} and {exact:.0%} exact matches on held-out examples"
    told_apart, accuracy = number(result.get("pair_accuracy")), number(result.get("accuracy"))
    if told_apart is not None:
        words += f", with {told_apart:.0%} of the held-out pairs told apart"
    if accuracy is not None:
        words += f", with {accuracy:.0%} of the held-out labels right"
    return words


def _model_tile(run: RunRecord) -> Tile:
    plan = run.plan or {}
    shape = plan.get("shape") or (run.stages[0].info.get("shape") if run.stages else None) or {}
    params = number(plan.get("params"))
    note = f"{shape['layers']} layers × {shape['hidden']} wide, {shape['family']}" if shape else ""
    return Tile("Parameters", format_count(params) if params else None, note)


def _training_tiles(run: RunRecord) -> list[Tile]:
    stage = run.first_of_kind("pretrain") or run.stages[0]
    tokens, seconds, pace = (
        number(stage.last.get("tokens")),
        stage.time_in_steps_s,
        stage.middle("tokens_per_s"),
    )
    mfu = stage.middle("mfu")
    energy = run.account["stages"][stage.name]["energy_j"]
    return [
        Tile("Tokens trained on", format_count(tokens) if tokens else None, f"{len(stage.rows)} steps"),
        Tile(
            "Time in steps",
            format_seconds(seconds) if seconds else None,
            _attempts(stage),
        ),
        Tile(
            "Tokens per second",
            format_count(pace) if pace else None,
            f"median; MFU {mfu:.1%}" if mfu is not None else "median; MFU not measured",
        ),
        Tile(
            f"Energy, {stage.name}",
            None if energy["value"] is None else format_joules(energy["value"]),
            energy["basis"],
        ),
    ]


def _attempts(stage: StageRecord) -> str:
    count = len({row.get("attempt") for row in [*stage.events, *stage.rows]})
    return "one attempt" if count == 1 else f"{count} attempts, resumed"


def _result_tiles(run: RunRecord) -> list[Tile]:
    stage = run.first_of_kind("pretrain") or run.stages[0]
    validation, bits = held_out(run, stage)
    entries = [
        Tile(
            "Validation loss",
            f"{validation:.3f}" if validation is not None else None,
            f"{bits:.3f} bits per byte" if bits is not None else "nat per target token",
        )
    ]
    if run.comparison is not None:
        ratio = str(run.comparison.get("ratio", "")) or None
        entries.append(Tile("Fewer examples needed", ratio, "pretrained against from scratch"))
    return entries
