"""Pieces of a self-contained page: everything that comes from a run is escaped here.

A page holds its own style and pictures; nothing is fetched when it is opened, so it can be mailed and
read offline. Text arrives as `str` and is escaped; what is markup already is wrapped in `Markup`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import Any


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


@dataclass(frozen=True)
class Tile:
    """One large figure with what it is."""

    label: str
    value: str | None
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page. An empty body leaves it out."""

    anchor: str
    title: str
    body: str


def page(title: str, header: str, sections: Sequence[Section], footer: str) -> str:
    style = (resources.files("bessemer") / "report" / "page.css").read_text(encoding="utf-8")
    shown = [section for section in sections if section.body]
    links = "".join(f'<a href="#{section.anchor}">{escape(section.title)}</a>' for section in shown)
    body = "".join(
        f'<section id="{section.anchor}"><h2>{escape(section.title)}</h2>{section.body}</section>'
        for section in shown
    )
    # The policy makes "nothing is fetched, nothing runs" the browser's rule too, not our word only.
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>\n{style}</style></head><body>"
        f'<header><div class="brand">Bessemer</div>{header}<nav>{links}</nav></header>'
        f"{body}<footer>{escape(footer)}</footer></body></html>\n"
    )


def text(value: Any) -> str:
    """A cell's value: escaped, unless it is markup; None reads "not measured"."""
    if value is None:
        return '<span class="absent">not measured</span>'
    return str(value) if isinstance(value, Markup) else escape(str(value))


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]], numbers: Sequence[int] = ()) -> str:
    """`numbers`: the columns that are set flush right. No rows: no table."""
    if not rows:
        return ""

    def cells(tag: str, values: Sequence[Any]) -> str:
        opening = [f'<{tag} class="n">' if column in numbers else f"<{tag}>" for column in range(len(values))]
        return "".join(f"{left}{text(value)}</{tag}>" for left, value in zip(opening, values, strict=True))

    head = f"<thead><tr>{cells('th', headings)}</tr></thead>"
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def tiles(entries: Sequence[Tile]) -> str:
    shown = (
        f'<div class="tile"><span>{text(tile.label)}</span><b>{text(tile.value)}</b>'
        + (f"<small>{text(tile.note)}</small>" if tile.note else "")
        + "</div>"
        for tile in entries
    )
    return f'<div class="tiles">{"".join(shown)}</div>'


def paragraph(words: str, style: str = "") -> str:
    return f'<p class="{style}">{text(words)}</p>' if style else f"<p>{text(words)}</p>"


def heading(words: str) -> str:
    return f"<h3>{text(words)}</h3>"


def verdict(words: str, *, tone: str) -> Markup:
    """tone: good, warm or bad."""
    return Markup(f'<span class="{tone}">{escape(words)}</span>')


def folded(summary: str, content: str) -> str:
    """A long text that opens when clicked."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(content)}</pre></details>"
