"""How keys of a Hugging Face `config.json` are read, and the error when one cannot be."""

from typing import Any

from bessemer.errors import RecipeError


def get(config: dict[str, Any], key: str, default: Any) -> Any:
    """The value of a key; `default` where it is missing or null."""
    value = config.get(key)
    return default if value is None else value


def count(config: dict[str, Any], key: str, default: int | None = None) -> int:
    value = get(config, key, default)
    if isinstance(value, int) and value > 0:
        return value
    raise unsupported(key, "missing" if value is None else value, "a positive whole number")


def token_id(config: dict[str, Any], key: str) -> int | None:
    """Chat models list several end tokens; the first is the one that ends a document."""
    value = config.get(key)
    return value[0] if isinstance(value, list) else value


def unsupported(key: str, value: Any, wanted: str) -> RecipeError:
    return RecipeError(
        "this Hugging Face model cannot be read exactly",
        found=f"config.json: {key} = {value!r}",
        wanted=wanted,
        fix="choose a model without it; weights are never approximated",
    )
