from pathlib import Path

import pytest

from bessemer.energy.grid.hourly import Span, read_hourly
from bessemer.errors import RecipeError

TEN_S = 1_795_860_000.0  # 2026-11-28T10:00:00Z


def written(folder: Path, *rows: str, heading: str = "time,g_per_kwh") -> Path:
    path = folder / "hours.csv"
    path.write_text("\n".join(["# a grid's operator", heading, *rows]) + "\n")
    return path


def test_hours_are_looked_up_and_gaps_between_them_are_named(tmp_path: Path) -> None:
    hours = read_hourly(
        written(tmp_path, "2026-11-28T10:00Z,100", "2026-11-28T11:00+00:00,200", "2026-11-28T14:00,400.5")
    )
    for time_s, kg in ((3599, 0.1), (3600, 0.2), (-1, None), (2.5 * 3600, None)):
        assert hours.mean([Span(TEN_S + time_s, TEN_S + time_s, 1.0)])[0].value == kg
    drawn = Span(TEN_S, TEN_S + 4.5 * 3600, 1.0)
    assert hours.missing([drawn]) == ["2026-11-28T12:00Z", "2026-11-28T13:00Z"]
    idle = [Span(TEN_S, TEN_S + 7200, 1.0), Span(TEN_S + 7200, TEN_S + 14_400, 0.0)]
    assert not hours.missing(idle)  # nothing was drawn in the hours that are not there


def test_mean_is_weighed_by_energy_and_a_span_is_cut_at_the_hour(tmp_path: Path) -> None:
    hours = read_hourly(written(tmp_path, "2026-11-28T10:00Z,100", "2026-11-28T11:00Z,400"))
    half_and_half = Span(TEN_S + 1800, TEN_S + 5400, 1000.0)
    mean, covered = hours.mean([half_and_half])
    assert (mean.value, covered) == (pytest.approx(0.25), pytest.approx(1.0))
    mean, covered = hours.mean([half_and_half, Span(TEN_S + 7000, TEN_S + 7000, 3000.0)])
    assert mean.value == pytest.approx((500 * 0.1 + 500 * 0.4 + 3000 * 0.4) / 4000)
    mean, covered = hours.mean([Span(TEN_S + 7200, TEN_S + 9000, 10.0)])
    assert (mean.value, covered) == (None, 0.0)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "no rows"),
        (["2026-11-28T10:00Z,-5"], "row 1: -5 g per kWh"),
        (["2026-11-28T10:00Z,0"], "row 1: 0 g per kWh"),
        (["2026-11-28T10:00Z,nan"], "nan g per kWh"),
        (["2026-11-28T10:00Z,344100"], "344100 g per kWh"),
        (["2026-11-28T10:00Z,"], "row 1: no intensity"),
        (["2026-11-28T10:00Z"], "row 1: no intensity"),
        (["yesterday,100"], "'yesterday' is no time"),
        (["2026-11-28T10:30Z,100"], "no full hour"),
        (["2026-11-28T10:00+01:00,100"], "not UTC"),
        (["2026-11-28T10:00Z,100", "2026-11-28T10:00Z,100"], "row 2: 2026-11-28T10:00Z does not come after"),
    ],
)
def test_file_with_a_bad_row_is_an_error_that_names_it(tmp_path: Path, rows: list[str], told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_hourly(written(tmp_path, *rows))
    assert told in caught.value.found


def test_file_of_another_form_or_none_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no column g_per_kwh"):
        read_hourly(written(tmp_path, "2026-11-28T10:00Z,1", heading="time,grams"))
    with pytest.raises(RecipeError, match="No such file"):
        read_hourly(tmp_path / "nothing.csv")
