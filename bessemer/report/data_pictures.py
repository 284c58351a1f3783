"""Bars as inline SVG: where rows went (stacked), what is left after each rule (cascade), counts (columns).

Colours come from CSS variables of the page, so one picture serves light and dark. Each piece has a
title, shown when pointed at; a piece too thin to be seen is still half a pixel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from bessemer.report.svg import HEIGHT
from bessemer.report.ticks import linear_ticks, tick_labels, value_label
from bessemer.units import format_count

KEPT, ERROR, OTHER, NOTHING = "kept", "error", "other", "nothing"
NUM_COLOURS = 6
_WIDE, _NAME, _END = 1120, 190, 92
BAR, STEP = 20, 32


@dataclass(frozen=True)
class Piece:
    """Of a bar. style: KEPT, ERROR, OTHER, NOTHING, or s1 to s6."""

    name: str
    amount: float
    style: str


@dataclass(frozen=True)
class Bar:
    name: str
    pieces: Sequence[Piece]
    end: str = ""  # written behind it


def stacked(title: str, bars: Sequence[Bar], *, note: str = "") -> str:
    """Each bar is all of its own amounts: shares are compared, not sizes."""
    lines = []
    for number, bar in enumerate(bars):
        lines += _stack(bar, number * STEP, sum(piece.amount for piece in bar.pieces))
    keys: dict[str, str] = {}
    for bar in bars:
        keys |= {piece.name: piece.style for piece in bar.pieces if piece.amount}
    return figure(title, lines, len(bars) * STEP - (STEP - BAR), list(keys.items()), note)


def cascade(title: str, begin: float, losses: Sequence[Piece], *, note: str = "") -> str:
    """From all to what is left: a bar for each loss, beginning where the one before ended."""
    lines, left = row("read", 0, f"{begin:,.0f}"), begin
    lines.append(box(0.0, 1.0, 0, "kept", f"read: {begin:,.0f}"))
    for number, loss in enumerate(losses, start=1):
        y, low = number * STEP, left - loss.amount
        lines += row(loss.name, y, f"− {loss.amount:,.0f}")
        lines.append(box(0.0, low / begin, y, "kept faint", f"left: {low:,.0f}"))
        lines.append(box(low / begin, left / begin, y, loss.style, f"{loss.name}: {loss.amount:,.0f}"))
        left = low
    y = (len(losses) + 1) * STEP
    lines += row("kept", y, f"{left:,.0f}")
    lines.append(box(0.0, left / begin, y, "kept", f"kept: {left:,.0f}"))
    return figure(title, lines, y + BAR, [], note)


def ranked(title: str, amounts: Sequence[tuple[str, float]], *, note: str = "") -> str:
    """One bar each, as long as its amount."""
    largest, whole = max(amount for _, amount in amounts), sum(amount for _, amount in amounts)
    lines = []
    for number, (name, amount) in enumerate(amounts):
        y = number * STEP
        lines += row(name, y, f"{format_count(amount)}  {amount / whole:.1%}")
        lines.append(box(0.0, amount / largest, y, "s1", f"{name}: {amount:,.0f}"))
    return figure(title, lines, len(amounts) * STEP - (STEP - BAR), [], note)


def columns(
    title: str,
    labels: Sequence[str],
    parts: Sequence[tuple[str, Sequence[float], str]],
    x: str,
    *,
    note: str = "",
) -> str:
    """A histogram; parts stand on each other: (name, height of each column, style)."""
    left, top, bottom = 58, 10, HEIGHT - 40
    heights = [sum(part[1][place] for part in parts) for place in range(len(labels))]
    most = max(heights) or 1.0
    ticks = linear_ticks(0.0, most)
    lines = []
    for tick, text in zip(ticks, tick_labels(ticks), strict=True):
        y = bottom - tick / most * (bottom - top)
        lines.append(f'<path class="grid" d="M{left} {y:.1f}H{_WIDE - 16}"/>')
        lines.append(
            f'<text class="tick" x="{left - 7}" y="{y:.1f}" dy=".34em" text-anchor="end">{text}</text>'
        )
    step = (_WIDE - 16 - left) / len(labels)
    every = -(-len(labels) // 9)
    for place, label in enumerate(labels):
        height, begin = 0.0, left + place * step
        for name, amounts, style in parts:
            size = amounts[place] / most * (bottom - top)
            height += size
            if size:
                shape = f'x="{begin + 1:.1f}" y="{bottom - height:.1f}" '
                shape += f'width="{step - 2:.1f}" height="{size:.1f}"'
                text = f"{name}, {label}: {amounts[place]:,.0f}"
                lines.append(f'<rect class="fill {style}" {shape}><title>{escape(text)}</title></rect>')
        if place % every == 0:
            where = f'x="{begin + step / 2:.1f}" y="{bottom + 16}" text-anchor="middle"'
            lines.append(f'<text class="tick" {where}>{escape(label)}</text>')
    lines.append(f'<path class="axis" d="M{left} {bottom}H{_WIDE - 16}"/>')
    where = f'x="{(left + _WIDE - 16) / 2}" y="{HEIGHT - 4}" text-anchor="middle"'
    lines.append(f'<text class="label" {where}>{escape(x)}</text>')
    keys = [(name, style) for name, _, style in parts] if len(parts) > 1 else []
    return figure(title, lines, HEIGHT, keys, note)


def power_label(low: int) -> str:
    """Of a column from a power of two on: 1024 -> "1 KiB"."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if low >= scale:
            return f"{value_label(low / scale)} {unit}"
    return f"{low} B"


def _stack(bar: Bar, y: int, whole: float) -> list[str]:
    lines, begin = row(bar.name, y, bar.end), 0.0
    for piece in bar.pieces:
        if not piece.amount or not whole:
            continue
        end = begin + piece.amount / whole
        share = f"{100 * piece.amount / whole:.1f} %"
        lines.append(box(begin, end, y, piece.style, f"{piece.name}: {piece.amount:,.0f} ({share})"))
        if end - begin > 0.06 and piece.style != NOTHING:
            x = across((begin + end) / 2)
            lines.append(
                f'<text class="inside" x="{x:.1f}" y="{y + BAR / 2}" dy=".35em" text-anchor="middle">'
            )
            lines.append(f"{100 * piece.amount / whole:.0f} %</text>")
        begin = end
    return lines


def row(name: str, y: float, end: str) -> list[str]:
    """Its name before, its figure behind."""
    short = name if len(name) <= 28 else name[:27] + "…"
    middle = f'y="{y + BAR / 2}" dy=".35em"'
    return [
        f'<text class="name" x="{_NAME - 10}" {middle} text-anchor="end">{escape(short)}'
        f"<title>{escape(name)}</title></text>",
        f'<text class="tick" x="{_WIDE}" {middle} text-anchor="end">{escape(end)}</text>',
    ]


def box(begin: float, end: float, y: float, style: str, text: str) -> str:
    x, width = across(begin), max(0.5, across(end) - across(begin))
    shape = f'x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BAR}"'
    return f'<rect class="fill {style}" {shape}><title>{escape(text)}</title></rect>'


def across(share: float) -> float:
    """Pixels from the left."""
    return _NAME + share * (_WIDE - _NAME - _END)


def figure(title: str, lines: list[str], height: float, keys: Sequence[tuple[str, str]], note: str) -> str:
    legend = "".join(
        f'<span class="key"><i class="box {style}"></i>{escape(name)}</span>' for name, style in keys
    )
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b>'
        f'<span class="legend">{legend}</span></figcaption>'
        f'<svg viewBox="0 0 {_WIDE} {height}" role="img" aria-label="{escape(title)}">{"".join(lines)}</svg>'
        + (f'<p class="note">{escape(note)}</p>' if note else "")
        + "</figure>"
    )
