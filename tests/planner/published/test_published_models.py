"""Names of models: every shape has its published number of parameters, and every spelling finds its shape."""

from dataclasses import replace

import pytest

from bessemer.formulas.flops import full_attention_layers, mean_causal_keys, train_flops_per_token
from bessemer.formulas.parameters import active_params, matmul_params, total_params
from bessemer.planner.published.models import catalogue, find_model, find_shape

# Published with two or three digits only: these figures are rounded (MaxText's are names of a scale).
ROUNDED = {"GPT 1.7B", "GPT 3.6B", "GPT 7.5B", "GLM 130B", "LaMDA 137B", "Grok 1 314B"}


@pytest.mark.parametrize("name", catalogue())
def test_named_shape_has_the_published_number_of_parameters(name: str) -> None:
    shape, published = catalogue()[name]
    within = 0.03 if name.startswith("MaxText") or name in ROUNDED else 0.005
    assert total_params(replace(shape, mtp_layers=0)) == pytest.approx(published, rel=within)


@pytest.mark.parametrize(
    ("name", "active"),
    [
        ("DeepSeek V3 671B", 37e9),
        ("Kimi K2 1T", 32e9),
        ("Qwen 3 235B A22B", 22e9),
        ("GPT OSS 120B", 5.1e9),
        ("Mixtral 8x7B", 12.9e9),
        ("GLM 4.5 355B A32B", 32e9),
        ("Nemotron 3 Nano 30B A3B", 3.5e9),
        ("Nemotron 3 Super 120B A12B", 12.7e9),
        ("Qwen 3 Next 80B A3B", 3.9e9),
        ("Llama 4 Maverick", 17e9),
        ("OLMoE 7B", 1.3e9),
    ],
)
def test_named_expert_model_has_the_published_active_parameters(name: str, active: float) -> None:
    # Some count the embedding as active and some do not: up to 12 % of a small one.
    assert active_params(replace(catalogue()[name][0], mtp_layers=0)) == pytest.approx(active, rel=0.12)


@pytest.mark.parametrize(
    ("name", "context", "published"),
    [
        # TFLOP/s over tokens/s of Megatron-Bridge's own tables: model FLOPs, causal attention, MTP counted.
        ("DeepSeekV3 (w/ MTP)", 4096, 260.4e9),
        ("Qwen3_235B_a22B", 4096, 148.0e9),
        ("Qwen3_30B_a3B", 4096, 23.0e9),
        ("Kimi_K2", 4096, 204.4e9),
        ("Nemotron_3_Super", 8192, 84.8e9),
        ("Llama-3 8B", 8192, 51.5e9),
        ("Llama-3.1 405B", 8192, 2524e9),
    ],
)
def test_flops_of_a_token_are_those_that_megatron_bridge_counts(
    name: str, context: int, published: float
) -> None:
    found = find_shape(name, {}, None, context)
    assert found is not None
    assert train_flops_per_token(found.shape, context) == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("Llama-3.1 405B", "Llama 3 405B"),
        ("llama3_405b", "Llama 3 405B"),
        ("LLAMA3-70B", "Llama 3 70B"),
        ("llama31_8b", "Llama 3 8B"),
        ("meta-llama/Llama-3.1-8B-Instruct", "Llama 3 8B"),
        ("Llama2-70b", "Llama 2 70B"),
        ("LLaMA 65B", "Llama 1 65B"),
        ("GPT3-175B", "GPT 3 175B"),
        ("Mixtral-8x7B", "Mixtral 8x7B"),
        ("DeepSeekV3 (dropless)", "DeepSeek V3 671B"),
        ("DeepSeek-V3 671B-A37B", "DeepSeek V3 671B"),
        ("Qwen3_30B_a3B (tokendrop)", "Qwen 3 30B A3B"),
        ("Nemotron-4 340B", "Nemotron 4 340B"),
        ("Nemotron_3_Nano", "Nemotron 3 Nano 30B A3B"),
        ("OLMo-2-0325-32B", "OLMo 2 32B"),
        ("Falcon-40B adapter finetune", "Falcon 40B"),
        ("BLOOM 176B (production)", "BLOOM 176B"),
        ("MT-NLG 530B", "GPT 530B"),
        ("gpt-oss-20b", "GPT OSS 20B"),
        ("GPT-NeoX-20B", "GPT NeoX 20B"),
        ("PaLM 2 340B", None),
        ("BLOOM-candidate 181B", None),
        ("GPT3 5B", None),
        ("Frobnicator", None),
    ],
)
def test_spelling_finds_its_model_and_no_other(spelling: str, name: str | None) -> None:
    assert find_model(spelling) == name


def test_dimensions_of_the_row_win_over_the_named_model() -> None:
    cut = find_shape("llama3_70b truncated to 12 layers", {}, None, 4096)
    assert cut is not None and cut.shape.layers == 12 and cut.shape.hidden == 8192
    keys = find_shape("Llama-3 405B cut to 4 layers (kv_heads 16 in the config)", {"layers": 4}, None, 4096)
    assert keys is not None and keys.shape.kv_heads == 16
    heads = find_shape("BLOOM-candidate 176B", {"layers": 70, "hidden": 14336, "heads": 64}, 176e9, 2048)
    assert heads is not None and heads.shape.heads == 64 and heads.shape.head_dim == 224
    experts = find_shape("DeepSeek-V3 cut to 4 layers", {"layers": 4}, None, 4096)
    assert experts is not None and experts.shape.dense_layers == 1 and experts.shape.experts == 256
    assert experts.shape.mtp_layers == 0


def test_number_of_parameters_decides_what_a_row_leaves_open() -> None:
    dims = {"layers": 24, "hidden": 2048, "heads": 16, "vocab": 131072}
    untied = find_shape("GPT 1.7B", dims, 1.7e9, 4096)
    assert untied is not None and not untied.shape.gated and not untied.shape.tie_embeddings
    tied = find_shape("GPT h2304 L24 a24", {"vocab": 51200}, 1.65e9, 2048)
    assert tied is not None and tied.shape.tie_embeddings and tied.shape.hidden == 2304


def test_size_alone_gives_an_assumed_shape_and_nothing_gives_none() -> None:
    assumed = find_shape("Frobnicator 13B", {}, None, 2048)
    assert assumed is not None and assumed.assumed
    assert total_params(assumed.shape) == pytest.approx(13e9, rel=0.02)
    sized = find_shape("Llama 3", {}, 70.6e9, 8192)
    assert sized is not None and sized.name == "Llama 3 70B" and not sized.assumed
    assert find_shape("Frobnicator", {}, None, 2048) is None
    assert find_shape("GPT-OSS-20B / Qwen3-14B full finetune", {}, None, 2048) is None


def test_window_in_every_other_layer_halves_the_keys_that_it_saves() -> None:
    shape = replace(catalogue()["GPT OSS 20B"][0], full_every=2)
    everywhere, nowhere = replace(shape, full_every=0), replace(shape, sliding_window=None)
    mean = (mean_causal_keys(everywhere, 4096) + mean_causal_keys(nowhere, 4096)) / 2
    assert mean_causal_keys(shape, 4096) == pytest.approx(mean, rel=1e-12)
    assert full_attention_layers(shape) == 12 and full_attention_layers(nowhere) == shape.layers


def test_each_prediction_of_a_later_token_is_a_layer_and_a_head_more() -> None:
    shape = replace(catalogue()["Llama 3 8B"][0], mtp_layers=0)
    more = replace(shape, mtp_layers=1)
    block = (total_params(shape) - total_params(replace(shape, layers=31))) + 2 * 4096 * 4096 + 2 * 4096
    assert total_params(more) - total_params(shape) == block
    multiplied = block - 4 * 4096 + shape.vocab * shape.hidden  # all but four norms, and the head again
    assert matmul_params(more) - matmul_params(shape) == multiplied


def test_ungated_feed_forward_has_two_matrices() -> None:
    shape = catalogue()["Llama 3 8B"][0]
    saved = total_params(shape) - total_params(replace(shape, gated=False))
    assert saved == shape.layers * shape.hidden * shape.ffn
