import json
import math
from typing import Any

import pytest
from transformers import AutoConfig, Glm4MoeConfig, MixtralConfig, Qwen3MoeConfig

from bessemer.errors import RecipeError
from bessemer.formulas.families import BIASED, NORMED_QUERIES, TRAINABLE
from bessemer.formulas.huggingface.config import config_from_shape, shape_from_config
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
GEMMA = {"sliding_window": 24, "full_every": 2, "local_rope_theta": 5e3, "query_scalar": 24.0}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0 + 0.1 * index for index in range(12)],
    "long_factor": [2.0 + 0.5 * index for index in range(12)],
    "original_max_position_embeddings": 128,
    "attention_factor": math.sqrt(1.0 + math.log(2.0) / math.log(128.0)),
}


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
        "qk_norm": family in NORMED_QUERIES,
        "qkv_bias": family in BIASED,
        "rotary_share": 0.5 if family == "glm4-moe" else 1.0,
        "norm_eps": 1e-5,
        "rope_theta": 5e5,
        "bos_id": 0,
        "eos_id": 1,
        "max_positions": 256,
        **EXPERTS.get(family, {}),
    }
    return ModelShape(**{**values, **changes})


@pytest.mark.parametrize("scaling", [None, LLAMA3, {"rope_type": "linear", "factor": 2.0}])
@pytest.mark.parametrize("family", [family for family in TRAINABLE if family != "phi3"])
def test_shape_survives_config_and_transformers_own_writing_of_it(family, scaling, tmp_path):
    before = shape(family, rope_scaling=scaling)
    config = config_from_shape(before, torch_dtype="float32")
    assert shape_from_config(config, context=128) == before
    (tmp_path / "config.json").write_text(json.dumps(config))
    AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert shape_from_config(json.loads((tmp_path / "config.json").read_text()), context=128) == before


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"sliding_window": 32}),
        ("mixtral", {"sliding_window": 32}),
        ("qwen3-moe", {"sliding_window": 32}),
        ("qwen2", {"sliding_window": 32, "full_layers": (0, 1), "layers": 5}),
        ("qwen3", {"sliding_window": 32, "full_every": 3, "layers": 7}),
        ("gemma3", {**GEMMA, "layers": 4}),
        ("gemma3", {**GEMMA, "layers": 4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
        ("phi3", {"sliding_window": 32}),
        ("phi3", {"head_dim": 16, "rotary_share": 0.75}),
        ("phi3", {"hidden": 128, "rotary_share": 0.75, "rope_scaling": LONG}),
        ("phi3", {"hidden": 128, "rotary_share": 0.75, "rope_scaling": {**LONG, "attention_factor": 1.25}}),
        ("glm4-moe", {"qkv_bias": True, "rotary_share": 1.0}),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_a_family_has_alone_survives_config_and_transformers_own_writing_of_it(
    family, changes, tmp_path
):
    before = shape(family, **changes)
    config = config_from_shape(before, torch_dtype="float32")
    assert shape_from_config(config, context=128) == before
    old = {key: value for key, value in config.items() if key not in ("rope_parameters", "layer_types")}
    if family not in ("qwen2", "qwen3"):  # only the newest versions have these layers at all
        assert shape_from_config(old, context=128) == before
    (tmp_path / "config.json").write_text(json.dumps(config))
    AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert shape_from_config(json.loads((tmp_path / "config.json").read_text()), context=128) == before


def test_shape_of_a_stage_survives_its_json():
    before = shape("qwen3", sliding_window=32, full_layers=(0, 3), layers=5)
    assert ModelShape.from_json(json.loads(json.dumps(before.to_json()))) == before


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
        ({"attention_dropout": 0.1}, "attention_dropout = 0.1"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters"),
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
        ("qwen3-moe", {"num_experts_per_tok": 9}, "num_experts_per_tok = 9"),
        ("mixtral", {"router_jitter_noise": 0.1}, "router_jitter_noise = 0.1"),
        ("glm4-moe", {"n_group": 2}, "n_group = 2"),
        ("glm4-moe", {"routed_scaling_factor": 2.5}, "routed_scaling_factor = 2.5"),
        ("glm4-moe", {"norm_topk_prob": False}, "norm_topk_prob = False"),
        ("glm4-moe", {"partial_rotary_factor": 0.25}, r"partial_rotary_factor = \[0.5, 0.25\]"),
        ("glm4-moe", {"n_shared_experts": 0}, "n_shared_experts = 0"),
    ],
)
def test_routers_that_we_do_not_compute_are_refused_with_key_and_value(family, change, named):
    config = config_from_shape(shape(family), torch_dtype="float32")
    with pytest.raises(RecipeError, match=named):
        shape_from_config({**config, **change})


def test_other_architectures_are_refused_with_the_list_that_works():
    with pytest.raises(
        RecipeError, match=r"MambaForCausalLM(.|\n)*LlamaForCausalLM, MistralForCausalLM, Qwen2"
    ):
        shape_from_config({"architectures": ["MambaForCausalLM"]})


NEAR, ALL = "sliding_attention", "full_attention"


@pytest.mark.parametrize(
    ("family", "change", "named"),
    [
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
        ("gemma3", {"hidden_activation": "silu"}, "hidden_activation = 'silu'"),
        ("gemma3", {"layer_types": [ALL]}, "layer_types"),
        ("gemma3", {"layer_types": ["chunked_attention", ALL]}, "chunked_attention"),
        ("gemma3", {"sliding_window": None, "layer_types": [NEAR, ALL]}, "no sliding_window"),
        ("gemma3", {"rope_parameters": {"sliding_attention": {"rope_type": "linear"}}}, "'linear'"),
        ("gemma3", {"rope_parameters": {"rope_type": "default"}}, "rope_parameters"),
        ("gemma3", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar = 0"),
        ("phi3", {"resid_pdrop": 0.1}, "resid_pdrop = 0.1"),
        ("phi3", {"embd_pdrop": 0.1}, "embd_pdrop = 0.1"),
        ("phi3", {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": None},
         "rope_type = 'linear'"),
        ("phi3", {"rope_scaling": {"type": "su", "short_factor": [1.0]}, "rope_parameters": None},
         "long_factor"),
        ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]},
                  "rope_parameters": None}, "short_factor"),
        ("phi3", {"partial_rotary_factor": 1.5, "rope_parameters": None}, "partial_rotary_factor = 1.5"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 9, "layer_types": [NEAR] * 3},
         "layer_types"),
    ],
)  # fmt: skip
def test_other_members_of_a_family_are_refused_with_key_and_value(family, change, named):
    config = config_from_shape(shape(family), torch_dtype="float32")
    with pytest.raises(RecipeError, match=named):
        shape_from_config({**config, **change})


def test_longrope_is_refused_in_rows_that_would_have_its_other_factors():
    config = config_from_shape(shape("phi3", hidden=128, rotary_share=0.75, rope_scaling=LONG),
                               torch_dtype="float32")  # fmt: skip
    assert shape_from_config(config).context == 128
    with pytest.raises(RecipeError, match=r"model\.context = 129"):
        shape_from_config(config, context=129)
    scaling = {**config["rope_scaling"], "factor": 3.0}
    with pytest.raises(RecipeError, match=r"factor = 3\.0"):
        shape_from_config({**config, "rope_scaling": scaling, "rope_parameters": None})


def test_gemma_that_sees_pictures_is_refused_with_one_that_does_not():
    with pytest.raises(RecipeError, match="Gemma3ForConditionalGeneration") as caught:
        shape_from_config({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {}})
    assert "1B" in caught.value.fix


def test_mistral_is_llama_with_a_window_where_it_says_so():
    config = {**config_from_shape(shape(), torch_dtype="float32"), "architectures": ["MistralForCausalLM"]}
    assert shape_from_config({**config, "sliding_window": None}, context=128) == shape()
    windowed = shape_from_config({**config, "sliding_window": 4096})
    assert (windowed.family, windowed.sliding_window) == ("llama", 4096)
    assert shape_from_config(config).sliding_window == 4096  # the default of its class
    assert config_from_shape(windowed, torch_dtype="float32")["architectures"] == ["MistralForCausalLM"]
    with pytest.raises(RecipeError, match="layer_types"):
        shape_from_config({**config, "layer_types": [NEAR, ALL]})


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
        {"sliding_window": 128, "full_layers": (0,)},
        {"family": "glm4-moe", "sliding_window": 128},
        {"family": "qwen3", "qkv_bias": True},
        {"family": "qwen2", "qkv_bias": False},
        {"family": "phi3", "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"family": "gpt2"},
        {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
    ],
)
def test_shape_without_a_hugging_face_form_is_refused(changes):
    with pytest.raises(RecipeError, match="no Hugging Face form"):
        config_from_shape(shape(**changes), torch_dtype="float32")
