"""Counts of shapes read from config.json, against the classes of transformers and published counts."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bessemer.errors import RecipeError
from bessemer.formulas.families import FAMILIES
from bessemer.formulas.flops import full_attention_layers
from bessemer.formulas.huggingface.config import config_from_shape, shape_from_config
from bessemer.formulas.huggingface.plan import planned_shape
from bessemer.formulas.parameters import active_params, total_params
from bessemer.formulas.tensors import count_params
from bessemer.planner.machine.facts import Facts
from bessemer.planner.shape import resolve_shape
from bessemer.recipe.load import load, parse, shipped_names

# Keys beside the class defaults that make it the published model.
LLAMA = {"vocab_size": 128256, "num_key_value_heads": 8, "max_position_embeddings": 131072}
PUBLISHED: dict[str, tuple[str, dict[str, Any], int]] = {
    "gpt2": ("gpt2", {}, 124_439_808),
    "gpt2-xl": ("gpt2", {"n_embd": 1600, "n_layer": 48, "n_head": 25}, 1_557_611_200),
    "llama-2-7b": ("llama", {"max_position_embeddings": 4096}, 6_738_415_616),
    "llama-3.1-8b": ("llama", {**LLAMA, "intermediate_size": 14336}, 8_030_261_248),
    "llama-3.1-405b": (
        "llama",
        {**LLAMA, "hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126,
         "num_attention_heads": 128},
        405_853_388_800,
    ),
    "qwen2.5-7b": (
        "qwen2",
        {"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
         "num_attention_heads": 28, "num_key_value_heads": 4},
        7_615_616_512,
    ),
    "qwen3-0.6b": (
        "qwen3",
        {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
         "num_key_value_heads": 8, "tie_word_embeddings": True},
        596_049_920,
    ),
    "qwen3-30b-a3b": (
        "qwen3_moe", {"num_hidden_layers": 48, "num_experts": 128, "head_dim": 128}, 30_532_122_624,
    ),
    "mixtral-8x7b": ("mixtral", {}, 46_702_792_704),
    "phi-3-mini": ("phi3", {"sliding_window": 2047}, 3_821_079_552),
    "gemma-3-1b": (
        "gemma3_text",
        {"vocab_size": 262144, "hidden_size": 1152, "intermediate_size": 6912, "num_attention_heads": 4,
         "num_key_value_heads": 1, "sliding_window": 512},
        999_885_952,
    ),
    "deepseek-v3": ("deepseek_v3", {}, 671_026_404_352),
}  # fmt: skip
# Small ones of other settings: only transformers knows their counts.
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "glm-4.5": ("glm4_moe", {"attention_bias": True, "use_qk_norm": True, "num_hidden_layers": 3,
                             "n_routed_experts": 4}),
    "deepseek-v2-lite": ("deepseek_v2", {"q_lora_rank": None, "num_hidden_layers": 3, "hidden_size": 256,
                                         "n_routed_experts": 4, "num_experts_per_tok": 2,
                                         "intermediate_size": 512, "moe_intermediate_size": 64,
                                         "first_k_dense_replace": 1, "num_attention_heads": 4}),
    "deepseek with biases": ("deepseek_v3", {"num_hidden_layers": 4, "n_routed_experts": 8,
                                             "attention_bias": True}),
    "llama with biases": ("llama", {"num_hidden_layers": 2, "attention_bias": True, "mlp_bias": True}),
    "qwen3 with biases": ("qwen3", {"num_hidden_layers": 2, "attention_bias": True}),
    "gemma with biases": ("gemma3_text", {"num_hidden_layers": 2, "attention_bias": True}),
    "experts in every second layer": ("qwen3_moe", {"num_hidden_layers": 4, "decoder_sparse_step": 2,
                                                    "num_experts": 4, "mlp_only_layers": [1]}),
    "gpt-2 of another width": ("gpt2", {"n_inner": 100, "n_positions": 64, "n_layer": 2,
                                        "tie_word_embeddings": False}),
}  # fmt: skip


def config_of(kind: str, keys: dict[str, Any]) -> dict[str, Any]:
    """As a model's config.json says it."""
    return json.loads(AutoConfig.for_model(kind, **keys).to_json_string(use_diff=False))  # type: ignore[no-any-return]


def counted_by_transformers(kind: str, keys: dict[str, Any]) -> int:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **keys))  # type: ignore[no-untyped-call]
    return sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_count_of_a_published_config_is_the_published_count(name: str) -> None:
    kind, keys, params = PUBLISHED[name]
    assert total_params(planned_shape(config_of(kind, keys), context=1024)) == params


@pytest.mark.parametrize("name", [*SMALL, "gpt2", "gemma-3-1b", "phi-3-mini", "qwen2.5-7b"])
def test_count_is_that_of_the_model_that_transformers_builds(name: str) -> None:
    kind, keys = SMALL[name] if name in SMALL else PUBLISHED[name][:2]
    expected = counted_by_transformers(kind, keys)
    assert total_params(planned_shape(config_of(kind, keys), context=64)) == expected


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_recipe_has_as_many_parameters_as_transformers_builds_of_it(name: str) -> None:
    shape = resolve_shape(load(name, []).recipe, Facts(device="any", kind="cpu"))[0]
    if shape.family == "deepseek-v3":
        # The class's defaults are this model: only what the recipe says of it is set.
        keys = {"num_hidden_layers": shape.layers, "hidden_size": shape.hidden, "vocab_size": shape.vocab,
                "n_routed_experts": shape.experts, "moe_intermediate_size": shape.expert_ffn,
                "first_k_dense_replace": shape.dense_layers}  # fmt: skip
        assert total_params(shape) == counted_by_transformers("deepseek_v3", keys)
        return
    config = config_from_shape(shape, torch_dtype="float32")
    kind = config.pop("model_type")
    assert total_params(shape) == counted_by_transformers(kind, config)


@pytest.mark.parametrize("name", ["gpt2", "gemma-3-1b"])
def test_recipe_that_writes_out_a_family_counts_as_its_config_does(name: str) -> None:
    kind, keys, params = PUBLISHED[name]
    config = planned_shape(config_of(kind, keys), context=1024)
    given = [
        f"model.{key}={getattr(config, key)}" for key in ("layers", "hidden", "heads", "kv_heads", "head_dim")
    ]
    given += [f"model.family={config.family}", f"model.ffn={config.ffn}", "model.context=1024"]
    recipe = parse('name = "a"', "r", given)
    # Without rows of padding: a config's vocabulary need be no multiple of 64.
    shape = resolve_shape(recipe, Facts(device="any", kind="cpu"))[0]
    assert total_params(replace(shape, vocab=config.vocab, tie_embeddings=True)) == params


def test_deepseek_v3_activates_37_billion() -> None:
    shape = planned_shape(config_of("deepseek_v3", {}), context=4096)
    assert active_params(shape) == pytest.approx(37.55e9, rel=0.005)
    assert (shape.mla_kv_rank, shape.experts, shape.dense_layers, shape.router) == (
        512, 256, 3, "sigmoid_bias",
    )  # fmt: skip


def test_gemma_looks_at_the_whole_row_in_every_sixth_layer() -> None:
    shape = planned_shape(config_of("gemma3_text", {"num_hidden_layers": 26}))
    assert (shape.sliding_window, shape.full_every, full_attention_layers(shape)) == (4096, 6, 4)


def test_language_model_inside_a_model_that_sees_is_planned() -> None:
    text = config_of("gemma3_text", {"num_hidden_layers": 2})
    whole = {"model_type": "gemma3", "text_config": text, "vision_config": {}}
    assert planned_shape(whole) == planned_shape(text)


@pytest.mark.parametrize("kind", [kind for kind, family in FAMILIES.items() if family.architecture])
def test_what_can_be_trained_is_read_alike_for_a_plan(kind: str) -> None:
    keys = {"norm_topk_prob": True} if kind == "qwen3_moe" else {}
    keys |= {"head_dim": 128} if kind == "glm4_moe" else {}  # its own default is odd when halved
    config = {**config_of(kind, keys), "architectures": [architecture(kind)]}
    exact = shape_from_config(config, context=512)
    planned = planned_shape(config, context=512)
    only_scales = ("norm_eps", "rope_theta", "rope_scaling", "local_rope_theta", "rotary_share",
                   "query_scalar")  # fmt: skip
    assert replace(planned, **{name: getattr(exact, name) for name in only_scales}) == exact
    assert total_params(exact) == count_params(exact) == counted_by_transformers(kind, keys)


def architecture(kind: str) -> str:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **TINY))  # type: ignore[no-untyped-call]
    return type(model).__name__


TINY = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 64, "pad_token_id": 0}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "said"),
    [({"model_type": "mamba"}, "mamba"), ({}, "model_type"), ({"model_type": "llama"}, "num_attention_heads"),
     ({"model_type": "gpt2", "n_embd": 10, "n_head": 3, "n_layer": 1}, "n_head")],
)  # fmt: skip
def test_config_that_cannot_be_planned_is_refused_with_the_key(config: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match="Hugging Face") as caught:
        planned_shape(config)
    assert said in caught.value.found


NO_COUNT: list[tuple[str, str, Any]] = [
    *(("llama", key, value) for key in ("head_dim", "num_key_value_heads", "max_position_embeddings")
      for value in ("one", [1], float("inf"), -1)),
    ("mistral", "sliding_window", "wide"), ("mistral", "layer_types", 5),
    ("qwen3_moe", "decoder_sparse_step", 0), ("qwen3_moe", "mlp_only_layers", 3),
    ("deepseek_v3", "n_shared_experts", "one"), ("deepseek_v3", "first_k_dense_replace", 99),
    ("deepseek_v3", "first_k_dense_replace", 1e30), ("deepseek_v3", "q_lora_rank", [8]),
    ("glm4_moe", "first_k_dense_replace", 99),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "key", "value"), NO_COUNT)
def test_value_that_is_no_count_is_refused_by_its_key(kind: str, key: str, value: Any) -> None:
    config = {**config_of(kind, {}), key: value}
    with pytest.raises(RecipeError) as caught:
        planned_shape(config)
    assert f"{key} = {value!r}" in caught.value.found and caught.value.wanted and caught.value.fix
    if kind in ("llama", "glm4_moe"):
        with pytest.raises(RecipeError):
            shape_from_config({**config, "architectures": [], "rope_parameters": None})


def test_config_without_a_number_of_dense_layers_has_no_more_than_layers() -> None:
    config = {**config_of("deepseek_v3", {}), "num_hidden_layers": 2, "first_k_dense_replace": None}
    assert planned_shape(config).dense_layers == 2


# As the models' own files say it, in the words of transformers 4: with keys that their class does not read.
OWN_FILES: dict[str, tuple[dict[str, Any], int, dict[str, Any]]] = {
    "mistral-7b-v0.1": (
        {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_act": "silu",
         "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768,
         "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
         "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False, "vocab_size": 32000},
        7_241_732_096, {"family": "llama", "sliding_window": 4096},
    ),
    "qwen2.5-0.5b": (
        {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "attention_dropout": 0.0,
         "hidden_act": "silu", "hidden_size": 896, "intermediate_size": 4864,
         "max_position_embeddings": 32768, "max_window_layers": 24, "num_attention_heads": 14,
         "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
         "sliding_window": 32768, "tie_word_embeddings": True, "use_mrope": False,
         "use_sliding_window": False, "vocab_size": 151936},
        494_032_768, {"family": "qwen2", "sliding_window": None, "qkv_bias": True, "rope_theta": 1e6},
    ),
    "gemma-3-1b": (
        {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "attention_bias": False,
         "attention_dropout": 0.0, "attn_logit_softcapping": None, "cache_implementation": "hybrid",
         "eos_token_id": [1, 106], "final_logit_softcapping": None, "head_dim": 256,
         "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "intermediate_size": 6912,
         "max_position_embeddings": 32768, "num_attention_heads": 4, "num_hidden_layers": 26,
         "num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6,
         "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512,
         "sliding_window_pattern": 6, "vocab_size": 262144},
        999_885_952,
        {"family": "gemma3", "sliding_window": 512, "full_every": 6, "local_rope_theta": 1e4,
         "tie_embeddings": True, "query_scalar": None, "eos_id": 1},
    ),
    "phi-4-mini": (
        {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "attention_bias": False,
         "attention_dropout": 0.0, "embd_pdrop": 0.0, "full_attn_mod": 1, "hidden_act": "silu",
         "hidden_size": 3072, "intermediate_size": 8192, "interpolate_factor": 1, "lm_head_bias": False,
         "max_position_embeddings": 131072, "mlp_bias": False, "num_attention_heads": 24,
         "num_hidden_layers": 32, "num_key_value_heads": 8, "original_max_position_embeddings": 4096,
         "partial_rotary_factor": 0.75, "resid_pdrop": 0.0, "rms_norm_eps": 1e-5,
         "rope_scaling": {"long_factor": [2.0] * 48, "short_factor": [1.0] * 48, "type": "longrope"},
         "rope_theta": 10000.0, "sliding_window": 262144, "tie_word_embeddings": True, "vocab_size": 200064},
        3_836_021_760,
        {"family": "phi3", "rotary_share": 0.75, "rotary_dim": 96, "longest_row": 4096,
         "max_positions": 131072},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OWN_FILES)
def test_file_of_a_published_model_is_read_exactly(name: str) -> None:
    config, params, told = OWN_FILES[name]
    shape = shape_from_config(config)
    assert total_params(shape) == count_params(shape) == params
    assert {key: getattr(shape, key) for key in told} == told
