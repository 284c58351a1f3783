"""The model card: what the model is, what it read, how good it is, what it took, what it is not.

Every figure comes from the run's own files; what nobody measured or stated is said to be so. Format:
huggingface.co/docs/hub/model-cards (YAML front matter, then Markdown).
"""

import json
from pathlib import Path
from typing import Any

from bessemer.energy.accounting.account import account
from bessemer.energy.accounting.card import co2_front_matter
from bessemer.energy.accounting.ledger import StageLedger
from bessemer.energy.quantity import Quantity
from bessemer.export.fidelity import fidelity
from bessemer.formulas.shape import Adapter, ModelShape
from bessemer.formulas.tensors import count_params
from bessemer.recipe.load import load
from bessemer.rundir import Row, counting_rows, read_object, read_rows, stages, time_in_steps_s
from bessemer.units import J_PER_KWH, format_count, format_seconds

_RESULTS = [
    ("validation_loss", "validation loss [nat per token]"),
    ("perplexity", "perplexity per token"),
    ("bits_per_byte", "bits per byte"),
    ("task_loss", "loss on held-out answers [nat per token]"),
    ("exact_match", "exact match"),
    ("rouge_l", "ROUGE-L (F1)"),
    ("pair_loss", "loss on held-out pairs"),
    ("pair_accuracy", "pairs told apart"),
    ("mean_margin", "mean margin of pairs"),
    ("text_loss", "loss on held-out texts [nat per text]"),
    ("accuracy", "accuracy"),
    ("macro_f1", "macro F1"),
    ("calibration_error", "expected calibration error"),
]


def model_card(stage: Path, shape: ModelShape, special: dict[str, Any], receipt: dict[str, Any]) -> str:
    """shape: with adapters where the folder holds these alone."""
    run = stage.parent
    known = [entry for entry in stages(run) if entry == stage or entry.name == "pretrain"]
    name = run.resolve().name
    parts = [
        _front_matter(stage, known, shape, receipt),
        f"# {name}",
        _summary(stage, shape, receipt),
        "## Data\n\n" + _data(known),
        "## Evaluation\n\n" + _evaluation(run, known),
        "## Training\n\n" + _training(known),
        "## Use\n\n" + _use(shape, special, receipt if shape.adapter else None),
        "## Limits\n\n" + _limits(shape, special),
        "## Fidelity of this export\n\n" + fidelity(receipt),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(stage: Path, known: list[Path], shape: ModelShape, receipt: dict[str, Any]) -> str:
    licences = {source.get("licence") or "unknown" for entry in known for source in _sources(entry)}
    licence = next(iter(licences)).lower() if len(licences) == 1 else "other" if licences else "unknown"
    lines = ["---", f"license: {licence}  # that of the training data; state your own for the model"]
    lines += [f"# licences of the sources: {', '.join(sorted(licences))}"] if len(licences) > 1 else []
    languages = _languages(stage.parent)
    lines += ["language:", *(f"- {language}" for language in languages)] if languages else []
    lines += [] if languages else ["# language: not stated in the recipe"]
    lines += [f"base_model: {json.dumps(receipt['base'])}"] if receipt.get("base") else []
    lines += _carbon(stage, known)
    library = "transformers" if shape.adapter is None else "peft"
    tag = "text-classification" if shape.labels else "text-generation"
    return "\n".join([*lines, f"library_name: {library}", f"pipeline_tag: {tag}", "---"])


def _went_into(stage: Path, known: list[Path]) -> list[str]:
    """Names of this run's stages whose work is in the model, its own last: those that it began from."""
    origin = ((read_object(stage / "stage.json") or {}).get("origin") or {}).get("folder") or ""
    run = stage.parent.resolve().name  # not its whole path: a run may have been moved
    before = [entry.name for entry in known if Path(origin).parts[-2:] == (run, entry.name)]
    return [*before, stage.name]


def _carbon(stage: Path, known: list[Path]) -> list[str]:
    """Nothing where no metrics lie beside the checkpoint, as where it was saved again elsewhere."""
    if not (stage / "metrics.jsonl").is_file():
        return []
    return co2_front_matter(account(stage.parent), _went_into(stage, known))


def _languages(run: Path) -> list[str]:
    path = run / "recipe.toml"
    return (load(str(path), []).recipe.data.clean.language or []) if path.is_file() else []


def _summary(stage: Path, shape: ModelShape, receipt: dict[str, Any]) -> str:
    if shape.adapter is not None:
        return _summary_of_adapters(stage, shape, shape.adapter, receipt)
    head = "tied" if shape.tie_embeddings else "its own"
    return (
        f"A {format_count(count_params(shape))}-parameter decoder of the {shape.family} family: "
        f"{shape.layers} layers, {shape.hidden} wide, {shape.heads} query and {shape.kv_heads} key-value "
        f"heads of {shape.head_dim}, {shape.vocab} rows of embedding ({head} output matrix), trained on rows "
        f"of {shape.context} tokens. Stage `{stage.name}`, step {receipt['step']}; made with Bessemer."
    )


def _summary_of_adapters(stage: Path, shape: ModelShape, adapter: Adapter, receipt: dict[str, Any]) -> str:
    kind = "DoRA" if adapter.dora else "rsLoRA" if adapter.rslora else "LoRA"
    kept = "" if adapter.base == "float" else f", which was kept in {adapter.base} while they were trained"
    return (
        f"{kind} adapters of rank {adapter.rank}, scale {adapter.scale:g}, on {', '.join(adapter.targets)}: "
        f"{format_count(count_params(shape))} parameters for a base of the {shape.family} family with "
        f"{shape.layers} layers, {shape.hidden} wide{kept}. The base is {receipt['base'] or 'not named'}; "
        f"hash {receipt['base_hash']} (`base.json`). Stage `{stage.name}`, step {receipt['step']}; made with "
        "Bessemer."
    )


def _data(known: list[Path]) -> str:
    parts = []
    for stage in known:
        rows = [
            [
                source.get("name"),
                source.get("kind"),
                source.get("licence") or "not stated",
                _count(source.get("documents")),
                _count(source.get("tokens")),
            ]
            for source in _sources(stage)
        ]
        listing = _table(["source", "kind", "licence", "documents", "tokens"], rows)
        parts.append(
            f"Read by `{stage.name}`:\n\n{listing}" if rows else f"`{stage.name}`: counts not recorded."
        )
    return "\n\n".join(parts)


def _evaluation(run: Path, known: list[Path]) -> str:
    results = (read_object(run / "evaluate" / "results.json") or {}).get("stages") or {}
    rows = [
        [stage.name, meaning, f"{results[stage.name][key]:.4g}"]
        for stage in known
        for key, meaning in _RESULTS
        if results.get(stage.name, {}).get(key) is not None
    ]
    return _table(["stage", "measure", "value"], rows) if rows else "Not measured. Run `bessemer evaluate`."


def _training(known: list[Path]) -> str:
    rows = []
    for stage in known:
        every = read_rows(stage / "metrics.jsonl")
        counting = counting_rows([row for row in every if "loss" in row])
        if counting:
            energy = StageLedger(every, read_rows(stage / "events.jsonl")).energy
            rows.append([stage.name, *_figures(counting), _energy(energy)])
    return _table(["stage", "steps", "tokens", "final loss", "time in steps", "energy"], rows)


def _figures(rows: list[Row]) -> list[str]:
    last, seconds = rows[-1], time_in_steps_s(rows)
    return [
        _count(last["step"]),
        _count(last.get("tokens")),
        f"{last['loss']:.4f}",
        format_seconds(seconds) if seconds else "not measured",
    ]


def _energy(energy: Quantity) -> str:
    return "not measured" if energy.value is None else f"{energy.value / J_PER_KWH:.4g} kWh ({energy.basis})"


def _use(shape: ModelShape, special: dict[str, Any], adapters: dict[str, Any] | None) -> str:
    """adapters: the receipt of a folder that holds these alone."""
    first = special["bos"]["content"] if special["bos"] else None
    start = f" Training documents begin with `{first}`; put it in front of a prompt." if first else ""
    auto = "AutoModelForSequenceClassification" if shape.labels else "AutoModelForCausalLM"
    whole = [
        f"from transformers import {auto}, AutoTokenizer",
        "",
        f'model = {auto}.from_pretrained("path/to/this/folder")',
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")',
    ]
    base = json.dumps((adapters or {}).get("base") or "the base")
    labels = f", num_labels={shape.labels}" if shape.labels else ""
    apart = [
        "from peft import PeftModel",
        *whole[:2],
        f"base = {auto}.from_pretrained({base}{labels})",
        'model = PeftModel.from_pretrained(base, "path/to/this/folder")',
        whole[3],
    ]
    code = ["```python", *(whole if adapters is None else apart), "```"]
    return "\n".join(code) + (f"\n\n{start.strip()}" if start else "")


def _limits(shape: ModelShape, special: dict[str, Any]) -> str:
    padding = shape.vocab - special["size"]
    lines = [
        "It continues text in the manner of its data; it has no knowledge beyond it and was not aligned.",
        f"Rows longer than {shape.context} tokens were never seen in this training.",
        "Answers were not checked for bias, safety or personal data beyond what the recipe's cleaning does.",
    ]
    if padding > 0:
        lines.append(
            f"The last {padding} of {shape.vocab} embedding rows are padding to a multiple of 64: "
            "no text has these ids, and they were never a target."
        )
    return "\n".join(f"- {line}" for line in lines)


def _sources(stage: Path) -> list[dict[str, Any]]:
    info = read_object(stage / "stage.json") or {}
    folder = (info.get("data") or {}).get("folder")
    manifest = read_object(Path(folder) / "manifest.json") if folder else None
    return (manifest or {}).get("sources") or []


def _table(headings: list[str], rows: list[list[Any]]) -> str:
    def line(cells: list[Any]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(headings), line(["---"] * len(headings)), *map(line, rows)])


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) else "not recorded"
