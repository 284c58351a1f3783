"""From what a published row says of its model to a shape: by name, by dimensions, by size.

Dimensions in the row win over the named model's; what is left out follows by the usual rules (head size 128,
keys for every query head, feed-forward of 4 hidden). Where the row tells the number of parameters too, it
decides between SwiGLU and GELU and whether the embedding is tied: the variant whose count is nearest. A row
with nothing but a size gets a shape of that size by formulas/scaling/sizing.py, marked as assumed. Source of
the named shapes: models.toml.
"""

import math
import re
import tomllib
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

from bessemer.formulas.parameters import total_params
from bessemer.formulas.scaling import sizing
from bessemer.formulas.shape import ModelShape

DIMS = ("layers", "hidden", "heads", "kv_heads", "ffn", "vocab")

_VOCAB = 50304  # where neither the row nor the name says one: GPT-2's, padded
_NEAR = 0.04  # of two counts that are the same model: published ones are rounded
_MOST_PARAMS = 1e16  # of a model of which only the size is known
_NOISE = {"adapter", "finetune", "finetuning", "full", "production", "candidate", "base", "instruct", "chat",
          "pretrain", "pretraining", "pre", "training", "sft", "lora", "model", "hf", "it", "moe", "megatron",
          "meta", "nvidia", "google", "dense", "dropless", "tokendrop"}  # fmt: skip
_PLAIN_FAMILIES = (
    "gpt",
    "opt",
    "bloom",
    "mpt",
    "falcon",
    "neox",
    "pythia",
    "megatron",
    "turing",
    "starcoder",
)


class ImpossibleShape(ValueError):
    """Dimensions of which no model can be made."""


@dataclass(frozen=True)
class FoundShape:
    """A model's shape, the catalogue's name of it, and whether only its size is known."""

    shape: ModelShape
    name: str | None
    assumed: bool


@cache
def catalogue() -> dict[str, tuple[ModelShape, float]]:
    """Shape and published parameters of every named model."""
    return {name: (_shape(dict(row)), row["params"]) for name, row in _tables()["model"].items()}


def find_model(name: str) -> str | None:
    """The catalogue's name for a spelling of it, or None.

    Case and separators do not matter, nor words such as `instruct`; a number that it does not know makes
    another model ("PaLM 2" is not PaLM).
    """
    words = _words(name)
    plain = [word for word in words if word not in _NOISE]
    for tried in (words, plain):
        if _joined(tried) in _spellings():
            return _spellings()[_joined(tried)]
    for end in range(len(plain) - 1, 0, -1):
        if any(character.isdigit() for word in plain[end:] for character in word):
            return None
        if _joined(plain[:end]) in _spellings():
            return _spellings()[_joined(plain[:end])]
    return None


def find_shape(name: str, dims: dict[str, int], params: float | None, context: int) -> FoundShape | None:
    """The shape that a row means. `dims`: those of DIMS that it gives; None: nothing to go by.

    ImpossibleShape where there is no such model.
    """
    if " / " in name:  # two models
        return None
    dims = {**_dims_in_name(name), **dims}
    if min(dims.values(), default=1) < 1:
        raise ImpossibleShape(dims)
    found = _find(name, dims, params, context)
    if found is not None and not _possible(found.shape):
        raise ImpossibleShape(dims)
    return found


def _possible(shape: ModelShape) -> bool:
    """Whether each head has a width, and keys: what a mistyped dimension breaks first."""
    counts = (shape.layers, shape.hidden, shape.heads, shape.kv_heads, shape.head_dim, shape.vocab)
    fed = shape.ffn or shape.expert_ffn
    return min(counts) >= 1 and fed >= 1 and shape.kv_heads <= shape.heads <= shape.hidden


def _find(name: str, dims: dict[str, int], params: float | None, context: int) -> FoundShape | None:
    known = find_model(name) or (_by_size(name, params) if params and "hidden" not in dims else None)
    if known is not None:
        shape = _changed(catalogue()[known][0], name, dims, params)
        return FoundShape(_with_context(shape, context), known, False)
    if dims.get("layers") and dims.get("hidden"):
        return FoundShape(_with_context(_from_dims(name, dims, params), context), None, False)
    size = _size_in_name(name) or params
    if not size or not 1.0 <= size <= _MOST_PARAMS:
        return None
    base = _shape({"layers": 1, "hidden": 64, "heads": 1, "ffn": 64, "vocab": dims.get("vocab", _VOCAB)})
    return FoundShape(_with_context(sizing.shape_of_size(int(size), base), context), None, True)


def _changed(shape: ModelShape, name: str, dims: dict[str, int], params: float | None) -> ModelShape:
    """A named shape with the row's dimensions; another width makes all that hangs on it follow by rule."""
    if dims.get("hidden", shape.hidden) != shape.hidden:
        return _from_dims(name, {"layers": shape.layers, "vocab": shape.vocab, **dims}, params)
    given: dict[str, Any] = {
        key: value for key, value in dims.items() if key != "heads" or value != shape.heads
    }
    if "heads" in given:
        per_key = shape.heads // shape.kv_heads
        given = {"kv_heads": max(1, given["heads"] // per_key), **given}
        given["head_dim"] = shape.hidden // given["heads"]
    if given.get("layers", shape.layers) < shape.layers:  # cut as SimuMax cuts: one dense layer stays
        given |= {"dense_layers": min(1, shape.dense_layers), "mtp_layers": 0}
    return replace(shape, **given)


def _from_dims(name: str, dims: dict[str, int], params: float | None) -> ModelShape:
    hidden = dims["hidden"]
    head_dim = 128 if hidden % 128 == 0 and hidden >= 2048 else 64
    heads = dims.get("heads") or max(1, hidden // head_dim)
    plain = any(family in name.lower() for family in _PLAIN_FAMILIES)
    row = {"layers": dims["layers"], "hidden": hidden, "heads": heads, "vocab": dims.get("vocab", _VOCAB)}
    row["kv_heads"] = dims.get("kv_heads", heads)
    variants = []
    for gated in (False, True) if plain or dims.get("ffn") == 4 * hidden else (True, False):
        ffn = dims.get("ffn") or (sizing.ffn_width(hidden) if gated else 4 * hidden)
        for tied in (not gated, gated):
            variants.append(_shape({**row, "ffn": ffn, "gated": gated, "tie_embeddings": tied}))
    if not params:
        return variants[0]
    # The usual variant unless another is nearer by more than rounding.
    misses = [abs(math.log(total_params(shape) / params)) for shape in variants]
    near = [shape for shape, miss in zip(variants, misses, strict=True) if miss < min(misses) + 0.005]
    return near[0]


def _shape(row: dict[str, Any]) -> ModelShape:
    row.pop("params", None)
    row.setdefault("head_dim", row["hidden"] // row["heads"])
    row.setdefault("kv_heads", row["heads"])
    always = {"family": "llama", "context": 2048, "tie_embeddings": False, "qk_norm": False}
    return ModelShape(**{**always, **row})


def _with_context(shape: ModelShape, context: int) -> ModelShape:
    """Rows of `context` tokens; a table of positions that is shorter grows with them."""
    return replace(shape, context=context, positions=shape.positions and max(shape.positions, context))


def _by_size(name: str, params: float) -> str | None:
    """The model of the same family whose count is the row's: "Llama 3" with 70.6e9 parameters."""
    words = [word for word in _words(name) if word not in _NOISE and not _is_size(word)]
    if not words:
        return None
    family = _joined(words)
    near = {
        abs(math.log(count / params)): known
        for known, (_, count) in catalogue().items()
        if _joined(_words(known)).startswith(family)
    }
    return near[min(near)] if near and min(near) < _NEAR else None


def _dims_in_name(name: str) -> dict[str, int]:
    """Dimensions that the name spells: "GPT h2304 L24 a24", "cut to 12 layers"."""
    patterns = {
        "hidden": r"\bh(\d{3,9})\b",
        "heads": r"\ba(\d{1,9})\b",
        "layers": r"\bL(\d{1,9})\b|\b(\d{1,9}) layers",
    }
    found = {key: re.search(pattern, name) for key, pattern in patterns.items()}
    dims = {key: int(next(filter(None, match.groups()))) for key, match in found.items() if match}
    keys = re.search(r"kv_heads (\d{1,9})\b", name)
    return dims | ({"kv_heads": int(keys.group(1))} if keys else {})


def _size_in_name(name: str) -> float | None:
    """Parameters as the name says them; those active for a token where it says both."""
    sizes = [word for word in _words(name) if _is_size(word)]
    if not sizes:
        return None
    return float(sizes[-1][:-1]) * {"m": 1e6, "b": 1e9, "t": 1e12}[sizes[-1][-1]]


def _is_size(word: str) -> bool:
    return re.fullmatch(r"\d+(\.\d+)?[mbt]", word) is not None


def _words(name: str) -> list[str]:
    """Lower-case words and numbers, a number with its unit: `Llama-3.1_405B` is llama, 3.1, 405b."""
    text = re.sub(r"\([^)]*\)|\b(cut|truncated) to \d+ layers", " ", name.lower())
    text = re.sub(r"^[\w.-]+/(?=\w)", "", text.strip())  # the owner of a Hugging Face name
    text = re.sub(r"llama[-_ ]?3([1-4])(?=\D|$)", r"llama 3.\1", text)
    words = re.findall(r"\d+(?:\.\d+)?[mbt](?![a-z])|\d+(?:\.\d+)?|[a-z]+", text)
    return [word for word in words if not re.fullmatch(r"\d{4}", word)]  # a date


def _joined(words: list[str]) -> str:
    """One spelling: `deepseek v3` and `deepseekv3` alike, but 3 and 8b apart."""
    return re.sub(r"(?<=[a-z]) (?=[a-z\d])|(?<=\d) (?=[a-z])", "", " ".join(words))


@cache
def _spellings() -> dict[str, str]:
    names = {_joined(_words(name)): name for name in catalogue()}
    return {_joined(_words(other)): name for other, name in _tables()["alias"].items()} | names


@cache
def _tables() -> dict[str, dict[str, Any]]:
    text = (resources.files("bessemer.planner.published") / "models.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
