"""What is wrong with a recipe, said with its place: file and line, or the `--set` that did it."""

import difflib
import re
import tomllib
from dataclasses import dataclass
from typing import Any, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from bessemer.errors import RecipeError
from bessemer.recipe.keys import fields_of, nearest_key, section_of
from bessemer.recipe.lines import Path, line_of
from bessemer.recipe.overrides import Override
from bessemer.recipe.schema import Recipe, Section
from bessemer.recipe.write import toml_value

_MOST_SHOWN = 120  # characters of a line
# What tomllib says of a key that stands twice, in words that tell nothing of it.
_TWICE = re.compile(r"Cannot (overwrite|declare|redefine|mutate)|Duplicate inline table key")
# Compute types that devices have and this version does not train in.
_NOT_TRAINED = {
    "fp8": "leave it out: fp8 is costed and not trained; `bessemer plan` tells what it would gain",
    "fp16": 'set "bf16": fp16 would want its losses scaled, and is not trained',
}


@dataclass(frozen=True)
class Places:
    """Where keys came from."""

    name: str
    lines: dict[Path, int]
    overrides: list[Override]

    def of(self, path: Path) -> str:
        for override in self.overrides:
            if override.path[: len(path)] == path or path[: len(override.path)] == override.path:
                return f"--set {_dotted(override.path)}={override.text}"
        return f"{self.name}, line {line_of(path, self.lines)}"


def syntax_error(name: str, text: str, error: tomllib.TOMLDecodeError) -> RecipeError:
    """tomllib's message with the line's text; "at end of document" is the last line."""
    match = re.search(r"\(at line (\d+), column \d+\)", str(error))
    lines = text.splitlines() or [""]
    number = min(int(match[1]), len(lines)) if match else len(lines)
    if _TWICE.match(str(error)):
        return _twice(name, number, lines)
    return RecipeError(
        f"{name}, line {number}: not valid TOML",
        found=lines[number - 1].strip()[:_MOST_SHOWN] or "an empty line",
        wanted=re.sub(r" \(at .*\)", "", str(error)),
        fix="write `key = value`; text goes in quotation marks, lists in [ ]",
    )


def refuse_unknown_keys(values: dict[str, Any], places: Places) -> None:
    _refuse_in(Recipe, values, (), places)


def wrong_value(error: ValidationError, values: dict[str, Any], places: Places) -> RecipeError:
    """The first wrong key; a key that may be of several types gives one complaint, not several."""
    rows = error.errors(include_url=False)
    path = _key_path(rows[0]["loc"], values)
    here = [row for row in rows if _key_path(row["loc"], values) == path]
    if here[0]["type"] == "missing":
        return _missing(path, here[0], places)
    found = _found(path, values)
    wanted = " or ".join(dict.fromkeys(_wanted(row, path) for row in here))
    return RecipeError(
        f"{places.of(path)}: `{_dotted(path)}` does not take this value",
        found=f"{path[-1] if path else 'recipe'} = {found}",
        wanted=wanted,
        fix=_value_fix(found, here, path),
    )


def _twice(name: str, number: int, lines: list[str]) -> RecipeError:
    """A key or a heading that stood before; on which line, where that is plain to see."""
    found = _written(lines[number - 1])
    heading = re.fullmatch(r"\[+([\w.-]+)\]+", found)
    opened = max((line for line in range(1, number) if lines[line - 1].startswith("[")), default=1)
    first = 1 if heading else opened
    before = [line for line in range(first, number) if _written(lines[line - 1]) == found]
    if heading and _is_list(tuple(heading[1].split("."))):
        fix = f"write [[{heading[1]}]] above the keys of each"
    elif before:
        move = "move its keys below that of" if heading else "remove it here or on"
        fix = f"{move} line {before[-1]}"
    else:
        fix = "remove one of the two, or write the keys of a section together below one heading"
    return RecipeError(
        f"{name}, line {number}: not valid TOML: a key or a heading stands twice",
        found=lines[number - 1].strip()[:_MOST_SHOWN],
        wanted="each key and each heading once",
        fix=fix,
    )


def _written(line: str) -> str:
    """The key or the heading on a line."""
    return line.partition("#")[0].partition("=")[0].replace(" ", "").strip()


def _is_list(path: Path) -> bool:
    """Whether a key opens a list of sections."""
    field = _field(path)
    return field is not None and get_origin(field.annotation) is list and section_of(field) is not None


def _field(path: Path) -> FieldInfo | None:
    """Of the schema."""
    section: type[Section] | None = Recipe
    field = None
    for part in (part for part in path if isinstance(part, str)):
        field = None if section is None else fields_of(section).get(part)
        section = None if field is None else section_of(field)
    return field


def _refuse_in(section: type[Section], values: Any, path: Path, places: Places) -> None:
    """A value of the wrong kind is left to the type check, which says so."""
    if isinstance(values, list):
        for index, element in enumerate(values):
            _refuse_in(section, element, (*path, index), places)
    if not isinstance(values, dict):
        return
    fields = fields_of(section)
    for name, value in values.items():
        if name not in fields:
            raise _unknown_key(section, name, (*path, name), value, places)
        inner = section_of(fields[name])
        if inner is not None:
            _refuse_in(inner, value, (*path, name), places)


def _unknown_key(section: type[Section], name: str, path: Path, value: Any, places: Places) -> RecipeError:
    near = nearest_key(section, name)
    above = _dotted(path[:-1])
    return RecipeError(
        f"{places.of(path)}: unknown key `{_dotted(path)}`",
        found=f"[{_dotted(path)}]" if isinstance(value, dict) else f"{name} = {toml_value(value)}",
        wanted=f"a key of {f'[{above}]' if above else 'the recipe'}: " + ", ".join(fields_of(section)),
        fix=f"did you mean `{near}`?" if near else "remove it, or see `bessemer schema` for all keys",
    )


def _missing(path: Path, row: ErrorDetails, places: Places) -> RecipeError:
    name = _dotted(path)
    return RecipeError(
        f"{places.of(path[:-1] or path)}: `{name}` is missing",
        found="no such key",
        wanted=f"`{name}`, which has no default",
        fix=f'add `{path[-1]} = "…"`' + (f" to [{_dotted(path[:-1])}]" if len(path) > 1 else " at the top"),
    )


def _key_path(location: tuple[int | str, ...], values: Any) -> Path:
    """The part of pydantic's location that is in the recipe: behind it come names of union members."""
    path: list[str | int] = []
    for part in location:
        present = isinstance(values, dict) and part in values
        present = present or (isinstance(values, list) and isinstance(part, int) and part < len(values))
        if not present:
            is_key = isinstance(values, dict) and isinstance(part, str) and "[" not in part
            return (*path, part) if is_key else tuple(path)
        values = values[part]
        path.append(part)
    return tuple(path)


def _wanted(row: ErrorDetails, path: Path) -> str:
    if row["type"] == "list_type" and _is_list(path):
        return "a list of sections"
    if row["type"] == "model_type":
        return "a section with keys of its own"
    if row["type"] == "string_pattern_mismatch":
        return "letters, digits, spaces and . _ + -, beginning with a letter or digit"
    return row["msg"].removeprefix("Input should be ").removeprefix("Value error, ")


def _value_fix(found: str, rows: list[ErrorDetails], path: Path) -> str:
    if path and path[-1] == "dtype" and (reason := _NOT_TRAINED.get(found.strip('"').lower())):
        return reason
    choices = [
        word for row in rows for word in re.findall(r"'([^']*)'", str(row.get("ctx", {}).get("expected")))
    ]
    near = difflib.get_close_matches(found.strip('"'), choices, n=1, cutoff=0.5)
    if near:
        return f'did you mean "{near[0]}"?'
    if any(row["type"] in ("int_type", "float_type") for row in rows) and re.fullmatch(r'"[\d.e+-]+"', found):
        return "write the number without quotation marks"
    if rows[0]["type"] == "list_type" and _is_list(path):
        return f"write [[{_dotted(path)}]]; with --set, {_dotted(path)}.0 is the first of them"
    field = _field(path)
    if field is not None and field.is_required():
        return "change it"
    return f"change it, or leave `{_dotted(path)}` out for its default"


def _found(path: Path, values: Any) -> str:
    for part in path:
        values = values[part]
    text = toml_value(values)
    return text if len(text) <= 60 else text[:57] + "…"


def _dotted(path: Path) -> str:
    return ".".join(map(str, path))
