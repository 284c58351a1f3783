import pytest

from bessemer.formulas.parameters import total_params
from bessemer.formulas.scaling import sizing
from bessemer.formulas.scaling.law import BESIROGLU
from bessemer.formulas.shape import ModelShape

BASE = ModelShape("llama", 1, 1, 1, 1, 1, 1, 8192, 1024, tie_embeddings=True, qk_norm=False)


@pytest.mark.parametrize("params", [10e6, 20e6, 30e6, 34e6, 60e6, 125e6, 350e6, 1e9, 3e9, 8e9, 70e9])
def test_size_dial_hits_the_count_within_a_tenth_with_a_well_formed_shape(params: float) -> None:
    shape = sizing.shape_of_size(int(params), BASE)
    assert total_params(shape) == pytest.approx(params, rel=0.11)
    assert shape.hidden % 64 == 0 and shape.ffn % 64 == 0
    assert shape.heads * shape.head_dim == shape.hidden
    assert shape.heads % shape.kv_heads == 0
    assert 0.6 < shape.hidden / shape.layers / sizing.usual_ratio(shape.hidden) < 1.7


def test_larger_size_never_gives_a_smaller_model() -> None:
    counts = [
        total_params(sizing.shape_of_size(round(10 ** (exponent / 10)), BASE)) for exponent in range(72, 110)
    ]
    assert counts == sorted(counts)


def test_batch_for_given_steps_agrees_with_the_law_for_the_compute_that_follows() -> None:
    per_token, steps = 2e8, 500
    batch = sizing.batch_tokens_for_steps(per_token, steps)
    assert batch == pytest.approx(sizing.batch_tokens_for(per_token * steps * batch))


def test_laws_give_the_published_values_for_deepseek_7b() -> None:
    # arXiv:2401.02954, section 3.1: batch and rate of the 7B model on 2T tokens, within the flat optimum.
    compute = 6 * 6.9e9 * 2e12
    assert sizing.batch_tokens_for(compute) == pytest.approx(9.4e6, rel=0.15)
    assert sizing.learning_rate_for(compute) == pytest.approx(4.2e-4, rel=0.1)


def test_learning_rate_is_held_where_the_law_was_not_fitted() -> None:
    assert sizing.learning_rate_for(1e10) == 3e-3
    assert sizing.learning_rate_for(1e40) == 1e-4


def test_optimal_tokens_and_optimal_size_are_each_other() -> None:
    for params in (30_000_000, 8_000_000_000):
        tokens = BESIROGLU.best_tokens(params)
        assert 15 < tokens / params < 30
        assert BESIROGLU.best_params(6 * params * tokens) == pytest.approx(params, rel=1e-6)


def test_refit_gives_the_known_size_at_1e24_flops() -> None:
    assert BESIROGLU.best_params(1e24) == pytest.approx(96e9, rel=0.01)
