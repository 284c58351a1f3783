"""The words of a layout, and which layouts this version runs: one process.

Others are refused by name with the nearest that works, never run as something else.
"""

import difflib
from typing import Any

from bessemer.errors import RecipeError

AXES = ("replicate", "shard", "tensor", "pipeline", "context", "expert")
_WORDS: dict[str, tuple[str, ...]] = {
    "schedule": ("1f1b", "interleaved", "zbv", "dualpipev"),
    "interleave": (),
    "reshard": ("yes", "no"),
    "context_kind": ("gather", "ulysses", "ring"),
    "split": (),
}


def resolve_layout(text: str, where: str = "parallel.layout") -> dict[str, Any]:
    """Degrees on every axis. `where` is what an error calls the setting."""
    degrees = dict.fromkeys(AXES, 1)
    if text == "auto":
        return dict(degrees)
    for part in text.split(","):
        word, _, value = (piece.strip() for piece in part.partition("="))
        if word in AXES and value.isdecimal() and int(value) > 0:
            degrees[word] = int(value)
        else:
            raise _refused_word(where, text, word, value)
    if any(degree > 1 for degree in degrees.values()):
        raise RecipeError(
            f"this layout is not built yet in this version: {where}",
            found=text,
            wanted="one process: every degree 1",
            fix='leave it out, or write "auto"',
        )
    return dict(degrees)


def _refused_word(where: str, text: str, word: str, value: str) -> RecipeError:
    if word in _WORDS and (value in _WORDS[word] or not _WORDS[word]):
        return RecipeError(
            f"{word} has no effect on one process, and others are not built yet in this version",
            found=f'{where} = "{text}"',
            wanted="no such word in the layout",
            fix=f"remove {word}={value}",
        )
    known = [*AXES, *_WORDS]
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    wanted = f"{word} = one of {', '.join(_WORDS[word])}" if word in _WORDS else "a positive whole number"
    return RecipeError(
        f"{where}: cannot read {word!r}" if word not in known else f"{where}: {word} = {value!r}",
        found=text,
        wanted=wanted if word in known else "words of a layout: " + ", ".join(known),
        fix=f"did you mean {near[0]}=…?" if near else 'write it like "shard=2,tensor=2"',
    )
