"""Where rows went, as pictures and as tables that add up: read = kept + refused + unreadable."""

from html import escape
from typing import Any

from bessemer.report.data_figures import in_order
from bessemer.report.data_pictures import (
    ERROR,
    KEPT,
    NOTHING,
    NUM_COLOURS,
    OTHER,
    Bar,
    Piece,
    cascade,
    stacked,
)
from bessemer.report.html import Markup, heading, paragraph, table, verdict
from bessemer.units import format_count

_MOST_CASCADES = 12


def funnel(document: dict[str, Any]) -> str:
    styles = _styles(document)
    sources = document["sources"]
    bars = [Bar(source["name"], _pieces(source, styles), f"{source['rows_in']:,}") for source in sources]
    parts = [stacked("Rows of each source", bars)]
    sized = [source for source in sources if source["kept_bytes"] is not None]
    if sized:
        bars = [
            Bar(source["name"], _byte_pieces(source, styles), _mb(source["bytes_in"])) for source in sized
        ]
        note = "Refused and kept: bytes of text. No text: markup, packing, and files that could not be read."
        parts.append(stacked("Bytes of each source", bars, note=note))
    parts.append(_table(document))
    if len(sources) > 1:
        parts.append(_cascade("All sources, rule by rule", document["total"], styles))
        more = "".join(_cascade(source["name"], source, styles) for source in sources[:_MOST_CASCADES])
        parts.append(f"<details><summary>Each source, rule by rule</summary>{more}</details>")
    else:
        parts.append(_cascade(f"{sources[0]['name']}, rule by rule", sources[0], styles))
    return "".join(parts)


def refusals(document: dict[str, Any]) -> str:
    """A row for each rule of each source, in rows and bytes; then what could not be read."""
    rows = []
    for source in document["sources"]:
        for rule in in_order(source["refused"]):
            count, size = source["refused"][rule], source["refused_bytes"].get(rule)
            rows.append([source["name"], rule, f"{count:,}", _share(count, source["rows_in"]), _mb(size)])
        for reason, count in source["errors"].items():
            name = Markup(f'<span class="bad">{escape(reason)}</span> (unreadable)')
            rows.append([source["name"], name, f"{count:,}", _share(count, source["rows_in"]), Markup("–")])
    if not rows:
        return paragraph("No rule refused anything, and every row could be read.")
    return table(["source", "rule", "rows", "of its rows", "text"], rows, numbers=(2, 3, 4))


def _table(document: dict[str, Any]) -> str:
    rows = [_row(source["name"], source) for source in document["sources"]]
    if len(rows) > 1:
        whole = _row("all sources", document["total"])
        rows.append(
            [cell if isinstance(cell, Markup) else Markup(f"<b>{escape(str(cell))}</b>") for cell in whole]
        )
    headings = ["source", "read", "= kept", "+ refused", "+ unreadable", "adds up", "MB read", "text kept"]
    headings += ["documents", "tokens"]
    return heading("The same in numbers") + table(headings, rows, numbers=(1, 2, 3, 4, 6, 7, 8, 9))


def _row(name: str, told: dict[str, Any]) -> list[Any]:
    missing = told["missing_rows"]
    counts = [f"{told[key]:,}" for key in ("rows_in", "kept", "refused_rows", "error_rows")]
    adds_up = verdict("yes", tone="good") if not missing else verdict(f"{missing:,} missing", tone="bad")
    sizes = [f"{told['bytes_in'] / 1e6:,.1f}", _mb(told["kept_bytes"])]
    return [name, *counts, adds_up, *sizes, f"{told['documents']:,}", f"{told['tokens']:,}"]


def _styles(document: dict[str, Any]) -> dict[str, str]:
    """A colour for each of the rules that refuse most; one for all others. s3 is the kept's."""
    refused = document["total"]["refused"]
    most = sorted(refused, key=lambda rule: -refused[rule])
    colours = [f"s{number}" for number in (2, 5, 4, 1, 6)]
    assert len(colours) == NUM_COLOURS - 1
    return dict(zip(most, colours, strict=False))


def _pieces(source: dict[str, Any], styles: dict[str, str]) -> list[Piece]:
    pieces = [Piece("kept", source["kept"], KEPT), *_refused(source["refused"], styles)]
    return [*pieces, Piece("unreadable", source["error_rows"], ERROR)]


def _byte_pieces(source: dict[str, Any], styles: dict[str, str]) -> list[Piece]:
    pieces = [Piece("kept", source["kept_bytes"], KEPT), *_refused(source["refused_bytes"], styles)]
    return [*pieces, Piece("no text", source["no_text_bytes"], NOTHING)]


def _refused(amounts: dict[str, int], styles: dict[str, str]) -> list[Piece]:
    shown = [Piece(rule, amounts[rule], styles[rule]) for rule in in_order(amounts) if rule in styles]
    rest = sum(amount for rule, amount in amounts.items() if rule not in styles)
    return [*shown, Piece("other rules", rest, OTHER)] if rest else shown


def _cascade(title: str, told: dict[str, Any], styles: dict[str, str]) -> str:
    losses = [Piece(reason, count, ERROR) for reason, count in told["errors"].items()]
    losses += [
        Piece(rule, told["refused"][rule], styles.get(rule, OTHER)) for rule in in_order(told["refused"])
    ]
    if not losses or not told["rows_in"]:
        return ""
    return cascade(title, told["rows_in"], losses)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def _mb(size: int | None) -> Any:
    if size is None:
        return Markup("–")
    return (
        f"{size / 1e6:,.1f} MB"
        if size >= 50_000
        else f"{format_count(size)}B"
        if size >= 1000
        else f"{size} B"
    )
