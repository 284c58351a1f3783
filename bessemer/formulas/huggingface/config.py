"""A model's shape from a Hugging Face `config.json`, and back.

Exact or refused: a config that asks for something our decoder does not compute (other biases, soft-capping,
dropout, other architectures) is an error that names key and value, never a guess.
A key that is missing takes the default of transformers' own config class; a key that transformers'
class for this architecture does not read is ignored there and here. No torch.
What differs between families is a table, formulas/families.py. The keys about experts are in
moe.py, about rotary positions in rope.py, about windows in window.py.
Source: transformers 5, the config class of each family.
"""

from dataclasses import replace
from typing import Any

from bessemer.errors import RecipeError
from bessemer.formulas.families import FAMILIES, READABLE, TRAINABLE, Family, model_type_of, traits_of
from bessemer.formulas.huggingface import rope, window
from bessemer.formulas.huggingface.keys import (
    count,
    get,
    key_heads,
    members,
    number,
    row_length,
    token_id,
    unsupported,
    whole,
)
from bessemer.formulas.huggingface.labels import CLASS_HEADS, class_architecture, label_keys, read_labels
from bessemer.formulas.huggingface.moe import expert_conditions, read_experts, write_experts
from bessemer.formulas.shape import ModelShape

Config = dict[str, Any]

# Key, the values that we compute exactly, and why another one is refused.
_REQUIRED_VALUES: list[tuple[str, tuple[Any, ...], str]] = [
    ("mlp_bias", (None, False), "our feed-forward layers have no bias"),
    *(
        (key, (None, 0, 0.0), "training here has no dropout")
        for key in ("attention_dropout", "resid_pdrop", "embd_pdrop")
    ),
    *(
        (key, (None,), "our scores and logits are not capped")
        for key in ("attn_logit_softcapping", "final_logit_softcapping")
    ),
    ("use_bidirectional_attention", (None, False), "our tokens see earlier ones only"),
    ("quantization_config", (None,), "weights must be plain floating-point tensors"),
]
_WITH_PICTURES = "Gemma3ForConditionalGeneration"


def shape_from_config(config: Config, *, context: int | None = None) -> ModelShape:
    """The shape of a `config.json`. `context`: tokens in a training row; None: all positions it allows."""
    family = FAMILIES[_model_type(config)]
    _refuse_unsupported(config, family)
    layers = count(config, "num_hidden_layers")
    if family.name == "glm4-moe":
        whole(config, "first_k_dense_replace", 1, most=layers)
    if family.name == "qwen3-moe":
        members(config, "mlp_only_layers", int)
    heads, hidden = count(config, "num_attention_heads"), count(config, "hidden_size")
    head_dim = count(config, "head_dim", family.head_dim or hidden // heads)
    longest = count(config, "max_position_embeddings", family.positions)
    qk_norm = bool(get(config, "use_qk_norm", False)) if family.qk_norm is None else family.qk_norm
    shape = ModelShape(
        family=family.name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=key_heads(config, family.kv_heads, heads),
        head_dim=head_dim,
        ffn=count(config, "intermediate_size"),
        vocab=count(config, "vocab_size"),
        context=longest,
        max_positions=longest,
        tie_embeddings=bool(get(config, "tie_word_embeddings", family.tied)),
        qk_norm=qk_norm,
        qkv_bias=family.biased or bool(config.get("attention_bias")),
        norm_eps=number(config, "rms_norm_eps", family.norm_eps),
        query_scalar=_query_scalar(config, family, head_dim),
        bos_id=token_id(config, "bos_token_id"),
        eos_id=token_id(config, "eos_token_id"),
        **rope.read_rope(config, family, head_dim, longest),
        labels=read_labels(config),
        **window.read_window(config, family, layers),
        **read_experts(config, family),
    )
    if shape.labels:
        shape = replace(shape, tie_embeddings=False)  # whatever the config says: there is no head of words
    if shape.sliding_window is None:
        shape = replace(shape, local_rope_theta=None)
    return replace(shape, context=row_length(context, shape.longest_row))


def config_from_shape(shape: ModelShape, *, torch_dtype: str) -> Config:
    """The `config.json` that makes transformers 4 and 5 compute what our decoder computes.

    torch_dtype: how the weights are stored, e.g. "float32".
    """
    _refuse_inexpressible(shape)
    kind = model_type_of(shape.family, windowed=shape.sliding_window is not None)
    family = FAMILIES[kind]
    architecture = str(family.architecture)
    return {
        "architectures": [class_architecture(architecture) if shape.labels else architecture],
        "model_type": kind,
        "attention_bias": shape.qkv_bias and not family.biased,
        "attention_dropout": 0.0,
        "bos_token_id": shape.bos_id,
        "dtype": torch_dtype,
        "eos_token_id": shape.eos_id,
        family.activation_key: family.activations[0],
        "head_dim": shape.head_dim,
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.ffn,
        "max_position_embeddings": shape.max_positions or shape.context,
        **({"mlp_bias": False} if kind == "llama" else {}),
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": shape.norm_eps,
        "tie_word_embeddings": shape.tie_embeddings,
        "torch_dtype": torch_dtype,
        "use_cache": True,
        "vocab_size": shape.vocab,
        **rope.write_rope(shape),
        **window.write_window(shape, family),
        **write_experts(shape, family),
        **(_of_gemma(shape) if family.name == "gemma3" else {}),
        **(label_keys(shape.labels) if shape.labels else {}),
    }


def _of_gemma(shape: ModelShape) -> Config:
    scalar = shape.query_scalar or shape.head_dim
    return {
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
    }


def _query_scalar(config: Config, family: Family, head_dim: int) -> float | None:
    if family.name != "gemma3":
        return None
    scalar = number(config, "query_pre_attn_scalar", 256)
    return None if scalar == head_dim else scalar


def _model_type(config: Config) -> str:
    named = members(config, "architectures", str)
    found = READABLE.get(CLASS_HEADS.get(named[0], named[0])) if named else config.get("model_type", "")
    if found in FAMILIES and FAMILIES[found].architecture:
        return str(found)
    wanted = f"one of {', '.join(READABLE)}"
    fix = "choose a model of one of these, or describe the shape in the recipe and train from scratch"
    if named and named[0] == _WITH_PICTURES:
        wanted, fix = "Gemma3ForCausalLM, which reads text alone", "take the 270M or 1B model of Gemma 3"
    raise RecipeError(
        "this Hugging Face architecture cannot be read",
        found=str(named[0] if named else config.get("model_type", "a config without architectures")),
        wanted=wanted,
        fix=fix,
    )


def _refuse_unsupported(config: Config, family: Family) -> None:
    activations = (*family.activations, None)
    for key, allowed, reason in _REQUIRED_VALUES:
        if config.get(key) not in allowed:
            raise unsupported(key, config[key], f"{key} = {allowed[-1]!r}: {reason}")
    if config.get("attention_bias") and family.output_bias:
        wanted = "attention_bias = False: our output projection has no bias"
        raise unsupported("attention_bias", config["attention_bias"], wanted)
    if config.get(family.activation_key) not in activations:
        gate = "GELU in its tanh form" if traits_of(family.name).gate == "gelu" else "SiLU"
        wanted = f"{family.activation_key} = {activations[0]!r}: the gate of this family is {gate}"
        raise unsupported(family.activation_key, config[family.activation_key], wanted)


def _refuse_inexpressible(shape: ModelShape) -> None:
    """Everything that a shape may ask for and that no Hugging Face class of ours expresses."""
    name, windowed = shape.family, shape.sliding_window is not None
    known = name in TRAINABLE
    checks: list[tuple[bool, str, Any, str]] = [(known, "family", name, " or ".join(TRAINABLE))]
    if known:
        family = FAMILIES[model_type_of(name, windowed=windowed)]
        free_bias = not family.biased and not family.output_bias  # attention_bias says
        checks += [
            (family.qk_norm in (None, shape.qk_norm), "qk_norm", shape.qk_norm, f"{name}'s own setting"),
            (free_bias or shape.qkv_bias == family.biased,
             "qkv_bias", shape.qkv_bias, f"{name}'s own setting"),
            (window.is_written(shape, family), "sliding_window", shape.sliding_window,
             "none, or a window in every layer of llama" if family.kinds or name == "llama" else "none"),
            (rope.is_written(shape), "rope_scaling", shape.rope_scaling, "one of this family"),
        ]  # fmt: skip
    checks += [
        (shape.norm == "rms", "norm", shape.norm, "rms"),
        *expert_conditions(shape),
        (not shape.mla_kv_rank, "mla_kv_rank", shape.mla_kv_rank, "grouped-query attention"),
    ]
    for fine, key, found, wanted in checks:
        if not fine:
            raise RecipeError(
                f"model.{key} has no Hugging Face form that we write",
                found=f"{key} = {found!r}",
                wanted=wanted,
                fix=f"train with another model.{key}; the checkpoint stays usable by bessemer itself",
            )
