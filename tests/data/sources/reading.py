"""What the tests of readers share: a source from its TOML, and its documents in one part or in many."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bessemer.data.sources.cutting import cut
from bessemer.data.sources.documents import documents, read, source_inputs
from bessemer.data.sources.parts import Document, Part
from bessemer.recipe.load import parse
from bessemer.recipe.schema import Source


def source_of(kind: str, path: str, more: str = "") -> Source:
    text = f'name = "made"\n[[data.source]]\nname = "s"\nkind = "{kind}"\npath = "{path}"\n{more}\n'
    return parse(text, "made", []).data.source[0]


def read_all(base: Path, kind: str, path: str, more: str = "") -> list[Document]:
    source = source_of(kind, path, more)
    return list(documents(source, source_inputs(source, base)))


def read_parts(base: Path, source: Source, size: int) -> tuple[list[Part], list[Document]]:
    """The parts of about `size` bytes, as they reach a worker, and what they give one after another."""
    parts = cut(source, source_inputs(source, base, size), size)
    sent = [Part.from_json(part.to_json()) for part in parts]
    return sent, [document for part in sent for document in read(source, part)]


def outcome(rows: Sequence[Document]) -> list[Any]:
    return [
        row.error if row.error is not None else row.text if row.text is not None else row.tokens
        for row in rows
    ]


def reasons(rows: Sequence[Document]) -> Counter[str | None]:
    return Counter(row.error for row in rows)
