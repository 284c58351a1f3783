"""The recipe's keys as a flat list: dotted name, section, and what each affects.

Loading (unknown keys), changing (what may change) and hashing (what a stage depends on) all read the
schema through this file.
"""

import difflib
import json
import typing
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import xxhash
from pydantic.fields import FieldInfo

from bessemer.recipe.schema import Recipe, Section


@dataclass(frozen=True)
class Key:
    """One leaf of a loaded recipe. `path` is dotted, with indices: data.source.0.path."""

    path: str
    value: Any
    affects: str


def fields_of(section: type[Section]) -> dict[str, FieldInfo]:
    """The section's keys under the names that a recipe writes ("from", not "from_")."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def section_of(field: FieldInfo) -> type[Section] | None:
    """The section that a key opens, also when it is a list of sections or may be left out."""
    return _section_in(field.annotation)


def leaves(recipe: Recipe) -> list[Key]:
    """Every key of a recipe with its value, defaults included."""
    values = recipe.model_dump(mode="json", by_alias=True)
    return list(_leaves(Recipe, values, "", "nothing"))


def hash_of(recipe: Recipe, affects: set[str], sections: Collection[str] | None = None) -> str:
    """xxh3-128, in hex, over the keys that affect any of `affects`, within top-level `sections`.

    Defaults are part of it: a later version with another default must not reuse an old stage.
    """
    rows = {
        key.path: key.value
        for key in leaves(recipe)
        if key.affects in affects and (sections is None or key.path.split(".")[0] in sections)
    }
    text = json.dumps(rows, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return xxhash.xxh3_128_hexdigest(text.encode())


def nearest_key(section: type[Section], wrong: str) -> str | None:
    """The key that was probably meant: of this section by spelling, or of another by the same name."""
    near = difflib.get_close_matches(wrong, list(fields_of(section)), n=1, cutoff=0.6)
    if near:
        return near[0]
    elsewhere = [path for path in all_keys() if path.split(".")[-1] == wrong]
    return elsewhere[0] if elsewhere else None


@cache
def all_keys() -> list[str]:
    """Dotted names of all keys of the schema, without indices."""
    return list(_schema_keys(Recipe, ""))


def _schema_keys(section: type[Section], prefix: str) -> Iterator[str]:
    for name, field in fields_of(section).items():
        yield prefix + name
        inner = section_of(field)
        if inner is not None:
            yield from _schema_keys(inner, f"{prefix}{name}.")


def _leaves(section: type[Section], values: dict[str, Any], prefix: str, above: str) -> Iterator[Key]:
    for name, field in fields_of(section).items():
        extra = field.json_schema_extra
        affects = str(extra["affects"]) if isinstance(extra, dict) else above
        inner, value, path = section_of(field), values[name], prefix + name
        if inner is not None and isinstance(value, dict):
            yield from _leaves(inner, value, f"{path}.", affects)
        elif inner is not None and isinstance(value, list):
            for index, element in enumerate(value):
                yield from _leaves(inner, element, f"{path}.{index}.", affects)
        else:
            yield Key(path, value, affects)


def _section_in(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for part in typing.get_args(annotation):
        found = _section_in(part)
        if found is not None:
            return found
    return None
