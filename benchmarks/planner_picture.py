"""Predicted against published step times, as one SVG: log-log, a colour for each source.

On the line a prediction is right; inside the band it is within 15 %. Filled points were used to fit,
hollow ones were not. Text and lines follow the reader's light or dark setting.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from html import escape

from bessemer.report.ticks import log_ticks, value_label

SIZE, LEFT, TOP, BOTTOM, LEGEND = 520, 62, 14, 48, 230
BAND = 0.15
_COLOURS = ("#1f6feb", "#d4551c", "#14866d", "#8250df", "#b58900", "#c2337d", "#5b6b7a", "#3a9bc1")
_STYLE = """<style>
text { font: 12px system-ui, sans-serif; fill: #16191d } .soft { fill: #59626e }
.grid { stroke: #dde1e6 } .right { stroke: #59626e } .band { fill: #59626e; opacity: .12 }
@media (prefers-color-scheme: dark) {
text { fill: #e8ebef } .soft { fill: #9aa5b1 } .grid { stroke: #2c333b } .right { stroke: #9aa5b1 }
.band { fill: #9aa5b1 } }
</style>"""


@dataclass(frozen=True)
class Point:
    source: str
    published_s: float
    predicted_s: float
    held_out: bool


def picture(points: list[Point]) -> str:
    """The SVG; sources with most points first, those beyond the colours in grey together."""
    times = [time for point in points for time in (point.published_s, point.predicted_s)]
    low, high = (min(times) / 1.3, max(times) * 1.3) if times else (0.1, 10.0)
    span = math.log(high / low)

    def place(time: float) -> float:
        return SIZE * math.log(time / low) / span

    ranked = [source for source, _ in Counter(point.source for point in points).most_common()]
    colours = dict(zip(ranked, _COLOURS, strict=False))
    lines = [*_axes(low, high, place), *_legend(points, colours)]
    for point in points:
        colour = colours.get(point.source, "#999999")
        x, y = LEFT + place(point.published_s), TOP + SIZE - place(point.predicted_s)
        fill = f'fill="none" stroke="{colour}"' if point.held_out else f'fill="{colour}" fill-opacity=".6"'
        lines.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" {fill}/>')
    width, height = LEFT + SIZE + LEGEND, TOP + SIZE + BOTTOM
    start = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
    start += 'aria-label="Predicted against published step times">'
    return "\n".join([start, _STYLE, *lines, "</svg>", ""])


def _axes(low: float, high: float, place: Callable[[float], float]) -> list[str]:
    shift = SIZE * math.log(1.0 + BAND) / math.log(high / low)
    right, bottom = LEFT + SIZE, TOP + SIZE
    corners = ((LEFT, bottom - shift), (LEFT, bottom), (LEFT + shift, bottom),
               (right, TOP + shift), (right, TOP), (right - shift, TOP))  # fmt: skip
    band = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    lines = [f'<polygon class="band" points="{band}"/>']
    for tick in log_ticks(low, high):
        at, label = place(tick), value_label(tick)
        x, y = f"{LEFT + at:.1f}", f"{bottom - at:.1f}"
        lines.append(f'<line class="grid" x1="{x}" y1="{TOP}" x2="{x}" y2="{bottom}"/>')
        lines.append(f'<line class="grid" x1="{LEFT}" y1="{y}" x2="{right}" y2="{y}"/>')
        lines.append(f'<text class="soft" x="{x}" y="{bottom + 18}" text-anchor="middle">{label}</text>')
        lines.append(f'<text class="soft" x="{LEFT - 8}" y="{y}" dy="4" text-anchor="end">{label}</text>')
    lines.append(f'<line class="right" x1="{LEFT}" y1="{bottom}" x2="{right}" y2="{TOP}"/>')
    middle = TOP + SIZE / 2
    lines.append(f'<text x="{LEFT + SIZE / 2}" y="{bottom + 38}" text-anchor="middle">'
                 "published step time, s</text>")  # fmt: skip
    lines.append(f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">'
                 "predicted, s</text>")  # fmt: skip
    return lines


def _legend(points: list[Point], colours: dict[str, str]) -> list[str]:
    counts = Counter(point.source if point.source in colours else "others" for point in points)
    x, lines = LEFT + SIZE + 18, []
    for place, (source, count) in enumerate(counts.most_common()):
        y = TOP + 14 + 20 * place
        lines.append(f'<circle cx="{x}" cy="{y - 4}" r="4" fill="{colours.get(source, "#999999")}"/>')
        lines.append(
            f'<text x="{x + 12}" y="{y}">{escape(source)} <tspan class="soft">{count}</tspan></text>'
        )
    y = TOP + 34 + 20 * len(counts)
    lines.append(f'<text class="soft" x="{x - 4}" y="{y}">band: within {100 * BAND:.0f} %</text>')
    if any(point.held_out for point in points):
        lines.append(f'<text class="soft" x="{x - 4}" y="{y + 18}">hollow: not used to fit</text>')
    return lines
