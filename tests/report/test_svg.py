import math
import re
import xml.etree.ElementTree as ET

from bessemer.report.svg import Chart, Series, draw, thin


def picture(*series: Series, **options: object) -> str:
    return draw(Chart("Loss", series, "tokens", "nat", **options))


def path_of(markup: str) -> str:
    return re.search(r'class="line s1[^"]*" d="([^"]*)"', markup)[1]


def test_picture_is_well_formed_and_names_what_it_shows():
    markup = picture(Series("a <b> & c", [(1, 2.0), (2, 1.0)], 1), Series("d", [(1, 3.0)], 2))
    ET.fromstring(markup)
    assert "a &lt;b&gt; &amp; c" in markup and "<b> &" not in markup
    assert markup.count("<circle") == 3


def test_legend_shows_a_line_as_the_picture_draws_it():
    points = [(0, 1.0), (1, 2.0)]
    lines = (
        Series("rows", points, 1, faint=True),
        Series("mean", points, 1),
        Series("level", points, 2, dashed=True),
    )
    markup = picture(*lines)
    keys = re.findall(r'<i class="([^"]*)"></i>', markup)
    assert keys == re.findall(r'class="line ([^"]*)" d=', markup) and len(set(keys)) == 3


def test_highest_value_is_drawn_highest():
    points = re.findall(r"[ML]([\d.]+) ([\d.]+)", path_of(picture(Series("a", [(0, 5.0), (10, 1.0)], 1))))
    (x1, y1), (x2, y2) = [(float(x), float(y)) for x, y in points]
    assert x1 < x2 and y1 < y2


def test_missing_value_breaks_the_line_and_is_never_drawn_as_zero():
    markup = picture(Series("a", [(0, 5.0), (1, 5.1), (2, None), (3, math.nan), (4, 5.2), (5, 5.3)], 1))
    assert path_of(markup).count("M") == 2
    assert "not measured" in picture(Series("a", [(0, None), (1, None)], 1))
    assert "not measured" in picture()


def test_thinning_keeps_the_spike_and_both_ends():
    points = [(float(step), 1.0) for step in range(100_000)]
    points[61_234] = (61_234.0, 99.0)
    kept = thin(points, 250)
    assert len(kept) <= 1000
    assert kept[0] == points[0] and kept[-1] == points[-1] and points[61_234] in kept


def test_log_axis_places_equal_ratios_at_equal_distances():
    markup = picture(Series("a", [(10, 3.0), (100, 2.0), (1000, 1.0)], 1), log_x=True)
    x = [float(value) for value in re.findall(r"[ML]([\d.]+) ", path_of(markup))]
    assert abs((x[1] - x[0]) - (x[2] - x[1])) < 0.2


def test_one_point_and_equal_points_are_drawn():
    for points in ([(5, 2.0)], [(5, 2.0), (6, 2.0)], [(0, 0.0), (1, 0.0)]):
        ET.fromstring(picture(Series("a", points, 1), from_zero=True))


def test_error_bars_reach_from_the_lowest_to_the_highest_and_lie_inside_the_picture():
    spread = [(10, 2.0, 4.0), (100, 0.5, 1.5)]
    markup = picture(Series("a", [(10, 3.0), (100, 1.0)], 1, spread=spread), log_x=True)
    ET.fromstring(markup)
    bars = re.findall(r'class="whisker s1" d="M([\d.]+) ([\d.]+)V([\d.]+)', markup)
    points = re.findall(r"[ML]([\d.]+) ([\d.]+)", path_of(markup))
    for (x, top, bottom), (at, middle) in zip(bars, points, strict=True):
        assert x == at and 0 < float(top) < float(middle) < float(bottom) < 240
    heights = [float(bottom) - float(top) for _, top, bottom in bars]
    assert abs(heights[0] - 2 * heights[1]) < 0.3  # 2 nat and 1 nat on one scale
