import json
from typing import Any

import pytest
from transformers import AutoConfig

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
        "qk_norm": family == "qwen3",
        "norm_eps": 1e-5,
        "rope_theta": 5e5,
        "bos_id": 0,
        "eos_id": 1,
        "max_positions": 256,
    }
    return ModelShape(**{**values, **changes})


@pytest.mark.parametrize("scaling", [None, LLAMA3, {"rope_type": "linear", "factor": 2.0}])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
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
        {"sliding_window": 128},
        {"family": "gpt2"},
        {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
    ],
)
def test_shape_without_a_hugging_face_form_is_refused(changes):
    with pytest.raises(RecipeError, match="no Hugging Face form"):
        config_from_shape(shape(**changes), torch_dtype="float32")
