from dataclasses import replace

import pytest

from bessemer.formulas import flops
from bessemer.formulas.parameters import active_params, matmul_params, total_params
from bessemer.formulas.scaling.sizing import pad_vocab
from bessemer.formulas.shape import ModelShape
from bessemer.formulas.tensors import count_active_params, count_params, tensor_table
from bessemer.planner.machine.facts import Facts
from bessemer.planner.published.models import catalogue
from bessemer.planner.shape import resolve_shape
from bessemer.recipe.load import load, shipped_names

DENSE = ModelShape("llama", 3, 128, 4, 2, 32, 320, 512, 64, tie_embeddings=False, qk_norm=False)


def shipped_shape(name: str) -> ModelShape:
    return resolve_shape(load(name, []).recipe, Facts(device="any", kind="cpu"))[0]


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("llama-1b", 1_235_814_400),
        ("llama-8b", 8_030_261_248),
        ("llama-70b", 70_553_706_496),
        ("llama-405b", 405_853_388_800),
        ("qwen-moe-30b-a3b", 30_532_122_624),
        # Published with the balancing biases (256 in each of 58 layers), which are no weights here.
        ("deepseek-style-671b", 671_026_419_200 - 58 * 256),
    ],
)
def test_shipped_shape_has_the_published_number_of_parameters(name: str, published: int) -> None:
    assert total_params(shipped_shape(name)) == published


def test_active_parameters_are_those_published() -> None:
    assert active_params(shipped_shape("qwen-moe-30b-a3b")) == pytest.approx(3.3e9, rel=0.02)
    assert active_params(shipped_shape("deepseek-style-671b")) == pytest.approx(37e9, rel=0.02)


@pytest.mark.parametrize("name", [name for name in shipped_names() if "671b" not in name])
def test_closed_form_equals_the_sum_over_the_tensor_table(name: str) -> None:
    shape = shipped_shape(name)
    assert total_params(shape) == count_params(shape)
    assert active_params(shape) == count_active_params(shape)


def test_closed_form_equals_the_tensor_table_with_latent_attention_and_experts() -> None:
    shape = replace(shipped_shape("deepseek-style-671b"), layers=5, experts=8, experts_per_token=2)
    for changed in (shape, replace(shape, mla_q_rank=0), replace(shape, shared_ffn=0, dense_layers=0)):
        assert total_params(changed) == count_params(changed)
        assert active_params(changed) == count_active_params(changed)


@pytest.mark.parametrize("name", ["GPT 2 XL 1.5B", "OPT 13B", "StarCoder 2 3B", "Nemotron 3 Nano 30B A3B"])
def test_table_of_a_model_without_gates_has_two_feed_forward_matrices_and_trained_positions(
    name: str,
) -> None:
    shape = catalogue()[name][0]
    assert not shape.gated
    # Nothing lists biases but those of queries, keys and values.
    assert count_params(shape) == total_params(shape) - shape.other_params


def test_multiplied_parameters_are_the_matrices_without_the_embedding() -> None:
    for shape in (DENSE, replace(DENSE, tie_embeddings=True), replace(DENSE, qk_norm=True, family="qwen3")):
        matrices = sum(spec.numel for spec in tensor_table(shape) if len(spec.shape) == 2)
        embedding = 0 if shape.tie_embeddings else shape.vocab * shape.hidden
        assert matmul_params(shape) == matrices - embedding


def test_training_flops_are_six_per_weight_and_the_causal_triangle() -> None:
    attention = 6 * DENSE.layers * DENSE.heads * DENSE.head_dim * 64
    assert flops.train_flops_per_token(DENSE, 64) == 6 * matmul_params(DENSE) + attention


def test_attention_share_of_the_405b_model_is_as_published_for_its_context() -> None:
    shape = shipped_shape("llama-405b")
    share = flops.train_flops_per_token(shape, 8192) / (6 * matmul_params(shape)) - 1
    assert share == pytest.approx(0.042, abs=0.001)


def test_window_as_long_as_the_row_changes_nothing_and_a_short_one_saves() -> None:
    assert flops.mean_causal_keys(replace(DENSE, sliding_window=64), 64) == flops.mean_causal_keys(DENSE, 64)
    windowed = replace(DENSE, sliding_window=8)
    exact = sum(min(8, position + 0.5) for position in range(64)) / 64  # half of the diagonal counts
    assert flops.mean_causal_keys(windowed, 64) == pytest.approx(exact, rel=0.02)


def test_full_recomputation_adds_one_forward_pass_without_the_head() -> None:
    model = flops.train_flops_per_token(DENSE, 64)
    more = flops.hardware_flops_per_token(DENSE, 64, "full") - model
    assert more == pytest.approx(model / 3 - 2 * DENSE.vocab * DENSE.hidden)
    assert flops.hardware_flops_per_token(DENSE, 64, "none") == model


def test_vocabulary_is_padded_to_whole_multiples_of_64() -> None:
    assert [pad_vocab(words) for words in (1, 64, 65, 8190, 128256)] == [64, 64, 128, 8192, 128256]
