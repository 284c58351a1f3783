"""How a Hugging Face `config.json` and its keys are read, and the error when one cannot be."""

import json
import math
from pathlib import Path
from typing import Any

from bessemer.errors import RecipeError

_TOO_MANY = 2**40  # of anything that a config counts


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a Hugging Face folder. RecipeError: no such file, or another content."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"holds a {type(content).__name__} instead of an object")
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"cannot read {path}",
            found=getattr(error, "strerror", None) or str(error),
            wanted="a folder as Hugging Face's save_pretrained writes it",
            fix="check the path in model.from (relative to the recipe's folder) or --from; nothing is "
            "fetched from the hub: download it first",
        ) from error
    return content


def config_path(folder: Path) -> Path:
    """Of a Hugging Face folder, or of a `config.json` itself."""
    return folder if folder.is_file() else folder / "config.json"


def row_length(context: int | None, longest: int) -> int:
    """Tokens in a training row; None: all positions that the model has."""
    if context is None or context <= longest:
        return context or longest
    raise RecipeError(
        "training rows are longer than this model's positions",
        found=f"model.context = {context}, max_position_embeddings = {longest}",
        wanted=f"model.context of at most {longest}",
        fix=f"set --set model.context={longest}, or take a model made for longer rows",
    )


def get(config: dict[str, Any], key: str, default: Any) -> Any:
    """The value of a key; `default` where it is missing or null."""
    value = config.get(key)
    return default if value is None else value


def count(config: dict[str, Any], key: str, default: int | None = None) -> int:
    value = get(config, key, default)
    if isinstance(value, int) and 0 < value < _TOO_MANY:
        return value
    raise unsupported(key, "missing" if value is None else value, "a positive whole number")


def number(config: dict[str, Any], key: str, default: float | None = None) -> float:
    """RecipeError: missing without a default, or no positive number."""
    value = get(config, key, default)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0.0 < value < math.inf:
        return float(value)
    raise unsupported(key, "missing" if value is None else value, "a positive number")


def inner(config: dict[str, Any], key: str) -> dict[str, Any]:
    """An object within; empty where the key is missing or null. RecipeError: something else."""
    value = get(config, key, {})
    if isinstance(value, dict):
        return value
    raise unsupported(key, value, "an object of keys and values, or null")


def token_id(config: dict[str, Any], key: str) -> int | None:
    """Chat models list several end tokens; the first is the one that ends a document."""
    value = config.get(key)
    first = value[0] if isinstance(value, list) and value else value
    if first is None or type(first) is int:
        return first
    raise unsupported(key, value, "a whole number, a list of some, or null")


def key_heads(config: dict[str, Any], default: int | None, heads: int) -> int:
    """Heads for keys: null means as many as query heads; missing means the class default, which differs."""
    given = config.get("num_key_value_heads", default)
    return heads if given is None else count(config, "num_key_value_heads", default)


def check_heads(heads: int, kv_heads: int) -> None:
    """RecipeError where heads cannot share keys evenly: transformers' classes can be given such a config, and
    fail when they compute. Latent attention makes keys of its own for every head: not to be asked of it."""
    if heads % kv_heads:
        raise RecipeError(
            "this Hugging Face model cannot be computed",
            found=f"config.json: num_attention_heads = {heads}, num_key_value_heads = {kv_heads}",
            wanted="attention heads that are a multiple of the heads for keys, which they share evenly",
            fix="correct the config.json: transformers cannot compute such a model either",
        )


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


def unsupported(key: str, value: Any, wanted: str) -> RecipeError:
    return RecipeError(
        "this Hugging Face model cannot be read exactly",
        found=f"config.json: {key} = {value!r}",
        wanted=wanted,
        fix="choose a model without it; weights are never approximated",
    )
