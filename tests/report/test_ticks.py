import pytest

from bessemer.report.ticks import linear_ticks, log_ticks, padded, tick_labels, value_label


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 1, ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0, 25e6, ["0", "5M", "10M", "15M", "20M", "25M"]),
        (0, 1.2e9, ["0", "0.2B", "0.4B", "0.6B", "0.8B", "1.0B", "1.2B"]),
        (1e-4, 3e-4, ["1.0e-4", "1.5e-4", "2.0e-4", "2.5e-4", "3.0e-4"]),
        (2.3, 9.1, ["3", "4", "5", "6", "7", "8", "9"]),
        (-1, 1, ["-1.0", "-0.5", "0", "0.5", "1.0"]),
    ],
)
def test_ticks_are_round_and_labelled_in_one_unit(low, high, labels):
    assert tick_labels(linear_ticks(low, high)) == labels


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1.0, 7.3, 1e4, 1e12])
def test_ticks_stay_inside_and_are_neither_few_nor_many(scale):
    for low, high in [(0.0, 1.0), (0.3, 0.9), (-5.0, 2.0), (99.0, 100.0)]:
        ticks = linear_ticks(low * scale, high * scale)
        assert 4 <= len(ticks) <= 11
        assert len(set(tick_labels(ticks))) == len(ticks)
        assert min(ticks) >= low * scale - 1e-9 * scale and max(ticks) <= high * scale + 1e-9 * scale


def test_log_ticks_are_decades_or_finer_where_decades_are_few():
    assert log_ticks(1, 1e9) == [1, 1e2, 1e4, 1e6, 1e8]
    assert [value_label(tick) for tick in log_ticks(40, 900)] == ["50", "100", "200", "500"]


def test_equal_values_still_get_a_range():
    for value in (0.0, 5.0, -3.0):
        low, high = padded(value, value)
        assert low < value < high
