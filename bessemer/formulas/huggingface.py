"""A model's shape from a Hugging Face `config.json`, and back.

Exact or refused: a config that asks for something our decoder does not compute (biases, partial rotary
factors, sliding windows, other architectures) is an error that names key and value, never a guess.
A key that is missing takes the default of transformers' own config class; a key that transformers'
class for this architecture does not read is ignored there and here. No torch.
The keys about experts are in huggingface_moe.py.
Source: transformers 5 `LlamaConfig`, `Qwen3Config`, `MistralConfig`; since version 5 the rotary
settings live in `rope_parameters`, before in `rope_theta` and `rope_scaling`: both are read, and
both are written so that either version loads what we export.
"""

from dataclasses import dataclass
from typing import Any

from bessemer.errors import RecipeError
from bessemer.formulas.huggingface_keys import count, get, row_length, token_id, unsupported
from bessemer.formulas.huggingface_moe import expert_conditions, read_experts, write_experts
from bessemer.formulas.shape import ModelShape


@dataclass(frozen=True)
class _Family:
    """What differs between the architectures that we read. Defaults are those of its config class."""

    name: str  # ours; Mistral without a window computes exactly what Llama does
    model_type: str
    qk_norm: bool | None  # None: as `use_qk_norm` says
    head_dim: int | None  # None: hidden / heads
    kv_heads: int | None  # None: as many as query heads
    positions: int
    norm_eps: float = 1e-6
    theta: float = 10000.0
    rotary_share: float = 1.0  # of a head that is turned


_READABLE = {
    "LlamaForCausalLM": _Family("llama", "llama", False, None, None, 2048),
    "MistralForCausalLM": _Family("llama", "mistral", False, None, 8, 131072),
    "Qwen3ForCausalLM": _Family("qwen3", "qwen3", True, 128, 32, 32768),
    "Qwen3MoeForCausalLM": _Family("qwen3-moe", "qwen3_moe", True, None, 4, 32768),
    "MixtralForCausalLM": _Family("mixtral", "mixtral", False, None, 8, 131072, 1e-5, theta=1e6),
    "Glm4MoeForCausalLM": _Family("glm4-moe", "glm4_moe", None, None, 8, 131072, 1e-5, rotary_share=0.5),
}
_WRITABLE = {  # Llama stands for Mistral
    family.name: architecture for architecture, family in _READABLE.items() if family.model_type != "mistral"
}
_BY_MODEL_TYPE = {family.model_type: architecture for architecture, family in _READABLE.items()}
_HAS_WINDOW_SWITCH = ("qwen3", "qwen3-moe")

# Key, the values that we compute exactly, and why another one is refused.
_REQUIRED_VALUES: list[tuple[str, tuple[Any, ...], str]] = [
    ("attention_bias", (None, False), "our projections have no bias"),
    ("mlp_bias", (None, False), "our projections have no bias"),
    ("attention_dropout", (None, 0, 0.0), "training here has no dropout"),
    ("hidden_act", (None, "silu", "swish"), "our feed-forward layer is SwiGLU"),
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
    layers = count(config, "num_hidden_layers")
    if family.name == "glm4-moe":
        whole(config, "first_k_dense_replace", 1, most=layers)
    if family.name == "qwen3-moe":
        members(config, "mlp_only_layers", int)
    theta, scaling = _rope(config, family)
    heads, hidden = count(config, "num_attention_heads"), count(config, "hidden_size")
    longest = count(config, "max_position_embeddings", family.positions)
    qk_norm = bool(get(config, "use_qk_norm", False)) if family.qk_norm is None else family.qk_norm
    return ModelShape(
        family=family.name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=key_heads(config, family.kv_heads, heads),
        head_dim=count(config, "head_dim", family.head_dim or hidden // heads),
        ffn=count(config, "intermediate_size"),
        vocab=count(config, "vocab_size"),
        context=row_length(context, longest),
        max_positions=longest,
        tie_embeddings=bool(get(config, "tie_word_embeddings", False)),
        qk_norm=qk_norm,
        norm_eps=float(get(config, "rms_norm_eps", family.norm_eps)),
        rope_theta=theta,
        rope_scaling=scaling,
        bos_id=token_id(config, "bos_token_id"),
        eos_id=token_id(config, "eos_token_id"),
        **read_experts(config, family.name),
    )


def key_heads(config: dict[str, Any], default: int | None, heads: int) -> int:
    """Heads for keys: null means as many as query heads; missing means the class default, which differs."""
    given = config.get("num_key_value_heads", default)
    return heads if given is None else count(config, "num_key_value_heads", default)


def whole(config: dict[str, Any], key: str, default: int, most: int | None = None) -> int:
    """A count that may be 0. RecipeError: another value, or more than `most`."""
    value = get(config, key, default)
    if type(value) is int and value >= 0 and (most is None or value <= most):
        return value
    raise unsupported(
        key, value, "a whole number, 0 or more" if most is None else f"0 to {most}, a whole number"
    )


def members(config: dict[str, Any], key: str, kind: type) -> list[Any]:
    """A list of `kind`; none where the key is missing or null. RecipeError: something else."""
    value = get(config, key, [])
    if isinstance(value, list) and all(isinstance(one, kind) for one in value):
        return value
    raise unsupported(key, value, f"a list of {'names' if kind is str else 'whole numbers'}")


def config_from_shape(shape: ModelShape, *, torch_dtype: str) -> dict[str, Any]:
    """The `config.json` that makes transformers 4 and 5 compute what our decoder computes.

    torch_dtype: how the weights are stored, e.g. "float32".
    """
    _refuse_inexpressible(shape)
    family = shape.family
    rope = {"rope_type": "default", **(shape.rope_scaling or {})}
    if family == "glm4-moe":
        rope["partial_rotary_factor"] = 1.0  # its default is 0.5
    longest = shape.max_positions or shape.context
    return {
        "architectures": [_WRITABLE[family]],
        "model_type": _READABLE[_WRITABLE[family]].model_type,
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
        **({"mlp_bias": False} if family == "llama" else {}),
        **({"use_sliding_window": False} if family in _HAS_WINDOW_SWITCH else {}),
        **({"sliding_window": None} if family == "mixtral" else {}),
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
        **write_experts(shape),
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
            raise unsupported(key, config[key], f"{key} = {allowed[-1]!r}: {reason}")
    if set(members(config, "layer_types", str)) - {"full_attention"}:
        raise unsupported("layer_types", config["layer_types"], "full_attention in every layer")
    # Qwen3 states a window and switches it off; Mistral's window applies whenever it is there, and
    # is 4096 in its config class when the key is missing altogether.
    family = _READABLE[architecture].name
    if family in _HAS_WINDOW_SWITCH and config.get("use_sliding_window"):
        raise unsupported("use_sliding_window", True, "use_sliding_window = false")
    default = 4096 if architecture == "MistralForCausalLM" else None
    has_window = architecture == "MistralForCausalLM" or family == "mixtral"
    if has_window and config.get("sliding_window", default) is not None:
        window = config.get("sliding_window", "missing, which means 4096")
        raise unsupported("sliding_window", window, "sliding_window = null: attention to all tokens")


def _rope(config: dict[str, Any], family: _Family) -> tuple[float, dict[str, Any] | None]:
    """theta, and the scaling as transformers 5 writes it, from either place."""
    new, old = config.get("rope_parameters") or {}, config.get("rope_scaling") or {}
    settings = {**old, **new}
    theta = float(settings.get("rope_theta") or config.get("rope_theta") or family.theta)
    kind = settings.get("rope_type") or settings.get("type") or "default"
    if kind not in _ROPE_KEYS:
        raise unsupported("rope_type", kind, f"one of {', '.join(_ROPE_KEYS)}")
    # Both places are asked: transformers reads either, and 1.0 in one beside 0.5 in the other is no answer.
    turned = [
        place["partial_rotary_factor"] for place in (settings, config) if place.get("partial_rotary_factor")
    ]
    for share in turned or [family.rotary_share]:
        if share != 1.0:
            wanted = "partial_rotary_factor = 1.0: our rotary embedding turns the whole head"
            raise unsupported("partial_rotary_factor", share, wanted)
    if kind == "default":
        return theta, None
    missing = [key for key in _ROPE_KEYS[kind] if settings.get(key) is None]
    if missing:
        raise unsupported("rope_parameters", settings, f"rope_type {kind!r} with {', '.join(missing)}")
    return theta, {"rope_type": kind, **{key: settings[key] for key in _ROPE_KEYS[kind]}}


def _refuse_inexpressible(shape: ModelShape) -> None:
    """Everything that a shape may ask for and that no Hugging Face class of ours expresses."""
    family = shape.family
    checks = [
        (family in _WRITABLE, "family", family, " or ".join(_WRITABLE)),
        (family not in _WRITABLE or _READABLE[_WRITABLE[family]].qk_norm in (None, shape.qk_norm),
         "qk_norm", shape.qk_norm, f"{family}'s own setting"),
        (shape.norm == "rms", "norm", shape.norm, "rms"),
        *expert_conditions(shape),
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
