"""The figures of a data report: what a manifest says, summed, shared out and turned to rates.

A row that was read is in exactly one place: kept, refused by one rule, or an error. `missing_rows` is what
is left over, which is 0. Bytes: `bytes_in` are those of the files, all others of text, so that what a page
was made of and its text differ (`no_text_bytes`).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from bessemer.data.clean.rules import RULES
from bessemer.data.prepared import Prepared, PreparedTask
from bessemer.data.tokens.sidecar import read_sidecar
from bessemer.recipe.schema import Data
from bessemer.report.data_advice import next_steps

DUPLICATES = {"dedup.exact": "exact", "dedup.minhash": "near"}
CONTAMINATION = ("contaminated", "leak")
# As decided, with the rules of quality in between (factory/decide.py).
_FIRST_RULES = ("limit", "code", "empty", "language")
_LAST_RULES = ("quality", "dedup.exact", "dedup.minhash", *CONTAMINATION)
_MOST_SHARDS = 64  # of each source, looked into for its languages' tokens


def data_document(prepared: Prepared | PreparedTask, data: Data | None = None) -> dict[str, Any]:
    """Everything that the page shows, as JSON. data: the recipe's section, for the shares of its mixture."""
    manifest = prepared.manifest
    sources = [_source(source) for source in manifest["sources"]]
    for source, share in zip(sources, _shares(sources, data), strict=True):
        source["mixture_share"] = share
    document = {
        "manifest": str(prepared.folder / "manifest.json"),
        "kind": manifest["kind"],
        "hash": manifest["hash"],
        "tokenizer": manifest["tokenizer"],
        "splits": manifest["splits"],
        "sources": sources,
        "total": _total(sources),
        "languages": _counted(source["languages"] for source in sources),
        "language_tokens": _language_tokens(prepared),
        "pii": _counted(source["pii"] for source in sources),
        "licences": _licences(sources),
        "timings": _timings(manifest),
    }
    return {**document, "next": next_steps(document)}


def in_order(reasons: Iterable[str]) -> list[str]:
    """Rules in the order in which they are asked; those of quality in the order of their list."""
    rules = list(RULES)

    def place(name: str) -> tuple[int, int]:
        if name in _FIRST_RULES:
            return 0, _FIRST_RULES.index(name)
        if name in _LAST_RULES:
            return 2, _LAST_RULES.index(name)
        return 1, rules.index(name) if name in rules else len(rules)

    return sorted(reasons, key=place)


def _source(told: dict[str, Any]) -> dict[str, Any]:
    refused, errors = told["refused"], told["errors"]
    kept_bytes, refused_bytes = told.get("kept_bytes"), told.get("refused_bytes") or {}
    splits = told.get("splits") or {}
    text_bytes = sum(split["bytes"] for split in splits.values())
    text_in = None if kept_bytes is None else kept_bytes + sum(refused_bytes.values())
    return {
        **{name: value for name, value in told.items() if name != "shards"},
        "languages": told.get("languages") or {},
        "pii": told.get("pii") or {},
        "lengths": told.get("lengths") or {},
        "kept_bytes": kept_bytes,
        "refused_bytes": refused_bytes,
        "refused_rows": sum(refused.values()),
        "error_rows": sum(errors.values()),
        "missing_rows": told["rows_in"] - told["kept"] - sum(refused.values()) - sum(errors.values()),
        "no_text_bytes": None if text_in is None else max(0, told["bytes_in"] - text_in),
        "kept_share": _ratio(told["kept"], told["rows_in"]),
        "tokens_per_document": _ratio(told["tokens"], told["documents"]),
        "bytes_per_token": _ratio(text_bytes, told["tokens"]) if text_bytes else None,
        "tokens_per_word": _ratio(told["tokens"], told.get("words") or 0),
        "duplicates": _duplicates(refused, told["rows_in"]),
        "contamination": {name: refused.get(name, 0) for name in CONTAMINATION},
    }


def _total(sources: Sequence[dict[str, Any]]) -> dict[str, Any]:
    names = (
        "rows_in",
        "kept",
        "refused_rows",
        "error_rows",
        "missing_rows",
        "bytes_in",
        "documents",
        "tokens",
    )
    total = {name: sum(source[name] for source in sources) for name in names}
    refused = _counted(source["refused"] for source in sources)
    return {
        **total,
        "kept_bytes": _sum_known(source["kept_bytes"] for source in sources),
        "refused": {name: refused[name] for name in in_order(refused)},
        "refused_bytes": _counted(source["refused_bytes"] for source in sources),
        "errors": _counted(source["errors"] for source in sources),
        "kept_share": _ratio(total["kept"], total["rows_in"]),
        "duplicates": _duplicates(refused, total["rows_in"]),
        "contamination": {name: refused.get(name, 0) for name in CONTAMINATION},
    }


def _duplicates(refused: dict[str, int], rows_in: int) -> dict[str, Any]:
    counts = {kind: refused.get(rule, 0) for rule, kind in DUPLICATES.items()}
    return {**counts, "share": _ratio(sum(counts.values()), rows_in)}


def _shares(sources: Sequence[dict[str, Any]], data: Data | None) -> list[float | None]:
    """Of what is read while training begins; None where no recipe says, or it is another one's."""
    if data is None or [source.name for source in data.source] != [source["name"] for source in sources]:
        return [None] * len(sources)
    sizes = [
        source["splits"]["train"]["tokens"] if source.get("splits") else source["tokens"]
        for source in sources
    ]
    weights = [
        one.weight * float(size) ** data.mixture.temperature if size else 0.0
        for one, size in zip(data.source, sizes, strict=True)
    ]
    whole = sum(weights)
    return [weight / whole if whole else None for weight in weights]


def _language_tokens(prepared: Prepared | PreparedTask) -> dict[str, Any] | None:
    """{languages: {language: {documents, tokens, bytes}}, complete}; None where no language was told."""
    if not isinstance(prepared, Prepared):
        return None
    found: dict[str, Counter[str]] = {}
    complete = True
    for stems in prepared.stems("train"):
        complete = complete and len(stems) <= _MOST_SHARDS
        for stem in islice(stems, _MOST_SHARDS):
            table = read_sidecar(stem, ["language", "tokens", "bytes", "words"])
            grouped = table.group_by("language").aggregate(
                [("tokens", "sum"), ("bytes", "sum"), ("words", "sum"), ([], "count_all")]
            )
            for row in grouped.to_pylist():
                if row["language"] is not None:
                    counts = {
                        "documents": row["count_all"],
                        "tokens": row["tokens_sum"],
                        "bytes": row["bytes_sum"],
                        "words": row["words_sum"],
                    }
                    found.setdefault(row["language"], Counter()).update(counts)
    if not found:
        return None
    ordered = sorted(found, key=lambda language: -found[language]["tokens"])
    return {"languages": {language: dict(found[language]) for language in ordered}, "complete": complete}


def _licences(sources: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Largest first. "" is not stated."""
    found: dict[str, Counter[str]] = {}
    for source in sources:
        counts = {"sources": 1, "documents": source["documents"], "tokens": source["tokens"]}
        found.setdefault(source.get("licence") or "", Counter()).update(counts)
    return {name: dict(found[name]) for name in sorted(found, key=lambda name: -found[name]["tokens"])}


def _timings(manifest: dict[str, Any]) -> dict[str, Any]:
    """Wall seconds of each step of the build that wrote it; what was cached took none."""
    seconds: dict[str, float] = {
        name.removesuffix("_s"): value for name, value in (manifest.get("timings_s") or {}).items()
    }
    bytes_in = sum(source["bytes_in"] for source in manifest["sources"])
    whole = sum(seconds.values())
    return {
        "seconds": seconds,
        "total_s": whole if seconds else None,
        "mb_per_s": {name: _ratio(bytes_in / 1e6, value) for name, value in seconds.items()},
        "total_mb_per_s": _ratio(bytes_in / 1e6, whole),
    }


def _counted(parts: Iterable[dict[str, int]]) -> dict[str, int]:
    """Summed, the most first."""
    whole: Counter[str] = Counter()
    for part in parts:
        whole.update(part)
    return dict(whole.most_common())


def _sum_known(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
