"""The part of a `config.json` that is about rotary positions, read and written.

Since transformers 5 it lives in `rope_parameters`, before in `rope_theta`, `rope_scaling` and
`partial_rotary_factor`: both are read, and both are written so that either version loads what we export.
Gemma 3 has one setting for layers that see all and another for those with a window. Phi-3's "longrope" has
one set of factors for rows up to `original_max_position_embeddings` and another for longer ones; ours are
the short ones, so longer rows are refused (ModelShape.longest_row).
Source: transformers 5 `modeling_rope_utils.py`, `Gemma3TextConfig`, `Phi3Config`; LongRoPE: arXiv:2402.13753.
"""

import math
from typing import Any

from bessemer.formulas.families import GEMMA_LOCAL_THETA, Family
from bessemer.formulas.huggingface.keys import count, get, inner, number, unsupported
from bessemer.formulas.shape import ModelShape

Config = dict[str, Any]
_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_KEYS = {"default": (), "linear": ("factor",), "llama3": _LLAMA3}
_LONG_KEYS = {"default": (), "longrope": ("short_factor", "long_factor")}
_LONG_NAMES = ("su", "yarn", "longrope")  # what Phi-3's files have called it
_PARTIAL = ("phi3", "glm4-moe")  # classes that turn a share of a head
_BY_LAYER = {"full_attention", "sliding_attention"}
_ORIGINAL = 4096  # of Phi-3, where the key is missing


def read_rope(config: Config, family: Family, head_dim: int, longest: int) -> dict[str, Any]:
    """The fields of ModelShape about rotary positions. longest: max_position_embeddings."""
    new, old = inner(config, "rope_parameters"), inner(config, "rope_scaling")
    local = None
    if family.name == "gemma3":
        new, local = _by_layer(config, new)
    elif _BY_LAYER & new.keys():
        raise unsupported("rope_parameters", new, "one setting for all layers")
    settings = {**old, **new}
    share = _share(config, settings, family)
    if share * head_dim % 2:
        raise unsupported("partial_rotary_factor", share, f"an even part of head_dim = {head_dim}")
    return {
        "rope_theta": number(settings, "rope_theta", number(config, "rope_theta", family.theta)),
        "rope_scaling": _scaling(config, settings, family, int(share * head_dim), longest),
        "local_rope_theta": local,
        "rotary_share": share,
    }


def write_rope(shape: ModelShape) -> Config:
    """The keys of `config.json` about rotary positions."""
    scaling = shape.rope_scaling
    rope: Config = {"rope_type": "default", **(scaling or {})}
    partial = {"partial_rotary_factor": shape.rotary_share} if shape.family in _PARTIAL else {}
    written = {
        "rope_parameters": {**rope, **partial, "rope_theta": shape.rope_theta},
        "rope_scaling": rope if scaling else None,
        "rope_theta": shape.rope_theta,
        **partial,
    }
    if shape.family == "gemma3":
        local = shape.local_rope_theta or GEMMA_LOCAL_THETA
        written["rope_parameters"] = {
            "full_attention": written["rope_parameters"],
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        }
        written["rope_local_base_freq"] = local
    if rope["rope_type"] == "longrope":
        assert scaling is not None
        written |= _written_long(shape, scaling)
    return written


def is_written(shape: ModelShape) -> bool:
    """Whether the shape's family has its scaling."""
    kind = (shape.rope_scaling or {}).get("rope_type", "default")
    return kind in (_LONG_KEYS if shape.family == "phi3" else _KEYS)


def _by_layer(config: Config, new: Config) -> tuple[Config, float]:
    """Of Gemma 3: the settings of layers that see all, and the base of the others."""
    near = inner(new, "sliding_attention")
    if near.get("rope_type", "default") != "default":
        raise unsupported("rope_parameters", near, "no scaling in layers with a window")
    theta = number(near, "rope_theta", number(config, "rope_local_base_freq", GEMMA_LOCAL_THETA))
    if new.keys() - _BY_LAYER:
        raise unsupported("rope_parameters", new, "settings for full_attention and sliding_attention")
    return inner(new, "full_attention"), theta


def _share(config: Config, settings: Config, family: Family) -> float:
    # Both places are asked: transformers reads either, and 1.0 in one beside 0.5 in the other is no answer.
    given = [place["partial_rotary_factor"] for place in (settings, config)
             if place.get("partial_rotary_factor") is not None]  # fmt: skip
    share = given[0] if given else family.rotary_share
    if any(other != share for other in given):
        raise unsupported("partial_rotary_factor", given, "the same in config.json and its rope_parameters")
    if not isinstance(share, int | float) or not 0.0 < share <= 1.0:
        raise unsupported("partial_rotary_factor", share, "a share of the head, up to 1.0")
    if share != 1.0 and family.name not in _PARTIAL:
        raise unsupported(
            "partial_rotary_factor", share, "partial_rotary_factor = 1.0: this class turns the whole head"
        )
    return float(share)


def _scaling(
    config: Config, settings: Config, family: Family, rotary_dim: int, longest: int
) -> dict[str, Any] | None:
    """As transformers 5 writes it; None: none."""
    kind = settings.get("rope_type") or settings.get("type") or "default"
    is_phi = family.name == "phi3"
    if is_phi and kind in _LONG_NAMES:
        kind = "longrope"
    known = _LONG_KEYS if is_phi else _KEYS
    if not isinstance(kind, str) or kind not in known:
        raise unsupported("rope_type", kind, f"one of {', '.join(known)}")
    if kind == "default":
        return None
    missing = [key for key in known[kind] if settings.get(key) is None]
    if missing:
        raise unsupported("rope_parameters", settings, f"rope_type {kind!r} with {', '.join(missing)}")
    if kind == "longrope":
        return _read_long(config, settings, rotary_dim, longest)
    for key in known[kind]:
        number(settings, key)
    return {"rope_type": kind, **{key: settings[key] for key in known[kind]}}


def _read_long(config: Config, settings: Config, rotary_dim: int, longest: int) -> dict[str, Any]:
    factors = {key: settings[key] for key in _LONG_KEYS["longrope"]}
    for key, values in factors.items():
        numbers = isinstance(values, list) and all(isinstance(one, int | float) for one in values)
        if not numbers or len(values) != rotary_dim // 2:
            raise unsupported(key, values, f"a list of {rotary_dim // 2} numbers")
    in_settings = count(settings, "original_max_position_embeddings", _ORIGINAL)
    original = count(config, "original_max_position_embeddings", in_settings)
    if original == 1:
        raise unsupported("original_max_position_embeddings", original, "more than one position")
    ratio = longest / original
    if get(settings, "factor", ratio) != ratio:
        wanted = f"max_position_embeddings / original_max_position_embeddings = {ratio:g}, or none"
        raise unsupported("factor", settings["factor"], wanted)
    return {
        "rope_type": "longrope",
        **factors,
        "original_max_position_embeddings": original,
        "attention_factor": number(settings, "attention_factor", _attention_factor(longest, original)),
    }


def _written_long(shape: ModelShape, scaling: dict[str, Any]) -> Config:
    """transformers 4 wants exactly three keys in rope_scaling, and 5 reads those first."""
    three = {"type": "longrope", **{key: scaling[key] for key in _LONG_KEYS["longrope"]}}
    original = scaling["original_max_position_embeddings"]
    usual = _attention_factor(shape.max_positions or shape.context, original)
    if scaling["attention_factor"] != usual:
        three["attention_factor"] = scaling["attention_factor"]
    return {"rope_scaling": three, "original_max_position_embeddings": original}


def _attention_factor(longest: int, original: int) -> float:
    """What cosine and sine are multiplied by: arXiv:2402.13753, as transformers computes it."""
    ratio = longest / original
    return 1.0 if ratio <= 1.0 else math.sqrt(1.0 + math.log(ratio) / math.log(original))
