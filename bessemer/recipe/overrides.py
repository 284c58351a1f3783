"""`--set a.b=v`: any key of the recipe, also data.source.0.path.

Split at the first `=`. The value is TOML (3e-4, true, [1, 2], "x"), or else a plain string, so that
`--set model.size=30M` needs no quotation marks inside quotation marks.
"""

import tomllib
from dataclasses import dataclass
from typing import Any

from bessemer.errors import RecipeError


@dataclass(frozen=True)
class Override:
    path: tuple[str | int, ...]
    value: Any
    text: str  # the value as written


def parse_override(text: str) -> Override:
    name, equals, value = text.partition("=")
    parts = name.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(
            f"--set {text}: not an assignment",
            found=text,
            wanted="a key of the recipe, `=`, and a value",
            fix="write it like `--set pretrain.lr=3e-4`",
        )
    path = tuple(int(part) if part.isdecimal() else part for part in parts)
    return Override(path, _toml_or_text(value.strip()), value.strip())


def apply(override: Override, values: dict[str, Any]) -> None:
    """Set the value in the parsed recipe, making sections on the way; an index may add one element."""
    place: Any = values
    for depth, part in enumerate(override.path):
        is_last = depth == len(override.path) - 1
        follower = override.value if is_last else [] if isinstance(override.path[depth + 1], int) else {}
        if isinstance(place, list) and isinstance(part, int) and part <= len(place):
            if part == len(place):
                place.append(follower)
            elif is_last:
                place[part] = follower
        elif isinstance(place, dict) and isinstance(part, str):
            if is_last or part not in place:
                place[part] = follower
        else:
            raise _no_such_place(override, depth, place)
        place = place[part]


def _no_such_place(override: Override, depth: int, place: Any) -> RecipeError:
    above = ".".join(map(str, override.path[:depth])) or "the recipe"
    found = f"a list of {len(place)}" if isinstance(place, list) else type(place).__name__
    found = "a section with named keys" if isinstance(place, dict) else found
    return RecipeError(
        f"--set {'.'.join(map(str, override.path))}: there is no such key",
        found=f"{above} is {found}; it has no {override.path[depth]!r}",
        wanted="a key of the recipe; elements of a list are numbered from 0",
        fix="see the keys with `bessemer schema`",
    )


def _toml_or_text(value: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return value
    return parsed["value"] if parsed.keys() == {"value"} else value
