"""What to do next about prepared data: what stands out in its figures, and the command or key that helps."""

from typing import Any

_MUCH_REFUSED, _MUCH_UNREADABLE, _MUCH_PII = 0.30, 0.01, 0.05
_FEW_BYTES_A_TOKEN = 2.5
_HOW = {
    "limit": "it reads only its first rows: raise `limit` if more are wanted",
    "code": "data.clean.code dropped them: look at what the function returns",
    "empty": "they hold no text: check `text`, which names the column, or the files",
    "language": "they are in other languages: add these to data.clean.language, or lower language_score",
    "quality": "lower data.clean.quality_score, or label more examples",
    "dedup.exact": "the same documents come again and again: see which below, and drop the files they are in",
    "dedup.minhash": "near-duplicates: raise data.clean.similarity if those below are not alike",
    "contaminated": "they hold passages of the evaluation sets: leave them out",
    "leak": "they hold passages of held-out documents: set `group`, which keeps them together",
}


def next_steps(document: dict[str, Any]) -> list[str]:
    """The most pressing first. Empty: nothing stands out."""
    steps: list[str] = []
    for source in document["sources"]:
        steps += _unaccounted(source) + _errors(source) + _refused(source) + _personal(source)
        per_token = source["bytes_per_token"]
        if per_token is not None and per_token < _FEW_BYTES_A_TOKEN and source["kind"] != "tokens":
            steps.append(
                f"{source['name']}: only {per_token:.2f} bytes a token: the tokenizer knows little of such "
                "text: raise tokenizer.vocab, or read more of this source"
            )
    if "" in document["licences"]:
        unknown = [source["name"] for source in document["sources"] if not source.get("licence")]
        steps.append(f"No licence is stated for {', '.join(unknown)}: set `licence` in [[data.source]]")
    return steps


def _unaccounted(source: dict[str, Any]) -> list[str]:
    if not source["missing_rows"]:
        return []
    return [
        f"{source['name']}: {source['missing_rows']:,} rows are unaccounted for: please report this mistake"
    ]


def _errors(source: dict[str, Any]) -> list[str]:
    if not source["rows_in"] or source["error_rows"] <= _MUCH_UNREADABLE * source["rows_in"]:
        return []
    told = ", ".join(f"{count:,} {reason}" for reason, count in source["errors"].items())
    share = source["error_rows"] / source["rows_in"]
    return [
        f"{source['name']}: {share:.1%} of the rows could not be read ({told}). "
        "Those below say which files; `bessemer data build --strict` stops at them"
    ]


def _refused(source: dict[str, Any]) -> list[str]:
    steps = []
    for rule, count in source["refused"].items():
        if count > _MUCH_REFUSED * source["rows_in"]:
            fix = f'see its examples below; to relax it set data.clean.thresholds."{rule}"'
            share = count / source["rows_in"]
            steps.append(f"{source['name']}: {rule} refuses {share:.0%} of the rows: {_HOW.get(rule, fix)}")
    return steps


def _personal(source: dict[str, Any]) -> list[str]:
    found = sum(source["pii"].values())
    if found <= _MUCH_PII * source["kept"]:
        return []
    return [
        f"{source['name']}: {found:,} pieces of personal data or secrets were redacted in {source['kept']:,} "
        "documents: ask whether this source may be used at all"
    ]
