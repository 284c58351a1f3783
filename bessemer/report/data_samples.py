"""A few documents of each fate, with the beginning of their text: escaped, folded, and as they were read."""

from html import escape
from typing import Any

from bessemer.report.html import heading, paragraph

_KEPT = {"train": "kept, to train on", "validation": "kept, held out"}
_LETTERS = 90


def samples(rows: list[dict[str, Any]], document: dict[str, Any]) -> str:
    if not rows:
        return ""
    parts = [paragraph("Chosen by hash, not by hand. Texts are cut after 2,000 letters.", "note")]
    for source in document["sources"]:
        own = [row for row in rows if row["source"] == source["name"]]
        fates = sorted({_fate(row) for row in own}, key=lambda fate: (fate[0] not in _KEPT, fate[1], fate[0]))
        if own:
            parts.append(heading(source["name"]))
        parts += [_group(fate, [row for row in own if _fate(row) == fate], source) for fate in fates]
    return "".join(parts)


def _fate(row: dict[str, Any]) -> tuple[str, bool]:
    return str(row["fate"]), bool(row["is_error"])


def _group(fate: tuple[str, bool], rows: list[dict[str, Any]], source: dict[str, Any]) -> str:
    name, is_error = fate
    count = source["errors" if is_error else "refused"].get(name)
    if name in _KEPT and not is_error:
        told, tone = _KEPT[name], "good"
    else:
        told, tone = (f"unreadable: {name}", "bad") if is_error else (f"refused by {name}", "warm")
    counted = "" if count is None else f", {count:,} row{'s' * (count != 1)}"
    cards = "".join(_card(row) for row in rows)
    return (
        f'<details><summary><span class="{tone}">{escape(told)}</span>{counted}, {len(rows)} shown</summary>'
        f'<div class="samples">{cards}</div></details>'
    )


def _card(row: dict[str, Any]) -> str:
    origin = row.get("origin")
    lines = [f"<h4>{escape(_shortened(str(row['id'])))}</h4>"]
    if origin and origin != row["id"]:
        lines.append(f'<p class="note">from {escape(_shortened(str(origin)))}</p>')
    if row.get("same_as") is not None:
        lines.append(f'<p class="note">same as {escape(_shortened(str(row["same_as"])))}</p>')
    text = row.get("text")
    lines.append(f"<pre>{escape(_visible(text))}</pre>" if text else '<p class="absent">no text</p>')
    return f'<div class="sample">{"".join(lines)}</div>'


def _visible(text: str) -> str:
    """What HTML has no place for, as it is written in Python; without it a page could not be saved."""
    return "".join(
        letter if letter in "\n\t" or (ord(letter) >= 32 and not 0xD800 <= ord(letter) <= 0xDFFF)
        else letter.encode("unicode_escape").decode()
        for letter in text
    )  # fmt: skip


def _shortened(name: str) -> str:
    name = _visible(name.replace("\n", " "))
    return name if len(name) <= _LETTERS else f"{name[:40]}…{name[-(_LETTERS - 41) :]}"
