"""The canonical TOML text of a recipe: the keys that were given, in the schema's order.

What `runs/<name>/recipe.toml` holds. Loading it gives an equal recipe. Comments are not kept, the
shipped recipe or the user's own file has them.
"""

import json
from typing import Any

from bessemer.recipe.schema import Recipe

_BARE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


def recipe_text(recipe: Recipe) -> str:
    return toml_text(recipe.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True))


def toml_text(values: dict[str, Any]) -> str:
    """A TOML document of dicts, lists, strings, numbers and booleans."""
    return "\n".join(_table((), values)).lstrip("\n") + "\n"


def toml_value(value: Any) -> str:
    """One value, as it stands behind the `=`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for the one control character that JSON lets stand.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(element) for element in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(name)} = {toml_value(inner)}" for name, inner in value.items()) + " }"
    return repr(value)


def _table(path: tuple[str, ...], values: dict[str, Any]) -> list[str]:
    plain = {name: value for name, value in values.items() if not _is_section(value)}
    lines = [f"{_key(name)} = {toml_value(value)}" for name, value in plain.items()]
    for name, value in values.items():
        if name in plain:
            continue
        inner = (*path, name)
        header = ".".join(_key(part) for part in inner)
        for table in value if isinstance(value, list) else [value]:
            if isinstance(value, list):
                lines += ["", f"[[{header}]]"]
            elif not table or any(not _is_section(element) for element in table.values()):
                lines += ["", f"[{header}]"]
            lines += _table(inner, table)
    return lines


def _is_section(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(element, dict) for element in value)
    return isinstance(value, dict)


def _key(name: str) -> str:
    return name if name and set(name) <= _BARE else toml_value(name)
