"""`bessemer data report PATH --out FILE`: one self-contained page about prepared data.

Where each row went (a picture and a table whose sums show), what was cleaned, what is left in tokens, and a
few documents of each fate to look at: figures never say whether a rule refuses the right ones.
No script, no font, no picture from elsewhere, as all pages of this room.
"""

import re
from html import escape
from typing import Any

from bessemer import __version__
from bessemer.data.prepared import Prepared, PreparedTask
from bessemer.report.data_figures import CONTAMINATION
from bessemer.report.data_funnel import funnel, refusals
from bessemer.report.data_pictures import NUM_COLOURS, OTHER, columns, power_label, ranked
from bessemer.report.data_samples import samples
from bessemer.report.html import Markup, Section, Tile, heading, page, paragraph, table, tiles
from bessemer.units import format_count, format_seconds

_MOST_LANGUAGES = 12


def data_page(prepared: Prepared | PreparedTask, document: dict[str, Any]) -> str:
    """document: what data_document tells of it."""
    rows = prepared.samples() if isinstance(prepared, Prepared) else []
    sections = [
        Section("next", "What to do next", _next(document)),
        Section("funnel", "Where each row went", funnel(document)),
        Section("rules", "What each rule refused", refusals(document)),
        Section("duplicates", "Duplicates and contamination", _duplicates(document)),
        Section("tokens", "Tokens and mixture", _tokens(document)),
        Section("languages", "Languages", _languages(document)),
        Section("lengths", "Lengths of documents", _lengths(document)),
        Section("pii", "Personal data and secrets", _pii(document)),
        Section("licences", "Licences", _licences(document)),
        Section("time", "Time of the build", _time(document)),
        Section("samples", "Documents to look at", samples(rows, document)),
    ]
    footer = f"Made by bessemer {__version__} from {document['manifest']}. MB is 1e6 bytes; text is UTF-8."
    return page(f"Data {document['hash'][:12]}", _header(document), sections, footer)


def _header(document: dict[str, Any]) -> str:
    total, splits = document["total"], document["splits"]
    sources = len(document["sources"])
    tokens = sum(split["tokens"] for split in splits.values())
    size = sum(split.get("bytes", 0) for split in splits.values())
    whole_s = document["timings"]["total_s"]
    rate = document["timings"]["total_mb_per_s"]
    duplicates = total["duplicates"]
    lead = (
        f"{total['rows_in']:,} rows of {sources} source{'s' * (sources != 1)} were read, {total['kept']:,} "
        f"kept ({_share(total['kept_share'])}): {format_count(tokens)} tokens."
    )
    trained = splits["train"]["tokens"]
    figures = [
        Tile("Tokens to train on", format_count(trained), f"{format_count(tokens - trained)} held out"),
        Tile("Rows kept", _share(total["kept_share"]), f"{total['refused_rows']:,} refused by rules"),
        Tile("Unreadable", f"{total['error_rows']:,}", _reasons(total["errors"])),
        Tile(
            "Duplicates",
            _share(duplicates["share"]),
            f"{duplicates['exact']:,} exact, {duplicates['near']:,} near",
        ),
        Tile(
            "Bytes per token",
            f"{size / tokens:.2f}" if size and tokens else None,
            f"vocabulary {document['tokenizer']['vocab']:,}",
        ),
        Tile(
            "Built in",
            format_seconds(whole_s) if whole_s is not None else None,
            f"{rate:.3g} MB/s" if rate else "",
        ),
    ]
    return f'<h1>Prepared data</h1><p class="lead">{escape(lead)}</p>{tiles(figures)}'


def _next(document: dict[str, Any]) -> str:
    if not document["next"]:
        return paragraph("Nothing stands out. Look at a few documents below, of those refused too.")
    return "<ul>" + "".join(f"<li>{_with_code(step)}</li>" for step in document["next"]) + "</ul>"


def _with_code(words: str) -> str:
    """What stands between backticks is set as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(words))


def _duplicates(document: dict[str, Any]) -> str:
    rows = [_duplicate_row(source["name"], source) for source in document["sources"]]
    if len(rows) > 1:
        rows.append(_bold(_duplicate_row("all sources", document["total"])))
    headings = ["source", "rows", "exact", "near", "share", "in evaluation sets", "in held-out documents"]
    note = (
        "Exact: the same text (dedup.exact). Near: by MinHash (dedup.minhash). The first one of each stays, "
    )
    note += "or the one that is held out."
    return paragraph(note, "note") + table(headings, rows, numbers=range(1, 7))


def _duplicate_row(name: str, told: dict[str, Any]) -> list[Any]:
    duplicates, found = told["duplicates"], told["contamination"]
    counts = [f"{duplicates[kind]:,}" for kind in ("exact", "near")]
    caught = [f"{found[kind]:,}" for kind in CONTAMINATION]
    return [name, f"{told['rows_in']:,}", *counts, _share(duplicates["share"]), *caught]


def _tokens(document: dict[str, Any]) -> str:
    whole = document["total"]["tokens"]
    mixed = any(source["mixture_share"] is not None for source in document["sources"])
    rows = []
    for source in document["sources"]:
        per_document, per_token = source["tokens_per_document"], source["bytes_per_token"]
        row = [source["name"], f"{source['documents']:,}", f"{source['tokens']:,}"]
        row += [_share(source["tokens"] / whole if whole else None)]
        row += [_share(source["mixture_share"])] if mixed else []
        row += [_figure(per_document, "{:,.0f}"), _figure(per_token, "{:.2f}")]
        row += [_figure(source["tokens_per_word"], "{:.2f}")]
        rows.append([*row, *(f"{split['tokens']:,}" for split in (source.get("splits") or {}).values())])
    names = list(document["sources"][0].get("splits") or {})
    headings = ["source", "documents", "tokens", "share"] + (["read at first"] if mixed else [])
    headings += ["tokens a document", "bytes a token", "tokens a word", *(f"{name} tokens" for name in names)]
    note = "Tokens include those that begin and end documents."
    if mixed:
        note += " Read at first: tokens to the power of the mixture's temperature, times weight."
    return paragraph(note, "note") + table(headings, rows, numbers=range(1, len(headings)))


def _languages(document: dict[str, Any]) -> str:
    told, measured = document["languages"], document["language_tokens"]
    if not told:
        return ""
    most = list(told.items())[:_MOST_LANGUAGES]
    if rest := sum(list(told.values())[_MOST_LANGUAGES:]):
        most.append(("all others", rest))
    picture = ranked("Documents kept, by language", [(name, float(count)) for name, count in most])
    if measured is None:
        return picture
    rows = [
        [
            name,
            f"{row['documents']:,}",
            f"{row['tokens']:,}",
            f"{row['tokens'] / row['documents']:,.0f}",
            f"{row['bytes'] / row['tokens']:.2f}",
            f"{row['tokens'] / row['words']:.2f}" if row["words"] else None,
        ]
        for name, row in measured["languages"].items()
    ]
    note = "" if measured["complete"] else paragraph("Of the first shards of each source.", "note")
    headings = ["language", "documents", "tokens", "tokens a document", "bytes a token", "tokens a word"]
    return picture + heading("Of those to train on") + note + table(headings, rows, numbers=range(1, 6))


def _lengths(document: dict[str, Any]) -> str:
    sources = [source for source in document["sources"] if source["lengths"]]
    if not sources:
        return ""
    powers = [int(low).bit_length() - 1 for source in sources for low in source["lengths"]]
    span = range(min(powers), max(powers) + 1)
    parts: list[tuple[str, list[float], str]] = []
    for number, source in enumerate(sources):
        heights = [float(source["lengths"].get(str(1 << power), 0)) for power in span]
        if number < NUM_COLOURS:
            parts.append((source["name"], heights, f"s{number + 1}"))
        elif number == NUM_COLOURS:
            parts.append(("other sources", heights, OTHER))
        else:
            parts[-1][1][:] = [a + b for a, b in zip(parts[-1][1], heights, strict=True)]
    labels = [power_label(1 << power) for power in span]
    note = "A column is of that many bytes of text or more, up to twice as many."
    return columns("Documents kept, by their text", labels, parts, "UTF-8 bytes of text (log)", note=note)


def _pii(document: dict[str, Any]) -> str:
    if not any(source["pii"] for source in document["sources"]):
        return ""
    kinds = list(document["pii"])
    rows = [
        [
            source["name"],
            *(f"{source['pii'].get(kind, 0):,}" for kind in kinds),
            f"{sum(source['pii'].values()):,}",
        ]
        for source in document["sources"]
    ]
    rows.append(
        _bold(
            [
                "all sources",
                *(f"{n:,}" for n in document["pii"].values()),
                f"{sum(document['pii'].values()):,}",
            ]
        )
    )
    note = paragraph("Pieces found and redacted in documents that were kept.", "note")
    return note + table(
        ["source", *(kind.replace("_", " ") for kind in kinds), "all"], rows, numbers=range(1, len(kinds) + 2)
    )


def _licences(document: dict[str, Any]) -> str:
    whole = document["total"]["tokens"]
    rows = [
        [
            name or Markup('<span class="warm">not stated</span>'),
            str(row["sources"]),
            f"{row['documents']:,}",
            f"{row['tokens']:,}",
            _share(row["tokens"] / whole if whole else None),
        ]
        for name, row in document["licences"].items()
    ]
    return table(["licence", "sources", "documents", "tokens", "share of tokens"], rows, numbers=range(1, 5))


def _time(document: dict[str, Any]) -> str:
    timings = document["timings"]
    if not timings["seconds"]:
        return ""
    rows = [
        [name, format_seconds(seconds), _figure(timings["mb_per_s"][name], "{:,.3g}")]
        for name, seconds in timings["seconds"].items()
    ]
    rows.append(
        _bold(["all", format_seconds(timings["total_s"]), _figure(timings["total_mb_per_s"], "{:,.3g}")])
    )
    note = (
        "Wall time of the build that wrote this data, against all bytes read; what an earlier one had left "
    )
    note += "ready took no time."
    return paragraph(note, "note") + table(["step", "time", "MB/s"], rows, numbers=(1, 2))


def _bold(row: list[Any]) -> list[Any]:
    return [Markup(f"<b>{escape(str(cell))}</b>") for cell in row]


def _share(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.1f} %"


def _figure(value: float | None, form: str) -> Any:
    return Markup("–") if value is None else form.format(value)


def _reasons(counts: dict[str, int]) -> str:
    """The three that most rows have, and how many have others: they add up to all."""
    shown = [f"{count:,} {reason}" for reason, count in list(counts.items())[:3]]
    rest = sum(list(counts.values())[3:])
    return ", ".join([*shown, f"{rest:,} for other reasons"] if rest else shown)
