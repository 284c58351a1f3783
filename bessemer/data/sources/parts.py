"""What readers speak of: documents, which come out, and parts, which are read one at a time.

A part is the unit of work and of restart: whole small files, a range of a large one, a range of keys of
a table. It goes to a worker process as JSON, and the same part always gives the same documents.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from bessemer.data.sources.values import MISSING
from bessemer.recipe.schema import Source

LARGEST_BYTES = 256 << 20  # a longer row is an error and is never held as a whole
PART_BYTES = 16 << 20  # about what a part holds: seconds of work, and a few hundred MB of memory


class Record(NamedTuple):
    """A row of a file of rows, before anyone looked at what its fields hold."""

    place: str  # "docs/a.jsonl:12": file and row, from 1
    values: tuple[Any, ...]  # of the wanted columns, in their order; MISSING where there is none
    num_bytes: int
    error: str | None = None  # why the whole row, or the rest of the file, could not be read

    @staticmethod
    def failed(place: str, wanted: "Wanted", error: str, num_bytes: int = 0) -> "Record":
        return Record(place, (MISSING,) * len(wanted.columns), num_bytes, error)


@dataclass(frozen=True)
class Wanted:
    """What to take from a file, and what errors call the source."""

    what: str
    kind: str
    columns: Sequence[str]
    table: str | None = None
    query: str | None = None
    url_env: str | None = None  # of a database server: the variable with its address
    split_by: str | None = None
    asked: tuple[str | None, ...] = ()  # what a server is asked for, as the recipe names it
    any_type: bool = False  # fields may hold lists and objects, not only texts


def what(source: Source) -> str:
    """What errors call it."""
    return f"source {source.name!r}"


def wanted_columns(source: Source) -> Wanted:
    text = source.text
    if source.kind == "tokens" and "text" not in source.model_fields_set:
        text = "tokens"
    columns = [text, *(name for name in (source.id, source.group) if name is not None)]
    return Wanted(
        what(source),
        source.kind,
        columns,
        source.table,
        source.query,
        source.url_env,
        source.split_by,
        (source.text, source.id, source.group),
    )


# Told before a document is extracted, with its place in the part. Gives the reason if it is to be left out,
# as one that crashed its process, or held it up, is the next time.
Begins = Callable[[int], str | None]


def none_left_out(_: int) -> str | None:
    return None


@dataclass(frozen=True)
class Document:
    """A row that was read. One of text, tokens and error is set."""

    id: str  # the declared one, or file (and row)
    group: str | None
    num_bytes: int  # read for it
    text: str | None = None
    tokens: list[int] | None = None
    error: str | None = None
    has_own_id: bool = False  # the id is a column of the source, not a place in a file
    origin: str | None = None  # web address, chapter, table: where it comes from, if more than its id


@dataclass(frozen=True)
class Input:
    """A file or an object in a store, or what is read of a database."""

    path: Path  # where it lies; of no use for what is remote
    name: str  # relative to the recipe, "/" between parts: the same wherever the recipe lies
    size_bytes: int
    modified_ns: int
    xxh3_128: str  # of its content; where that would cost reading it, of what changes with it
    url: str | None = None  # remote: s3://bucket/key, gs://bucket/key; a database without its password
    cuts: tuple[tuple[int, int], ...] = ()  # of lines: (byte, row number) where a part may begin
    reading: int = 0  # of a database server, which may hold something else by now; 0: none is meant yet

    def at(self, reading: int) -> "Input":
        """What a database held at another time is another content."""
        digest = xxhash.xxh3_128_hexdigest(f"{self.xxh3_128} {reading}".encode())
        return replace(self, xxh3_128=digest, reading=reading)


@dataclass(frozen=True)
class Part:
    inputs: tuple[Input, ...]  # several only where each is read whole
    begin: int = 0  # bytes of a file of lines, row groups of Parquet, keys of a table
    end: int | None = None  # None: to the end
    first_row: int = 1  # the number in its file of the first row
    most_rows: int | None = None  # read no more than these

    def to_json(self) -> dict[str, Any]:
        # A part was cut already: its inputs' cuts would only make the task long.
        # Not `asdict`, which copies all that is inside: half a second for 9,000 files.
        inputs = [{**vars(entry), "path": str(entry.path), "cuts": []} for entry in self.inputs]
        return {**vars(self), "inputs": inputs}

    @staticmethod
    def from_json(row: dict[str, Any]) -> "Part":
        inputs = []
        for entry in row["inputs"]:
            cuts = tuple((int(byte), int(number)) for byte, number in entry["cuts"])
            inputs.append(Input(**{**entry, "path": Path(entry["path"]), "cuts": cuts}))
        return Part(**{**row, "inputs": tuple(inputs)})

    @property
    def hash(self) -> str:
        """Of what it holds, wherever the files lie."""
        digest = xxhash.xxh3_128()
        for entry in self.inputs:
            digest.update(f"{entry.name}\0{entry.xxh3_128}\0".encode())
        digest.update(repr((self.begin, self.end, self.first_row, self.most_rows)).encode())
        return digest.hexdigest()
