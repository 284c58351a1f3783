"""What each source gave: rows in, rows refused and by which rule, documents and tokens kept."""

from typing import Any

from bessemer.report.html import Markup, heading, paragraph, table, verdict
from bessemer.report.record import RunRecord
from bessemer.units import format_count


def data_funnel(run: RunRecord) -> str:
    """One table for each distinct prepared data set of the run's stages."""
    parts, told = [], set()
    for stage in run.stages:
        sources = (stage.data or {}).get("sources")
        data_hash = (stage.info.get("data") or {}).get("hash")
        if sources and data_hash not in told:
            told.add(data_hash)
            note = f"Prepared data {data_hash}." if data_hash else ""
            parts.append(heading(f"Read by {stage.name}") + paragraph(note, "note") + _table(sources))
    return "".join(parts)


def _table(sources: list[dict[str, Any]]) -> str:
    rows = [_row(source) for source in sources]
    if len(sources) > 1:
        rows.append(_sum(sources))
    headings = ["source", "kind", "licence", "read", "refused", "unreadable", "kept", "documents", "tokens"]
    headings += ["adds up"]
    return table(headings, rows, numbers=(3, 6, 7, 8))


def _row(source: dict[str, Any]) -> list[Any]:
    refused, errors = source.get("refused") or {}, source.get("errors") or {}
    return [
        source.get("name"),
        source.get("kind"),
        source.get("licence") or source.get("license") or "not stated",
        _count(source.get("rows_in")),
        _reasons(refused),
        _reasons(errors),
        _count(source.get("kept")),
        _count(source.get("documents")),
        _count(source.get("tokens")),
        _adds_up(source, refused, errors),
    ]


def _sum(sources: list[dict[str, Any]]) -> list[Any]:
    def total(key: str) -> str | None:
        values = [source.get(key) for source in sources]
        return None if None in values else f"{sum(v for v in values if v is not None):,}"

    def lost(key: str) -> str:
        return f"{sum(sum((source.get(key) or {}).values()) for source in sources):,}"

    row = ["all sources", "", "", total("rows_in"), lost("refused"), lost("errors")]
    row += [total("kept"), total("documents"), total("tokens"), ""]
    return [Markup(f"<b>{cell}</b>") if cell else cell for cell in row]


def _adds_up(source: dict[str, Any], refused: dict[str, int], errors: dict[str, int]) -> Markup:
    """Every row that was read is kept, refused or unreadable: nothing vanished."""
    rows_in, kept = source.get("rows_in"), source.get("kept")
    if rows_in is None or kept is None:
        return Markup("–")
    missing = rows_in - kept - sum(refused.values()) - sum(errors.values())
    return verdict("yes", tone="good") if missing == 0 else verdict(f"{missing} rows unaccounted", tone="bad")


def _reasons(counts: dict[str, int]) -> str:
    named = [f"{reason} {format_count(count)}" for reason, count in counts.items() if count]
    return ", ".join(named) or "none"


def _count(value: int | None) -> str | None:
    return None if value is None else f"{value:,}"
