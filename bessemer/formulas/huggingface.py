"""A model's shape from a Hugging Face `config.json`, and back.

Exact or refused: a config that asks for something our decoder does not compute (biases, partial rotary
factors, sliding windows, other architectures) is an error that names key and value, never a guess.
A key that is missing takes the default of transformers' own config class; a key that transformers'
class for this architecture does not read is ignored there and here. No torch.
Source: transformers 5 `LlamaConfig`, `Qwen3Config`, `MistralConfig`; since version 5 the rotary
settings live in `rope_parameters`, before in `rope_theta` and `rope_scaling`: both are read, and
both are written so that either version loads what we export.
"""

from dataclasses import dataclass
from typing import Any

from bessemer.errors import RecipeError
from bessemer.formulas.shape import ModelShape


@dataclass(frozen=True)
class _Family:
    """What differs between the architectures that we read. Defaults are those of its config class."""

    name: str  # ours; Mistral without a window computes exactly what Llama does
    qk_norm: bool
    head_dim: int | None  # None: hidden / heads
    kv_heads: int | None  # None: as many as query heads


_READABLE = {
    "LlamaForCausalLM": _Family("llama", qk_norm=False, head_dim=None, kv_heads=None),
    "MistralForCausalLM": _Family("llama", qk_norm=False, head_dim=None, kv_heads=8),
    "Qwen3ForCausalLM": _Family("qwen3", qk_norm=True, head_dim=128, kv_heads=32),
}
_ARCHITECTURE = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_BY_MODEL_TYPE = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen3": "Qwen3ForCausalLM"}

# Key, the values that we compute exactly, and why another one is refused.
_REQUIRED_VALUES: list[tuple[str, tuple[Any, ...], str]] = [
    ("attention_bias", (None, False), "our projections have no bias"),
    ("mlp_bias", (None, False), "our projections have no bias"),
    ("attention_dropout", (None, 0, 0.0), "training here has no dropout"),
    ("hidden_act", (None, "silu", "swish"), "our feed-forward layer is SwiGLU"),
    ("partial_rotary_factor", (None, 1, 1.0), "our rotary embedding turns the whole head"),
    ("quantization_config", (None,), "weights must be plain floating-point tensors"),
]
_ROPE_KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def shape_from_config(config: dict[str, Any], *, context: int | None = None) -> ModelShape:
    """The shape of a `config.json`. `context`: tokens in a training row; None: all positions it allows."""
    architecture = _architecture(config)
    family = _READABLE[architecture]
    _refuse_unsupported(config, architecture)
    theta, scaling = _rope(config)
    heads, hidden = _count(config, "num_attention_heads"), _count(config, "hidden_size")
    longest = int(_get(config, "max_position_embeddings", 2048))
    return ModelShape(
        family=family.name,
        layers=_count(config, "num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        # null means "as many as query heads"; missing means the class default, which differs.
        kv_heads=int(config.get("num_key_value_heads", family.kv_heads) or heads),
        head_dim=int(_get(config, "head_dim", family.head_dim or hidden // heads)),
        ffn=_count(config, "intermediate_size"),
        vocab=_count(config, "vocab_size"),
        context=_context(context, longest),
        max_positions=longest,
        tie_embeddings=bool(_get(config, "tie_word_embeddings", False)),
        qk_norm=family.qk_norm,
        norm_eps=float(_get(config, "rms_norm_eps", 1e-6)),
        rope_theta=theta,
        rope_scaling=scaling,
        bos_id=_token_id(config, "bos_token_id"),
        eos_id=_token_id(config, "eos_token_id"),
    )


def config_from_shape(shape: ModelShape, *, torch_dtype: str) -> dict[str, Any]:
    """The `config.json` that makes transformers 4 and 5 compute what our decoder computes.

    torch_dtype: how the weights are stored, e.g. "float32".
    """
    _refuse_inexpressible(shape)
    rope = {"rope_type": "default", **(shape.rope_scaling or {})}
    longest = shape.max_positions or shape.context
    return {
        "architectures": [_ARCHITECTURE[shape.family]],
        "model_type": shape.family,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": shape.bos_id,
        "dtype": torch_dtype,
        "eos_token_id": shape.eos_id,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.ffn,
        "max_position_embeddings": longest,
        **({"mlp_bias": False} if shape.family == "llama" else {"use_sliding_window": False}),
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": shape.norm_eps,
        "rope_parameters": {**rope, "rope_theta": shape.rope_theta},
        "rope_scaling": rope if shape.rope_scaling else None,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": shape.tie_embeddings,
        "torch_dtype": torch_dtype,
        "use_cache": True,
        "vocab_size": shape.vocab,
    }


def _architecture(config: dict[str, Any]) -> str:
    named = config.get("architectures") or []
    found = named[0] if named else _BY_MODEL_TYPE.get(config.get("model_type", ""), "")
    if found in _READABLE:
        return str(found)
    raise RecipeError(
        "this Hugging Face architecture cannot be read",
        found=str(named[0] if named else config.get("model_type", "a config without architectures")),
        wanted=f"one of {', '.join(_READABLE)}",
        fix="choose a model of one of these, or describe the shape in the recipe and train from scratch",
    )


def _refuse_unsupported(config: dict[str, Any], architecture: str) -> None:
    for key, allowed, reason in _REQUIRED_VALUES:
        if config.get(key) not in allowed:
            raise _unsupported(key, config[key], f"{key} = {allowed[-1]!r}: {reason}")
    if set(config.get("layer_types") or []) - {"full_attention"}:
        raise _unsupported("layer_types", config["layer_types"], "full_attention in every layer")
    # Qwen3 states a window and switches it off; Mistral's window applies whenever it is there, and
    # is 4096 in its config class when the key is missing altogether.
    if architecture == "Qwen3ForCausalLM" and config.get("use_sliding_window"):
        raise _unsupported("use_sliding_window", True, "use_sliding_window = false")
    if architecture == "MistralForCausalLM" and config.get("sliding_window", 4096) is not None:
        window = config.get("sliding_window", "missing, which means 4096")
        raise _unsupported("sliding_window", window, "sliding_window = null: attention to all tokens")


def _rope(config: dict[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """theta, and the scaling as transformers 5 writes it, from either place."""
    new, old = config.get("rope_parameters") or {}, config.get("rope_scaling") or {}
    settings = {**old, **new}
    theta = float(settings.get("rope_theta") or config.get("rope_theta") or 10000.0)
    kind = settings.get("rope_type") or settings.get("type") or "default"
    if kind not in _ROPE_KEYS:
        raise _unsupported("rope_type", kind, f"one of {', '.join(_ROPE_KEYS)}")
    if settings.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise _unsupported("partial_rotary_factor", settings["partial_rotary_factor"], "1.0")
    if kind == "default":
        return theta, None
    missing = [key for key in _ROPE_KEYS[kind] if settings.get(key) is None]
    if missing:
        raise _unsupported("rope_parameters", settings, f"rope_type {kind!r} with {', '.join(missing)}")
    return theta, {"rope_type": kind, **{key: settings[key] for key in _ROPE_KEYS[kind]}}


def _context(context: int | None, longest: int) -> int:
    if context is None or context <= longest:
        return context or longest
    raise RecipeError(
        "training rows are longer than this model's positions",
        found=f"model.context = {context}, max_position_embeddings = {longest}",
        wanted=f"model.context of at most {longest}",
        fix=f"set --set model.context={longest}, or take a model made for longer rows",
    )


def _refuse_inexpressible(shape: ModelShape) -> None:
    """Everything that a shape may ask for and that no Hugging Face class of ours expresses."""
    family = shape.family
    checks = [
        (family in _ARCHITECTURE, "family", family, " or ".join(_ARCHITECTURE)),
        (shape.qk_norm == (family == "qwen3"), "qk_norm", shape.qk_norm, f"{family}'s own setting"),
        (shape.norm == "rms", "norm", shape.norm, "rms"),
        (not shape.experts, "experts", shape.experts, "a dense model"),
        (not shape.mla_kv_rank, "mla_kv_rank", shape.mla_kv_rank, "grouped-query attention"),
        (shape.sliding_window is None, "sliding_window", shape.sliding_window, "none"),
        ((shape.rope_scaling or {}).get("rope_type", "default") in _ROPE_KEYS,
         "rope_scaling", shape.rope_scaling, "linear or llama3"),
    ]  # fmt: skip
    for fine, key, found, wanted in checks:
        if not fine:
            raise RecipeError(
                f"model.{key} has no Hugging Face form that we write",
                found=f"{key} = {found!r}",
                wanted=wanted,
                fix=f"train with another model.{key}; the checkpoint stays usable by bessemer itself",
            )


def _get(config: dict[str, Any], key: str, default: Any) -> Any:
    value = config.get(key)
    return default if value is None else value


def _count(config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    if isinstance(value, int) and value > 0:
        return value
    raise _unsupported(key, "missing" if value is None else value, "a positive whole number")


def _token_id(config: dict[str, Any], key: str) -> int | None:
    """Chat models list several end tokens; the first is the one that ends a document."""
    value = config.get(key)
    return value[0] if isinstance(value, list) else value


def _unsupported(key: str, value: Any, wanted: str) -> RecipeError:
    return RecipeError(
        "this Hugging Face model cannot be read exactly",
        found=f"config.json: {key} = {value!r}",
        wanted=wanted,
        fix="choose a model without it; weights are never approximated",
    )
