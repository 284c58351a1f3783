"""The part of a `config.json` that says how far back each layer looks, read and written.

Three ways: a window in every layer (Mistral, Mixtral, Phi-3; Qwen3-MoE behind a switch), one in the layers
that `layer_types` names (Qwen2 and Qwen3 behind a switch, Gemma 3), none. Gemma 3 of older files has a
rhythm in place of `layer_types`, Qwen a number of first layers that see all.
Source: transformers 5, the config class of each family.
"""

from typing import Any

from bessemer.formulas.families import GEMMA_PATTERN, Family
from bessemer.formulas.huggingface.keys import count, members, unsupported, whole
from bessemer.formulas.shape import ModelShape

Config = dict[str, Any]
_FULL, _NEAR = "full_attention", "sliding_attention"
_FIRST_FULL = 28  # Qwen's max_window_layers, where the key is missing


def read_window(config: Config, family: Family, layers: int, *, exact: bool = True) -> dict[str, Any]:
    """The fields of ModelShape about windows; none where every layer sees all.

    exact: `layer_types` that the class does not read must agree with what it computes.
    """
    window = _window(config, family)
    kinds = members(config, "layer_types", str)
    if kinds and (set(kinds) - {_FULL, _NEAR} or len(kinds) != layers):
        raise unsupported("layer_types", kinds, f"{_FULL} or {_NEAR} for each of the {layers} layers")
    computed = _kinds(config, family, layers, window)
    if exact and kinds and not family.kinds and kinds != computed:
        raise unsupported("layer_types", kinds, f"{computed[0]} in every layer, as its class computes it")
    kinds = kinds or computed
    if _NEAR not in kinds:
        return {}
    if window is None:
        if not exact:
            return {}
        raise unsupported("layer_types", kinds, f"{_FULL} in every layer, as there is no sliding_window")
    full = [layer for layer, kind in enumerate(kinds) if kind == _FULL]
    every = full[0] + 1 if full else 0
    if every and full == list(range(every - 1, layers, every)):
        return {"sliding_window": window, "full_every": every}
    return {"sliding_window": window, "full_layers": tuple(full)}


def write_window(shape: ModelShape, family: Family) -> Config:
    """The keys of `config.json`; `family`: that of the class."""
    window, kinds = shape.sliding_window, layer_types(shape)
    if family.window == "none":
        return {}
    written: Config = {"sliding_window": window}
    if family.window == "switch":
        written = {"use_sliding_window": window is not None, **(written if window else {})}
    if family.kinds and (window or family.name == "gemma3"):
        written["layer_types"] = kinds
    if family.name == "gemma3":
        # Its class makes the mask of a window in any case.
        written["sliding_window"] = window or shape.max_positions or shape.context
        written |= {"sliding_window_pattern": shape.full_every} if shape.full_every else {}
    return written


def is_written(shape: ModelShape, family: Family) -> bool:
    """Whether the class has windows in these layers."""
    if shape.sliding_window is None:
        return True
    return family.window != "none" and (family.kinds or _FULL not in layer_types(shape))


def layer_types(shape: ModelShape) -> list[str]:
    return [_FULL if shape.window_of(layer) is None else _NEAR for layer in range(shape.layers)]


def _window(config: Config, family: Family) -> int | None:
    if family.window == "none" or (family.window == "switch" and not config.get("use_sliding_window")):
        return None
    # Missing means the default of the class; null means none.
    if config.get("sliding_window", family.window_tokens) is None:
        return None
    return count(config, "sliding_window", family.window_tokens)


def _kinds(config: Config, family: Family, layers: int, window: int | None) -> list[str]:
    """What the class computes where it is given no `layer_types`."""
    if window is None:
        return [_FULL] * layers
    if family.name == "gemma3":
        old = count(config, "_sliding_window_pattern", GEMMA_PATTERN)
        every = count(config, "sliding_window_pattern", old)
        return [_FULL if (layer + 1) % every == 0 else _NEAR for layer in range(layers)]
    first = whole(config, "max_window_layers", _FIRST_FULL) if family.kinds else 0
    return [_FULL if layer < first else _NEAR for layer in range(layers)]
