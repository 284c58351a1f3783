"""Joules as bars of one scale, in parts, hatched where no meter read them; a whisker is the band of the sum.

Solid is measured, wide hatching modelled, narrow hatching assumed. The hatching is drawn line by line: a
pattern would be a reference, and a page of ours has none but to its own sections.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from bessemer.report.data_pictures import BAR, STEP, across, box, figure, row
from bessemer.units import format_joules

_GAPS = {"modelled": 14, "assumed": 7}  # pixels between two lines
_FOOT = 4


@dataclass(frozen=True)
class Part:
    """Of a bar. style: s1 to s6, other, error, nothing."""

    name: str
    joules: float
    style: str
    basis: str


@dataclass(frozen=True)
class Bar:
    """low, high: of the sum of its parts."""

    name: str
    parts: Sequence[Part]
    low: float
    high: float

    @property
    def joules(self) -> float:
        return sum(part.joules for part in self.parts)


def energy_bars(title: str, bars: Sequence[Bar], *, note: str = "") -> str:
    """No bar with any joules: no picture."""
    shown = [bar for bar in bars if bar.joules > 0.0]
    if not shown:
        return ""
    scale = max(max(bar.high, bar.joules) for bar in shown)
    lines: list[str] = []
    keys: dict[str, str] = {}
    for number, bar in enumerate(shown):
        lines += _drawn(bar, number * STEP, scale)
        keys |= {part.name: part.style for part in bar.parts if part.joules > 0.0}
    bases = {part.basis for bar in shown for part in bar.parts if part.joules > 0.0}
    keys |= {basis: f"other {basis}" for basis in ("measured", *_GAPS) if basis in bases}
    return figure(title, lines, len(shown) * STEP - (STEP - BAR), list(keys.items()), note)


def _drawn(bar: Bar, y: int, scale: float) -> list[str]:
    lines, begin = row(bar.name, y, format_joules(bar.joules)), 0.0
    for part in bar.parts:
        if part.joules <= 0.0:
            continue
        end = begin + part.joules / scale
        text = f"{part.name}: {format_joules(part.joules)} ({part.joules / bar.joules:.1%}), {part.basis}"
        lines.append(box(begin, end, y, part.style, text))
        if part.basis in _GAPS:
            lines.append(_hatching(across(begin), across(end), y, _GAPS[part.basis]))
        begin = end
    return [*lines, _whisker(bar, y, scale)]


def _hatching(left: float, right: float, y: int, gap: int) -> str:
    """Lines of 45 degrees, each cut at the ends of the box."""
    path = ""
    first = math.ceil((left - BAR) / gap) * gap  # on one raster, so that neighbours join
    for foot in range(first, math.ceil(right), gap):
        begin, end = max(float(foot), left), min(foot + BAR, right)
        if begin < end:
            path += f"M{begin:.1f} {y + BAR - begin + foot:.1f}L{end:.1f} {y + BAR - end + foot:.1f}"
    return f'<path class="hatching" d="{path}"/>'


def _whisker(bar: Bar, y: int, scale: float) -> str:
    low, high, middle = across(bar.low / scale), across(bar.high / scale), y + BAR / 2
    feet = "".join(f"M{x:.1f} {middle - _FOOT}v{2 * _FOOT}" for x in (low, high))
    text = f"{bar.name}: {format_joules(bar.low, bar.joules)} to {format_joules(bar.high, bar.joules)}"
    path = f"M{low:.1f} {middle}H{high:.1f}{feet}"
    return f'<path class="whisker ink" d="{path}"><title>{escape(text)}</title></path>'
