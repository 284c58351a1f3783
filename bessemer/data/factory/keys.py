"""Which stages a part goes through, and the names of their files: hashes of all that each depends on.

    read     the part's content, how the source is read
    clean    read, and what is done to the text
    measures clean, and each its own settings
    words    clean, and which documents are trained on
    tokens   clean, which documents go where, the tokenizer, what the provenance says

So a source that is added, a threshold that is changed or a build that was killed does only what is missing.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from bessemer.data.factory.stages import VERSIONS
from bessemer.data.sources.parts import Part
from bessemer.recipe.schema import Source

_READING = ("kind", "text", "id", "group", "table", "query", "split_by")


@dataclass(frozen=True)
class PartFiles:
    """A part of a source, and its files by stage."""

    source: int  # number in the recipe
    part: Part
    size_bytes: int
    keys: dict[str, str] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)


def part_files(
    number: int, source: Source, part: Part, settings: dict[str, dict[str, Any]], stages: Path
) -> PartFiles:
    """settings: of each stage that this source goes through, in their order; "read" and "clean" first."""
    how = {name: getattr(source, name) for name in _READING}
    keys = {"read": key("read", part.hash, how)}
    keys["clean"] = key("clean", keys["read"], _content(settings["clean"]))
    for name in settings:
        if name not in keys:
            keys[name] = key(name, keys["clean"], _content(settings[name]))
    files = {name: stages / name / known[:2] / f"{known}.arrow" for name, known in keys.items()}
    return PartFiles(number, part, part_bytes(part), keys, files)


def _content(settings: dict[str, Any]) -> dict[str, Any]:
    """Without what only says where something lies; of that there is a hash."""
    plugin = settings.get("plugin")
    inner = {"plugin": {**plugin, "base": None}} if plugin else {}
    return {**settings, "file": None, **inner}


def key(stage: str, above: str, settings: Any) -> str:
    text = json.dumps([stage, VERSIONS[stage], above, settings], sort_keys=True)
    return xxhash.xxh3_128_hexdigest(text.encode())


def part_bytes(part: Part) -> int:
    """Roughly what there is to read; 0: not known."""
    total = sum(entry.size_bytes for entry in part.inputs)
    if part.end is not None and part.inputs and total and part.end - part.begin <= total:
        return part.end - part.begin
    return total
