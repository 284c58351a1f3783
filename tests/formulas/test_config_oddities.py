"""A `config.json` with a value of another kind: read, or refused with the key's name; never a traceback."""

import json
from contextlib import suppress
from typing import Any

import pytest

from bessemer.errors import RecipeError
from bessemer.formulas.huggingface.config import shape_from_config
from bessemer.formulas.huggingface.plan import planned_shape

ODD = ("x", "", [], {}, [None], ["x"], [1], {"a": 1}, -1, 0, 1.5, True, None, float("nan"), 10**30)
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
PLAIN: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 320, "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5, "rope_theta": 5e5, "bos_token_id": 0, "eos_token_id": [1, 2],
}  # fmt: skip
CONFIGS = {
    "llama": {**PLAIN, "model_type": "llama", "architectures": ["LlamaForCausalLM"], "rope_scaling": LLAMA3},
    "gemma": {**PLAIN, "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"],
              "sliding_window": 24, "sliding_window_pattern": 2, "rope_local_base_freq": 1e4,
              "query_pre_attn_scalar": 24},
    "phi": {**PLAIN, "model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "sliding_window": None,
            "original_max_position_embeddings": 128, "partial_rotary_factor": 1.0,
            "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}},
    "glm": {**PLAIN, "model_type": "glm4_moe", "architectures": ["Glm4MoeForCausalLM"], "n_routed_experts": 8,
            "num_experts_per_tok": 2, "moe_intermediate_size": 48, "n_shared_experts": 1, "n_group": 1,
            "first_k_dense_replace": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.0},
    "classes": {**PLAIN, "model_type": "llama", "architectures": ["LlamaForSequenceClassification"],
                "num_labels": 3},
}  # fmt: skip
DEEPSEEK = {
    **PLAIN, "model_type": "deepseek_v3", "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 8, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 4,
    "topk_group": 2,
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_odd_value_of_any_key_is_read_or_refused_in_words(name: str) -> None:
    config = CONFIGS[name]
    assert shape_from_config(config).layers == 4
    for key in config:
        for odd in ODD:
            _read_or_refused({**config, key: odd})
    for key in config.get("rope_scaling") or {}:
        for odd in ODD:
            _read_or_refused({**config, "rope_scaling": {**config["rope_scaling"], key: odd}})


def _read_or_refused(config: dict[str, Any]) -> None:
    for read in (shape_from_config, planned_shape):
        with suppress(RecipeError):  # any other error fails the test
            read(config)


@pytest.mark.parametrize(
    ("key", "odd", "told"),
    [
        ("rope_scaling", "linear", "rope_scaling = 'linear'"),
        ("rope_parameters", ["llama3"], "rope_parameters = "),
        ("rms_norm_eps", "x", "rms_norm_eps = 'x'"),
        ("rms_norm_eps", 0.0, "rms_norm_eps = 0.0"),
        ("rope_theta", "big", "rope_theta = 'big'"),
        ("eos_token_id", "</s>", "eos_token_id = '</s>'"),
        ("architectures", {"0": "LlamaForCausalLM"}, "architectures = "),
    ],
)
def test_value_of_another_kind_is_told_with_its_key(key: str, odd: Any, told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        shape_from_config({**CONFIGS["llama"], key: odd})
    assert told in caught.value.found and caught.value.exit_code == 2


def test_routing_limited_to_groups_is_read_for_a_plan() -> None:
    assert planned_shape(json.loads(json.dumps(DEEPSEEK))).expert_groups == 2
    assert planned_shape({**DEEPSEEK, "n_group": 1, "topk_group": 1}).expert_groups == 0
