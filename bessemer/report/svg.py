"""Line charts as inline SVG pictures: no script, no font, no file beside them.

Colours and text come from CSS variables of the page, so one picture serves light and dark. A series
is thinned to what a picture can show (first, lowest, highest and last point of each column of two
pixels), so that spikes survive and a long run stays a small page. A missing value breaks the line.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from bessemer.report.ticks import linear_ticks, log_ticks, padded, tick_labels, value_label

Point = tuple[float, float | None]

WIDTH, HEIGHT = 560, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 12, 40
_COLUMN_PIXELS = 2
_FOOT_PIXELS = 4
_MOST_MARKED = 24  # series of at most as many points show each point


@dataclass(frozen=True)
class Series:
    """One line. colour: 1 to 6, the page's series colours."""

    name: str
    points: Sequence[Point]
    colour: int
    dashed: bool = False  # a line to compare with: its points are not marked
    faint: bool = False
    spread: Sequence[tuple[float, float, float]] = ()  # x, lowest, highest: an error bar each


@dataclass(frozen=True)
class Chart:
    """A picture of series over one x axis. `marks`: x values to point out, with their text."""

    title: str
    series: Sequence[Series]
    x_label: str
    y_label: str
    log_x: bool = False
    from_zero: bool = False
    marks: Sequence[tuple[float, str]] = ()
    note: str = ""
    width: int = WIDTH
    height: int = HEIGHT


@dataclass
class _Frame:
    """Where data lies in the picture."""

    chart: Chart
    x: tuple[float, float]
    y: tuple[float, float]
    lines: list[str] = field(default_factory=list)

    def place_x(self, value: float) -> float:
        low, high = self.x
        if self.chart.log_x:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return _LEFT + (value - low) / (high - low) * (self.chart.width - _LEFT - _RIGHT)

    def place_y(self, value: float) -> float:
        low, high = self.y
        return _TOP + (high - value) / (high - low) * (self.chart.height - _TOP - _BOTTOM)


def draw(chart: Chart) -> str:
    """The chart as a <figure> with heading, legend and picture. Without data it says so."""
    known = [(x, y) for line in chart.series for x, y in line.points if y is not None and math.isfinite(y)]
    known += [(x, y) for line in chart.series for x, *ends in line.spread for y in ends]
    heading = f"<figcaption><b>{escape(chart.title)}</b>{_legend(chart)}</figcaption>"
    note = f'<p class="note">{escape(chart.note)}</p>' if chart.note else ""
    if not known:
        return f'<figure class="chart">{heading}<p class="absent">not measured</p>{note}</figure>'
    frame = _Frame(chart, _x_range(chart, known), _y_range(chart, known))
    _axes(frame)
    _marks(frame)
    for line in chart.series:
        _line(frame, line)
    label = f"{chart.title}: {', '.join(line.name for line in chart.series)}"
    picture = (
        f'<svg viewBox="0 0 {chart.width} {chart.height}" role="img" aria-label="{escape(label)}">'
        + "".join(frame.lines)
        + "</svg>"
    )
    return f'<figure class="chart">{heading}{picture}{note}</figure>'


def thin(points: Sequence[Point], columns: int) -> list[Point]:
    """At most four points a column: first, lowest, highest, last. Gaps (None) stay gaps."""
    if len(points) <= 2 * columns:
        return list(points)
    first, last = points[0][0], points[-1][0]
    width = (last - first) / columns or 1.0
    buckets: dict[int, list[Point]] = {}
    for point in points:
        buckets.setdefault(min(columns - 1, int((point[0] - first) / width)), []).append(point)
    return [point for bucket in buckets.values() for point in _outline(bucket)]


def _outline(bucket: list[Point]) -> list[Point]:
    known = [index for index, (_, y) in enumerate(bucket) if y is not None]
    kept = {0, len(bucket) - 1}
    if known:
        kept |= {min(known, key=lambda i: bucket[i][1] or 0.0), max(known, key=lambda i: bucket[i][1] or 0.0)}
    return [bucket[index] for index in sorted(kept)]


def _x_range(chart: Chart, known: list[tuple[float, float]]) -> tuple[float, float]:
    low, high = min(x for x, _ in known), max(x for x, _ in known)
    if chart.log_x:
        return low / 1.25, high * 1.25
    if high == low:
        return padded(low, high)
    return (0.0 if 0 < low < 0.2 * high else low), high


def _y_range(chart: Chart, known: list[tuple[float, float]]) -> tuple[float, float]:
    low, high = padded(min(y for _, y in known), max(y for _, y in known))
    return (0.0, high) if chart.from_zero and low <= high and high > 0 else (low, high)


def _axes(frame: _Frame) -> None:
    chart, lines = frame.chart, frame.lines
    right, bottom = chart.width - _RIGHT, chart.height - _BOTTOM
    ticks = linear_ticks(*frame.y)
    for tick, text in zip(ticks, tick_labels(ticks), strict=True):
        y = _round(frame.place_y(tick))
        lines.append(f'<path class="grid" d="M{_LEFT} {y}H{right}"/>')
        lines.append(f'<text class="tick" x="{_LEFT - 7}" y="{y}" dy=".34em" text-anchor="end">')
        lines.append(f"{text}</text>")
    ticks = log_ticks(*frame.x) if chart.log_x else linear_ticks(*frame.x, least=5)
    texts = [value_label(tick) for tick in ticks] if chart.log_x else tick_labels(ticks)
    for tick, text in zip(ticks, texts, strict=True):
        x = _round(frame.place_x(tick))
        lines.append(f'<path class="axis" d="M{x} {bottom}v4"/>')
        lines.append(f'<text class="tick" x="{x}" y="{bottom + 16}" text-anchor="middle">')
        lines.append(f"{text}</text>")
    lines.append(f'<path class="axis" d="M{_LEFT} {bottom}H{right}"/>')
    middle = (_LEFT + right) / 2
    lines.append(f'<text class="label" x="{middle}" y="{chart.height - 4}" text-anchor="middle">')
    lines.append(f"{escape(chart.x_label)}</text>")
    y = (_TOP + bottom) / 2
    lines.append(f'<text class="label" transform="translate(12 {y}) rotate(-90)" text-anchor="middle">')
    lines.append(f"{escape(chart.y_label)}</text>")


def _marks(frame: _Frame) -> None:
    """Dashed upright lines; the text shows when pointed at, and is in the table of events anyway."""
    for value, text in frame.chart.marks:
        if frame.x[0] <= value <= frame.x[1]:
            x, bottom = _round(frame.place_x(value)), frame.chart.height - _BOTTOM
            frame.lines.append(f'<path class="mark" d="M{x} {_TOP}V{bottom}"><title>{escape(text)}</title>')
            frame.lines.append("</path>")


def _line(frame: _Frame, line: Series) -> None:
    chart = frame.chart
    points = thin(line.points, (chart.width - _LEFT - _RIGHT) // _COLUMN_PIXELS)
    placed = [
        None if y is None or not math.isfinite(y) else (_round(frame.place_x(x)), _round(frame.place_y(y)))
        for x, y in points
    ]
    style = f"line {_look(line)}"
    path, pen_up = "", True
    for place in placed:
        if place is not None:
            path += f"{'M' if pen_up else 'L'}{place[0]} {place[1]}"
        pen_up = place is None
    frame.lines.append(f'<path class="{style}" d="{path}"/>')
    for bar in line.spread:
        frame.lines.append(_whisker(frame, line.colour, *bar))
    if len(line.points) <= _MOST_MARKED and not line.dashed:
        for place, (x, y) in zip(placed, points, strict=True):
            if place is not None and y is not None:
                text = f"{line.name}: {y:.5g} at {value_label(x)}"
                circle = f'cx="{place[0]}" cy="{place[1]}" r="3"'
                frame.lines.append(f'<circle class="dot s{line.colour}" {circle}>')
                frame.lines.append(f"<title>{escape(text)}</title></circle>")


def _whisker(frame: _Frame, colour: int, x: float, low: float, high: float) -> str:
    """An upright bar with a foot at each end."""
    across, top, bottom = _round(frame.place_x(x)), _round(frame.place_y(high)), _round(frame.place_y(low))
    feet = "".join(f"M{_round(across - _FOOT_PIXELS)} {y}h{2 * _FOOT_PIXELS}" for y in (top, bottom))
    text = f"{value_label(x)}: {low:.5g} to {high:.5g}"
    path = f"M{across} {top}V{bottom}{feet}"
    return f'<path class="whisker s{colour}" d="{path}"><title>{escape(text)}</title></path>'


def _legend(chart: Chart) -> str:
    if len(chart.series) < 2:
        return ""
    keys = (
        f'<span class="key"><i class="{_look(line)}"></i>{escape(line.name)}</span>' for line in chart.series
    )
    return f'<span class="legend">{"".join(keys)}</span>'


def _round(pixels: float) -> float:
    return round(pixels, 1)


def _look(line: Series) -> str:
    """Its classes, in the picture and in the legend alike."""
    return f"s{line.colour}" + (" dashed" if line.dashed else "") + (" faint" if line.faint else "")
