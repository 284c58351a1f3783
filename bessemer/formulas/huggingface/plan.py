"""A shape to plan with, from a `config.json` of families that we do not train, or not exactly.

formulas/huggingface/config.py reads a config exactly or refuses it. A plan needs less: which matrices there
are, how far attention looks, how many weights are beside them. So this reads more families (GPT-2, DeepSeek)
and more settings (biases, stretched positions), and leaves aside what costs nothing; its counts are those of
transformers' own classes, to the weight. Both read by the same table, formulas/families.py. Layers that
predict later tokens (`num_nextn_predict_layers`) are left out, as transformers leaves them out. Source:
transformers 5, the config and modelling files of each class.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bessemer.errors import RecipeError
from bessemer.formulas.families import FAMILIES, Family
from bessemer.formulas.huggingface.keys import (
    count,
    get,
    key_heads,
    members,
    row_length,
    token_id,
    unsupported,
    whole,
)
from bessemer.formulas.huggingface.moe import expert_count
from bessemer.formulas.huggingface.window import read_window
from bessemer.formulas.shape import ModelShape

Config = dict[str, Any]
_ROUTERS = {"glm4-moe": "sigmoid_bias", "deepseek-v3": "sigmoid_bias"}


def planned_shape(config: Config, *, context: int | None = None) -> ModelShape:
    """The shape for a plan. `context`: tokens in a training row; None: all positions.

    RecipeError for an unknown architecture or a key that is no count.
    """
    text = config.get("text_config")
    if isinstance(text, dict):  # a model that sees: only its language model is planned
        inherited = {key: config[key] for key in ("tie_word_embeddings",) if key in config}
        config = {**inherited, **text}
    kind = str(config.get("model_type", ""))
    readers: dict[str, Callable[[Config], dict[str, Any]]] = {"gpt2": _gpt2}
    if kind not in readers and kind not in FAMILIES:
        raise RecipeError(
            "this Hugging Face architecture cannot be planned",
            found=f"model_type = {kind!r}",
            wanted="one of " + ", ".join(sorted({*readers, *FAMILIES})),
            fix="describe the shape in [model]: layers, hidden, heads, ffn",
        )
    fields = readers[kind](config) if kind in readers else _decoder(config, FAMILIES[kind])
    shape = ModelShape(
        **fields,
        context=row_length(context, fields["max_positions"]),
        bos_id=token_id(config, "bos_token_id"),
        eos_id=token_id(config, "eos_token_id"),
    )
    return replace(shape, other_params=unlisted_params(shape) + shape.other_params)


def unlisted_params(shape: ModelShape) -> int:
    """Biases beside those of queries, keys and values that a family always has: what `other_params` is of a
    shape that no config.json describes."""
    if shape.family == "gpt2":
        # Biases of attention 3 and 1, of the feed-forward layer its width and 1, of two norms 1 each.
        return shape.layers * (7 * shape.hidden + shape.ffn) + shape.hidden
    return 0


def _decoder(config: Config, family: Family) -> dict[str, Any]:
    """Families that have Llama's keys."""
    heads, hidden = count(config, "num_attention_heads"), count(config, "hidden_size")
    layers = count(config, "num_hidden_layers")
    fields = {
        "family": family.name,
        "layers": layers,
        "hidden": hidden,
        "heads": heads,
        "kv_heads": key_heads(config, family.kv_heads, heads),
        "head_dim": count(config, "head_dim", family.head_dim or hidden // heads),
        "ffn": count(config, "intermediate_size"),
        "vocab": count(config, "vocab_size"),
        "max_positions": count(config, "max_position_embeddings", family.positions),
        "tie_embeddings": bool(get(config, "tie_word_embeddings", family.tied)),
        "qk_norm": bool(get(config, "use_qk_norm", False)) if family.qk_norm is None else family.qk_norm,
        "qkv_bias": _has_biases(config, family) and not config.get("kv_lora_rank"),
        **read_window(config, family, layers, exact=False),
        **_experts(config, family, layers),
        **_latent(config),
    }
    return {**fields, "other_params": _other_params(config, family, fields)}


def _experts(config: Config, family: Family, layers: int) -> dict[str, Any]:
    if family.expert_key is None:
        return {}
    width = count(config, family.expert_ffn_key, family.expert_ffn)
    # A small copy of a model may have fewer layers than the class's default.
    dense = whole(config, "first_k_dense_replace", min(family.first_dense, layers), most=layers)
    if family.name == "qwen3-moe":
        step, only = count(config, "decoder_sparse_step", 1), members(config, "mlp_only_layers", int)
        # Which layers they are changes no count: as if they were the first.
        dense = sum(layer in only or (layer + 1) % step > 0 for layer in range(layers))
    shared = family.name in ("glm4-moe", "deepseek-v2", "deepseek-v3")
    return {
        "experts": expert_count(config, family),
        "experts_per_token": count(config, "num_experts_per_tok", family.per_token or None),
        "expert_ffn": width,
        "shared_ffn": whole(config, "n_shared_experts", 1) * width if shared else 0,
        "dense_layers": dense,
        "router": _ROUTERS.get(family.name, "softmax"),
        "expert_groups": _groups(config),
    }


def _groups(config: Config) -> int:
    """Of which a token's experts are (node-limited routing); 0: of any."""
    groups, chosen = count(config, "n_group", 1), count(config, "topk_group", 1)
    return chosen if chosen < groups else 0


def _latent(config: Config) -> dict[str, Any]:
    if not config.get("kv_lora_rank"):
        return {}
    nope, rope = count(config, "qk_nope_head_dim"), count(config, "qk_rope_head_dim")
    return {
        "head_dim": nope + rope,
        "mla_q_rank": whole(config, "q_lora_rank", 0),
        "mla_kv_rank": count(config, "kv_lora_rank"),
        "mla_nope_dim": nope,
        "mla_rope_dim": rope,
        "mla_v_dim": count(config, "v_head_dim"),
    }


def _other_params(config: Config, family: Family, fields: dict[str, Any]) -> int:
    """Biases that this config asks for, beside those of queries, keys and values."""
    hidden, biases = fields["hidden"], 0
    if _has_biases(config, family):
        if "mla_kv_rank" in fields:
            biases = fields["mla_q_rank"] + fields["mla_kv_rank"] + fields["mla_rope_dim"] + hidden
        elif family.output_bias:
            biases = hidden
    if family.name == "llama" and get(config, "mlp_bias", False):
        biases += 2 * fields["ffn"] + hidden
    return int(fields["layers"] * biases)


def _has_biases(config: Config, family: Family) -> bool:
    return family.biased or bool(get(config, "attention_bias", False))


def _gpt2(config: Config) -> dict[str, Any]:
    """GPT-2: two matrices in the feed-forward layer, trained positions, and biases everywhere."""
    hidden, heads, layers = count(config, "n_embd"), count(config, "n_head"), count(config, "n_layer")
    if hidden % heads:
        raise unsupported("n_head", heads, f"a divisor of n_embd = {hidden}")
    ffn, positions = count(config, "n_inner", 4 * hidden), count(config, "n_positions", 1024)
    return {
        "family": "gpt2",
        "layers": layers,
        "hidden": hidden,
        "heads": heads,
        "kv_heads": heads,
        "head_dim": hidden // heads,
        "ffn": ffn,
        "vocab": count(config, "vocab_size"),
        "max_positions": positions,
        "positions": positions,
        "tie_embeddings": bool(get(config, "tie_word_embeddings", True)),
        "qk_norm": False,
        "norm": "layer",
        "gated": False,
    }
