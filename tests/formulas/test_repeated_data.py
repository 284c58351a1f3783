import math

import pytest

from bessemer.formulas.scaling.repeated import (
    EXCESS,
    REPEATS,
    added_loss,
    effective_params,
    effective_tokens,
    effective_tokens_band,
    optimal_params_of,
    repeated_loss,
)


def test_what_is_read_once_or_in_part_counts_in_full() -> None:
    assert effective_tokens(1e9, 1e9) == 1e9
    assert effective_tokens(1e9, 3e8) == 3e8
    assert effective_tokens(0, 5) == 0
    assert effective_tokens_band(1e9, 2e8) == (2e8, 2e8)


@pytest.mark.parametrize(
    ("epochs", "share"),
    [(1, 1.0), (2, 0.984), (4, 0.931), (8, 0.828), (16, 0.661), (40, 0.379)],  # equation 5 by hand
)
def test_share_of_fresh_tokens_that_epochs_are_worth(epochs: int, share: float) -> None:
    assert effective_tokens(1e8, epochs * 1e8) / (epochs * 1e8) == pytest.approx(share, abs=5e-4)


def test_paper_says_that_repeats_of_the_constant_are_worth_one_less_one_over_e() -> None:
    """Section 3.1: at R_D = R*_D the repeated tokens are on average worth 1 - 1/e of fresh ones."""
    repeated = effective_tokens(1.0, 1.0 + REPEATS) - 1.0
    assert repeated / REPEATS == pytest.approx(1.0 - 1.0 / math.e)


def test_paper_says_that_no_number_of_repeats_is_worth_more_than_the_plateau() -> None:
    """Section 3.1: never better than one epoch of U + U R*_D fresh tokens."""
    assert effective_tokens(2.0, 1e9) == pytest.approx(2.0 * (1.0 + REPEATS))


def test_series_of_the_appendix_is_what_the_exponential_stands_for() -> None:
    """Appendix A: a repeat loses delta of the one before, R* = (1 - delta) / delta; near for small delta."""
    delta = 1.0 / (1.0 + REPEATS)
    series = 1.0 + sum((1.0 - delta) ** repeat for repeat in range(1, 4))
    assert effective_tokens(1.0, 4.0) == pytest.approx(series, rel=0.03)


def test_high_end_of_the_band_is_a_series_added_up() -> None:
    low, high = effective_tokens_band(1.0, 16.0)
    assert high == pytest.approx(1.0 + sum(0.9896**repeat for repeat in range(1, 16)))
    assert low < effective_tokens(1.0, 16.0) < high


def test_paper_says_that_four_epochs_cost_half_a_percent() -> None:
    """Section 6: 8.7B parameters, 44B tokens four times, 0.5 % above 178B fresh ones; the fit says 0.7 %."""
    assert 0.004 < added_loss(8.7e9, 44e9, 178e9) < 0.008
    assert added_loss(8.7e9, 178e9, 178e9) == 0.0


def test_four_epochs_are_cheap_and_forty_are_not() -> None:
    costs = [added_loss(100e6, 2e9 / epochs, 2e9) for epochs in (1, 2, 4, 16, 40)]
    assert costs == sorted(costs) and costs[2] < 0.03 < 0.1 < costs[3]


def test_parameters_that_the_data_fills_are_those_of_the_paper() -> None:
    assert optimal_params_of(1e9) == pytest.approx(0.051e9, rel=1e-3)
    assert effective_params(1e6, 1e9) == 1e6  # fewer than it fills
    assert effective_params(1e15, 1e9) == pytest.approx(optimal_params_of(1e9) * (1.0 + EXCESS))


def test_loss_is_that_of_equation_17_in_the_papers_rounding() -> None:
    unique, params, epochs = 4e8, 1e9, 10
    filled = 0.051 * unique
    excess = filled * (1 + 5.3 * (1 - math.exp(-(params / filled - 1) / 5.3)))
    data = unique * (1 + 15.4 * (1 - math.exp(-(epochs - 1) / 15.4)))
    paper = 521 / excess**0.3527 + 1488 / data**0.3527 + 1.87
    worth = effective_tokens(unique, epochs * unique)
    assert repeated_loss(params, unique, worth) == pytest.approx(paper, rel=2e-3)
