import json
from typing import Any

import pytest
from transformers import AutoConfig, Glm4MoeConfig, MixtralConfig, Qwen3MoeConfig

from bessemer.errors import RecipeError
from bessemer.formulas.huggingface import config_from_shape, shape_from_config
from bessemer.formulas.shape import ModelShape

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# Mixtral has no width but that of its experts.
EXPERTS: dict[str, dict[str, Any]] = {
    "qwen3-moe": {"experts": 8, "experts_per_token": 2, "expert_ffn": 48, "dense_layers": 1},
    "mixtral": {"experts": 8, "experts_per_token": 2, "expert_ffn": 128},
    "glm4-moe": {
        "experts": 8,
        "experts_per_token": 2,
        "expert_ffn": 48,
        "shared_ffn": 96,
        "dense_layers": 1,
        "router": "sigmoid_bias",
    },
}
FAMILIES = ("llama", "qwen3", *EXPERTS)


def shape(family: str = "llama", **changes: Any) -> ModelShape:
    values: dict[str, Any] = {
        "family": family,
        "layers": 2,
        "hidden": 64,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 32,
        "ffn": 128,
        "vocab": 320,
        "context": 128,
        "tie_embeddings": True,
        "qk_norm": family in ("qwen3", "qwen3-moe"),
        "norm_eps": 1e-5,
        "rope_theta": 5e5,
        "bos_id": 0,
        "eos_id": 1,
        "max_positions": 256,
        **EXPERTS.get(family, {}),
    }
    return ModelShape(**{**values, **changes})


@pytest.mark.parametrize("scaling", [None, LLAMA3, {"rope_type": "linear", "factor": 2.0}])
@pytest.mark.parametrize("family", FAMILIES)
def test_shape_survives_config_and_transformers_own_writing_of_it(family, scaling, tmp_path):
    before = shape(family, rope_scaling=scaling)
    config = config_from_shape(before, torch_dtype="float32")
    assert shape_from_config(config, context=128) == before
    (tmp_path / "config.json").write_text(json.dumps(config))
    AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert shape_from_config(json.loads((tmp_path / "config.json").read_text()), context=128) == before


def test_config_of_transformers_4_reads_as_that_of_transformers_5():
    config = config_from_shape(shape(rope_scaling=LLAMA3), torch_dtype="float32")
    old = {key: value for key, value in config.items() if key != "rope_parameters"}
    new = {key: value for key, value in config.items() if key not in ("rope_theta", "rope_scaling")}
    assert shape_from_config(old) == shape_from_config(new)
    assert shape_from_config(old).rope_scaling == LLAMA3


def test_either_norm_of_queries_survives_where_the_class_has_both():
    for qk_norm in (False, True):
        before = shape("glm4-moe", qk_norm=qk_norm)
        assert shape_from_config(config_from_shape(before, torch_dtype="float32"), context=128) == before


@pytest.mark.parametrize(
    ("family", "config_class"),
    [("qwen3-moe", Qwen3MoeConfig), ("mixtral", MixtralConfig), ("glm4-moe", Glm4MoeConfig)],
)
def test_missing_keys_about_experts_take_transformers_defaults(family, config_class):
    config = config_from_shape(shape(family), torch_dtype="float32")
    needed = ("architectures", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
              "intermediate_size", "head_dim", "norm_topk_prob", "partial_rotary_factor")  # fmt: skip
    bare = {key: config[key] for key in needed if key in config}
    full = {**config_class(**bare).to_dict(), "architectures": config["architectures"]}
    for key in ("bos_token_id", "eos_token_id"):
        full[key] = None  # what a text begins with is read from files only
    assert shape_from_config(bare) == shape_from_config(full)


def test_missing_keys_take_transformers_defaults():
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "vocab_size": 100,
    }
    read = shape_from_config(config)
    assert (read.kv_heads, read.head_dim, read.norm_eps, read.rope_theta) == (4, 16, 1e-6, 10000.0)
    assert (read.context, read.tie_embeddings, read.vocab) == (2048, False, 100)
    assert shape_from_config({**config, "architectures": ["Qwen3ForCausalLM"]}).head_dim == 128


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"attention_bias": True}, "attention_bias = True"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type = 'yarn'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_parameters": None}, "'dynamic'"),
        ({"num_hidden_layers": None}, "num_hidden_layers = 'missing'"),
    ],
)
def test_what_we_do_not_compute_is_refused_with_key_and_value(change, named):
    config = config_from_shape(shape(), torch_dtype="float32")
    with pytest.raises(RecipeError, match=named):
        shape_from_config({**config, **change})


@pytest.mark.parametrize(
    ("family", "change", "named"),
    [
        ("qwen3-moe", {"norm_topk_prob": None}, "norm_topk_prob = 'missing, which means False'"),
        ("qwen3-moe", {"decoder_sparse_step": 2}, "decoder_sparse_step = 2"),
        ("qwen3-moe", {"mlp_only_layers": [1]}, r"mlp_only_layers = \[1\]"),
        ("qwen3-moe", {"use_sliding_window": True}, "use_sliding_window = True"),
        ("qwen3-moe", {"num_experts_per_tok": 9}, "num_experts_per_tok = 9"),
        ("mixtral", {"sliding_window": 64}, "sliding_window = 64"),
        ("mixtral", {"router_jitter_noise": 0.1}, "router_jitter_noise = 0.1"),
        ("glm4-moe", {"n_group": 2}, "n_group = 2"),
        ("glm4-moe", {"routed_scaling_factor": 2.5}, "routed_scaling_factor = 2.5"),
        ("glm4-moe", {"norm_topk_prob": False}, "norm_topk_prob = False"),
        ("glm4-moe", {"partial_rotary_factor": None, "rope_parameters": None}, "partial_rotary_factor = 0.5"),
        ("glm4-moe", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ("glm4-moe", {"n_shared_experts": 0}, "n_shared_experts = 0"),
    ],
)
def test_routers_that_we_do_not_compute_are_refused_with_key_and_value(family, change, named):
    config = config_from_shape(shape(family), torch_dtype="float32")
    with pytest.raises(RecipeError, match=named):
        shape_from_config({**config, **change})


def test_other_architectures_are_refused_with_the_list_that_works():
    with pytest.raises(
        RecipeError, match=r"MambaForCausalLM(.|\n)*LlamaForCausalLM, MistralForCausalLM, Qwen3"
    ):
        shape_from_config({"architectures": ["MambaForCausalLM"]})


def test_mistral_is_read_only_without_its_window():
    config = {**config_from_shape(shape(), torch_dtype="float32"), "architectures": ["MistralForCausalLM"]}
    assert shape_from_config({**config, "sliding_window": None}).family == "llama"
    with pytest.raises(RecipeError, match="sliding_window = 4096"):
        shape_from_config({**config, "sliding_window": 4096})
    with pytest.raises(RecipeError, match="sliding_window"):
        shape_from_config(config)


def test_rows_longer_than_the_model_are_refused():
    config = config_from_shape(shape(), torch_dtype="float32")
    with pytest.raises(RecipeError, match=r"model\.context = 512"):
        shape_from_config(config, context=512)


@pytest.mark.parametrize(
    "changes",
    [
        {"qk_norm": True},
        {"norm": "layer"},
        {"experts": 8},
        {"family": "mixtral", "dense_layers": 1},
        {"family": "mixtral", "router": "sigmoid_bias"},
        {"family": "qwen3-moe", "shared_ffn": 48},
        {"family": "qwen3-moe", "qk_norm": False},
        {"family": "qwen3-moe", "experts": 0},
        {"family": "glm4-moe", "shared_ffn": 50},
        {"family": "glm4-moe", "shared_ffn": 0},
        {"family": "glm4-moe", "router": "softmax"},
        {"sliding_window": 128},
        {"family": "gpt2"},
        {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
    ],
)
def test_shape_without_a_hugging_face_form_is_refused(changes):
    with pytest.raises(RecipeError, match="no Hugging Face form"):
        config_from_shape(shape(**changes), torch_dtype="float32")
