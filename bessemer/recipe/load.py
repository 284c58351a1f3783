"""Load a recipe: find it, parse it, apply `--set`, check it strictly, and say exactly what is wrong.

Every complaint names the file and line (or the `--set`), what was found, what was wanted, and the
nearest thing that would have been right. Paths inside a recipe start from the recipe's folder; those
of a shipped recipe from the current directory, where the user's data is.
"""

import difflib
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bessemer.errors import RecipeError
from bessemer.recipe import complaints
from bessemer.recipe.lines import key_lines
from bessemer.recipe.overrides import Override, apply, parse_override
from bessemer.recipe.schema import SHAPE_KEYS, Recipe
from bessemer.recipe.write import recipe_text

# Keys of a section that say the same thing, each way of saying it.
_SAME: dict[str, tuple[tuple[str, ...], ...]] = {
    "model": (("size",), SHAPE_KEYS),
    "pretrain": (("steps",), ("tokens",), ("hours",)),
    "tokenizer": (("path",), ("vocab",)),
}


@dataclass(frozen=True)
class LoadedRecipe:
    recipe: Recipe
    base: Path  # folder that relative paths in the recipe start from
    text: str  # canonical TOML, overrides applied
    reference: str  # as the user wrote it
    overrides: tuple[str, ...] = ()  # the --set of the command


def load(reference: str, overrides: list[str]) -> LoadedRecipe:
    """`reference`: a file, or the name of a shipped recipe. `overrides`: "a.b=v", later ones win."""
    path = Path(reference)
    if path.is_file() or path.suffix == ".toml":
        text, name, base = _read(path), str(path), path.resolve().parent
        if text.lstrip().startswith("{"):  # TOML never does
            raise _no_recipe(path, "a JSON file")
    elif (path / "config.json").is_file() and reference not in shipped_names():
        raise _no_recipe(path, "a Hugging Face folder")
    else:
        text, name, base = shipped_text(reference), f"shipped recipe {reference}", Path.cwd()
    recipe = parse(text, name, overrides)
    return LoadedRecipe(recipe, base, recipe_text(recipe), reference, tuple(overrides))


def _no_recipe(path: Path, found: str) -> RecipeError:
    """The error of a model in a recipe's place."""
    return RecipeError(
        f"{path} is no recipe",
        found=found,
        wanted="a TOML file, or the name of a shipped recipe",
        fix=f'write a recipe with [model] from = "{path}"; `bessemer recipes` lists some to begin with',
    )


def parse(text: str, name: str, overrides: list[str]) -> Recipe:
    """A recipe from TOML text; `name` is what errors call that text."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise complaints.syntax_error(name, text, error) from error
    settings = [parse_override(override) for override in overrides]
    for setting in settings:
        apply(setting, values)
    _drop_replaced(settings, values)
    places = complaints.Places(name, key_lines(text), settings)
    complaints.refuse_unknown_keys(values, places)
    return _validate(values, settings, places)


def shipped_names() -> list[str]:
    folder = resources.files("bessemer") / "recipes"
    return sorted(
        entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")
    )


def shipped_text(name: str) -> str:
    """The text of a shipped recipe, comments and all."""
    names = shipped_names()
    if name in names:
        return (resources.files("bessemer") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    near = difflib.get_close_matches(name, names, n=1)
    near = near or [known for known in names if name and known.startswith(name)]
    raise RecipeError(
        f"no recipe {name!r}",
        found="neither a file nor a shipped recipe of that name",
        wanted="a path to a TOML file, or one of: " + ", ".join(names),
        fix=f"did you mean `{near[0]}`?" if near else "list them with `bessemer recipes`",
    )


def shipped_rows(name: str) -> str | None:
    """The rows that a shipped recipe of a task is shown with."""
    rows = resources.files("bessemer") / "recipes" / f"{name}.jsonl"
    return rows.read_text(encoding="utf-8") if rows.is_file() else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        beside = {entry.stem: entry for entry in path.parent.glob("*.toml")} if path.parent.is_dir() else {}
        near = difflib.get_close_matches(path.stem, beside, n=1)
        raise RecipeError(
            f"cannot read recipe {path}",
            found=error.strerror or str(error),
            wanted="a TOML file, or the name of a shipped recipe",
            fix=f"did you mean `{beside[near[0]]}`?"
            if near
            else "begin with a copy: `bessemer recipes copy gpt1-117m .`",
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"recipe {path} is not UTF-8 text",
            found=f"byte 0x{error.object[error.start]:02x} at offset {error.start}",
            wanted="TOML, which is UTF-8 by definition",
            fix="save the file as UTF-8",
        ) from error


def _drop_replaced(settings: list[Override], values: dict[str, Any]) -> None:
    """Keys that say the same thing: one that is set from outside replaces the others in the file."""
    given = {setting.path for setting in settings}
    for section, ways in _SAME.items():
        kept = [keys for keys in ways if any((section, key) in given for key in keys)]
        if kept and isinstance(values.get(section), dict):
            for key in {key for keys in ways for key in keys}.difference(*kept):
                values[section].pop(key, None)


def _validate(values: dict[str, Any], settings: list[Override], places: complaints.Places) -> Recipe:
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        # `--set name=2024` parses as a number; where the key wants text, the text was meant.
        if not _fall_back_to_text(error, values, settings):
            raise complaints.wrong_value(error, values, places) from None
    return _validate(values, [], places)


def _fall_back_to_text(error: ValidationError, values: dict[str, Any], settings: list[Override]) -> bool:
    wrong = {row["loc"] for row in error.errors() if row["type"] == "string_type"}
    plain = [s for s in settings if any(loc[: len(s.path)] == s.path for loc in wrong) and s.value != s.text]
    for setting in plain:
        apply(Override(setting.path, setting.text, setting.text), values)
    return bool(plain)
