"""A shape to plan with, from a `config.json` of families that we do not train, or not exactly.

formulas/huggingface.py reads a config exactly or refuses it. A plan needs less: which matrices there are,
how far attention looks, how many weights are beside them. So this reads more families (GPT-2, Gemma 3,
Phi-3, Qwen2, DeepSeek) and more settings (biases, partial rotary embeddings, windows), and leaves aside
what costs nothing; its counts are those of transformers' own classes, to the weight. Layers that predict
later tokens (`num_nextn_predict_layers`) are left out, as transformers leaves them out.
Source: transformers 5, the config and modelling files of each class.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from bessemer.errors import RecipeError
from bessemer.formulas.huggingface import key_heads, members, whole
from bessemer.formulas.huggingface_keys import count, get, row_length, token_id, unsupported
from bessemer.formulas.shape import ModelShape

Config = dict[str, Any]


@dataclass(frozen=True)
class _Family:
    """Defaults of a config class, for keys that a config.json leaves out."""

    name: str
    kv_heads: int | None  # None: as many as query heads
    positions: int
    head_dim: int | None = None  # None: hidden / heads
    tied: bool = False
    qk_norm: bool | None = False  # None: as `use_qk_norm` says
    norms: int = 2  # of a layer, hidden wide
    # Biases of one layer: of attention where `attention_bias` asks for them, or always.
    biased: bool = False
    output_bias: bool = True
    expert_key: str | None = None
    experts: int = 0
    per_token: int = 0
    expert_ffn_key: str = "moe_intermediate_size"
    first_dense: int = 0


_MISTRAL_WINDOW = 4096  # where the key is missing, as its config class has it
_FAMILIES = {
    "llama": _Family("llama", None, 2048),
    "mistral": _Family("llama", 8, 131072),
    "qwen2": _Family("qwen2", 32, 32768, biased=True, output_bias=False),
    "qwen3": _Family("qwen3", 32, 32768, head_dim=128, qk_norm=True),
    "qwen3_moe": _Family(
        "qwen3-moe", 4, 32768, qk_norm=True, expert_key="num_experts", experts=128, per_token=8
    ),
    "mixtral": _Family(
        "mixtral", 8, 131072, expert_key="num_local_experts", experts=8, per_token=2,
        expert_ffn_key="intermediate_size",
    ),
    "glm4_moe": _Family(
        "glm4-moe", 8, 131072, qk_norm=None, output_bias=False, expert_key="n_routed_experts", experts=128,
        per_token=8, first_dense=1,
    ),
    "deepseek_v2": _Family("deepseek-v2", None, 2048, expert_key="n_routed_experts", experts=64),
    "deepseek_v3": _Family(
        "deepseek-v3", None, 4096, expert_key="n_routed_experts", experts=256, per_token=8, first_dense=3
    ),
    "phi3": _Family("phi3", None, 4096),
    "gemma3_text": _Family("gemma3", 4, 131072, head_dim=256, tied=True, qk_norm=True, norms=4),
}  # fmt: skip
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
    if kind not in readers and kind not in _FAMILIES:
        raise RecipeError(
            "this Hugging Face architecture cannot be planned",
            found=f"model_type = {kind!r}",
            wanted="one of " + ", ".join(sorted({*readers, *_FAMILIES})),
            fix="describe the shape in [model]: layers, hidden, heads, ffn",
        )
    fields = readers[kind](config) if kind in readers else _decoder(config, _FAMILIES[kind])
    shape = ModelShape(
        **fields,
        context=row_length(context, fields["max_positions"]),
        bos_id=token_id(config, "bos_token_id"),
        eos_id=token_id(config, "eos_token_id"),
    )
    return replace(shape, other_params=unlisted_params(shape) + shape.other_params)


def unlisted_params(shape: ModelShape) -> int:
    """Biases, and norms beyond two a layer, that a family always has: what `other_params` is of a shape that
    no config.json describes."""
    if shape.family == "gpt2":
        # Biases of attention 3 and 1, of the feed-forward layer its width and 1, of two norms 1 each.
        return shape.layers * (7 * shape.hidden + shape.ffn) + shape.hidden
    norms = next((family.norms for family in _FAMILIES.values() if family.name == shape.family), 2)
    return shape.layers * (norms - 2) * shape.hidden


def _decoder(config: Config, family: _Family) -> dict[str, Any]:
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
        **_window(config, family, layers),
        **_experts(config, family, layers),
        **_latent(config),
    }
    return {**fields, "other_params": _other_params(config, family, fields)}


def _window(config: Config, family: _Family, layers: int) -> dict[str, Any]:
    """How far back a query looks, and in which layers to the row's beginning."""
    default = _MISTRAL_WINDOW if config.get("model_type") == "mistral" else None
    if config.get("sliding_window", default) is None or config.get("use_sliding_window") is False:
        return {}
    window, kinds = count(config, "sliding_window", default), members(config, "layer_types", str)
    full = sum(kind == "full_attention" for kind in kinds)
    if family.name == "gemma3" and not kinds:
        old = count(config, "_sliding_window_pattern", 6)
        return {"sliding_window": window, "full_every": count(config, "sliding_window_pattern", old)}
    if kinds and full == layers:
        return {}
    return {"sliding_window": window, "full_every": round(layers / full) if full else 0}


def _experts(config: Config, family: _Family, layers: int) -> dict[str, Any]:
    if family.expert_key is None:
        return {}
    # num_local_experts and num_experts are the same key, in files of different versions.
    names = [family.expert_key, *({"num_experts", "num_local_experts"} - {family.expert_key})]
    there = next((name for name in names if config.get(name) is not None), family.expert_key)
    width = count(config, family.expert_ffn_key)
    # A small copy of a model may have fewer layers than the class's default.
    dense = whole(config, "first_k_dense_replace", min(family.first_dense, layers), most=layers)
    if family.name == "qwen3-moe":
        step, only = count(config, "decoder_sparse_step", 1), members(config, "mlp_only_layers", int)
        # Which layers they are changes no count: as if they were the first.
        dense = sum(layer in only or (layer + 1) % step > 0 for layer in range(layers))
    shared = family.name in ("glm4-moe", "deepseek-v2", "deepseek-v3")
    return {
        "experts": count(config, there, family.experts),
        "experts_per_token": count(config, "num_experts_per_tok", family.per_token or None),
        "expert_ffn": width,
        "shared_ffn": whole(config, "n_shared_experts", 1) * width if shared else 0,
        "dense_layers": dense,
        "router": _ROUTERS.get(family.name, "softmax"),
    }


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


def _other_params(config: Config, family: _Family, fields: dict[str, Any]) -> int:
    """Biases that this config asks for."""
    hidden, width = fields["hidden"], fields["head_dim"]
    biases = 0
    if get(config, "attention_bias", family.biased):
        if "mla_kv_rank" in fields:
            biases = fields["mla_q_rank"] + fields["mla_kv_rank"] + fields["mla_rope_dim"] + hidden
        else:
            biases = (fields["heads"] + 2 * fields["kv_heads"]) * width
            biases += hidden if family.output_bias else 0
    if family.name == "llama" and get(config, "mlp_bias", False):
        biases += 2 * fields["ffn"] + hidden
    return int(fields["layers"] * biases)


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
