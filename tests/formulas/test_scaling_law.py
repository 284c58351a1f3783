import math
from dataclasses import replace

import numpy as np
import pytest

from bessemer.errors import DataError
from bessemer.formulas.scaling.law import BESIROGLU, Law, Point, fit

# Hoffmann et al., arXiv:2203.15556, as Sardana et al. use it (their section 2).
HOFFMANN = Law("Hoffmann", (1.69, math.log(406.4), math.log(410.7), 0.336, 0.283), BESIROGLU.covariance, 1e22)


def runs(law: Law, *, noise: float = 0.0, seed: int = 0, budgets: int = 9, sizes: int = 10) -> list[Point]:
    """As Chinchilla was measured: sizes around the best one at each of several budgets."""
    chance = np.random.default_rng(seed)
    points = []
    for flops in np.geomspace(6e18, 3e21, budgets):
        for factor in np.geomspace(1 / 8, 8, sizes):
            params = law.best_params(flops) * factor
            tokens = flops / 6.0 / params
            points.append((params, tokens, law.loss(params, tokens) * math.exp(chance.normal(0, noise))))
    return points


def test_refit_gives_the_known_size_and_ratio_at_1e24_flops() -> None:
    params = BESIROGLU.best_params(1e24)
    assert params == pytest.approx(96e9, rel=0.005)
    assert 1e24 / 6.0 / params**2 == pytest.approx(18.1, abs=0.1)


def test_best_size_is_the_closed_form_of_the_paper() -> None:
    _, log_a, log_b, alpha, beta = BESIROGLU.values
    scale = (alpha * math.exp(log_a) / (beta * math.exp(log_b))) ** (1.0 / (alpha + beta))
    for flops in (1e17, 1e21, 1e26):
        assert BESIROGLU.best_params(flops) == pytest.approx(scale * (flops / 6) ** (beta / (alpha + beta)))


@pytest.mark.parametrize("flops", [1e19, 1e22, 1e25])
def test_no_other_size_has_a_lower_loss_for_the_same_compute(flops: float) -> None:
    best = BESIROGLU.best_params(flops)
    losses = [BESIROGLU.loss(best * factor, flops / 6 / best / factor) for factor in (0.9, 1.0, 1.1)]
    assert losses[1] == min(losses)
    assert BESIROGLU.best_tokens(best) == pytest.approx(flops / 6 / best)


def test_printed_errors_of_the_law_come_out_of_its_covariance_to_within_a_third() -> None:
    # Table 1: E 0.03, A 124.58 of 482.01, B 1293.23 of 2085.43, alpha 0.02, beta 0.02.
    errors = np.sqrt(np.diag(BESIROGLU.covariance))
    printed = np.array([0.03, 124.58 / 482.01, 1293.23 / 2085.43, 0.02, 0.02])
    assert errors[3] == pytest.approx(0.02) and (np.abs(np.log(errors / printed)) < math.log(1.5)).all()


def test_interval_widens_with_the_distance_from_what_was_measured() -> None:
    widths = []
    for flops in (1e20, 1e22, 1e24, 1e26):
        found = BESIROGLU.params_range(flops)
        assert found.low < found.value < found.high
        widths.append(found.high / found.low)
    assert widths == sorted(widths) and 1.5 < widths[2] < 2.5
    assert BESIROGLU.extrapolates(1e24) == pytest.approx(77, rel=0.01)
    assert BESIROGLU.extrapolates(1e21) == 1.0


def test_inference_of_ten_trillion_tokens_makes_30b_a_13_6b_model_with_28_percent_less_compute() -> None:
    # arXiv:2401.00448, section 3.1: 13.6B parameters on 2.84 times the tokens, 28 % fewer FLOPs.
    params, used = 30e9, 1e13
    tokens = HOFFMANN.best_tokens(params)
    low, high = 1e20, 1e26
    for _ in range(100):  # the training compute that comes to the same loss
        flops = math.sqrt(low * high)
        size = HOFFMANN.best_params(flops, used)
        better = HOFFMANN.loss(size, flops / 6 / size) < HOFFMANN.loss(params, tokens)
        low, high = (low, flops) if better else (flops, high)
    assert size == pytest.approx(13.6e9, rel=0.005)
    assert flops / 6 / size / tokens == pytest.approx(2.84, abs=0.01)
    assert (flops + 2 * size * used) / (6 * params * tokens + 2 * params * used) == pytest.approx(
        0.72, abs=0.002
    )


def test_more_use_makes_a_smaller_model_and_no_use_the_compute_optimal_one() -> None:
    sizes = [BESIROGLU.best_params(1e23, used) for used in (0.0, 1e11, 1e12, 1e13, 1e15)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == BESIROGLU.best_params(1e23)


def test_fit_finds_the_law_that_runs_were_made_by() -> None:
    found = fit(runs(HOFFMANN))
    assert found.alpha == pytest.approx(0.336, abs=0.004) and found.beta == pytest.approx(0.283, abs=0.006)
    assert found.values[0] == pytest.approx(1.69, abs=0.02)
    assert found.best_params(1e22) == pytest.approx(HOFFMANN.best_params(1e22), rel=0.03)
    assert found.largest_flops == pytest.approx(3e21)


def test_interval_of_a_fit_holds_the_truth_in_about_nine_of_ten_cases() -> None:
    truth = BESIROGLU.best_params(1e23)
    holds = 0
    for seed in range(60):
        found = fit(runs(BESIROGLU, noise=0.01, seed=seed, budgets=4, sizes=4)).params_range(1e23)
        holds += found.low < truth < found.high
    assert 48 <= holds <= 60


def test_one_wrong_run_among_many_changes_little() -> None:
    points = runs(BESIROGLU, noise=0.002)
    clean = fit(points).best_params(1e23)
    params, tokens, loss = points[40]
    points[40] = (params, tokens, 1.5 * loss)
    assert fit(points).best_params(1e23) == pytest.approx(clean, rel=0.05)


def test_few_small_runs_on_other_data_predict_a_larger_one_within_their_band() -> None:
    own = replace(HOFFMANN, values=(0.9, math.log(40.0), math.log(300.0), 0.32, 0.35))
    chance = np.random.default_rng(3)
    points = [
        (params, tokens, own.loss(params, tokens) * math.exp(chance.normal(0, 0.005)))
        for params in (1e5, 3e5, 1e6)
        for tokens in (2e6, 2e7)
    ]
    params, tokens = 5e6, 1e8
    few, more = fit(points[:3]).loss_range(params, tokens), fit(points).loss_range(params, tokens)
    truth = own.loss(params, tokens)
    assert few.low < truth < few.high and more.low < truth < more.high
    assert more.high - more.low < few.high - few.low
    assert not BESIROGLU.loss_range(params, tokens).low < truth < BESIROGLU.loss_range(params, tokens).high


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ([(1e6, 1e8, 3.0), (2e6, 1e8, 2.8)], "2 runs"),
        ([(1e6, 1e8, 3.0), (1.1e6, 1e8, 2.9), (1e6, 1.2e8, 2.95)], "one size"),
        ([(1e6, 1e8, 3.0), (4e6, 1e8, math.nan), (1e7, 1e8, 2.5)], "3 runs"),
        ([], "0 runs"),
    ],
)
def test_runs_that_show_no_law_are_refused(points: list[Point], said: str) -> None:
    with pytest.raises(DataError, match="do not show a law") as caught:
        fit(points)
    assert said in caught.value.found
