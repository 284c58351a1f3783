"""Rows of JSON lines, CSV files and SQLite databases, of which only the named columns are taken.

A row that cannot be used is still a row: it comes with the reason in `error`, so that whoever counts
loses none. What is wrong with a whole file (not a database, no such column) is a DataError.
"""

import csv
import io
import json
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bessemer.data.sources.inputs import changed, check_unchanged, near, open_input
from bessemer.data.sources.parts import Input
from bessemer.errors import DataError

MISSING = object()  # the row has no such field


@dataclass(frozen=True)
class Record:
    place: str  # "docs/a.jsonl:12": file and row, from 1
    values: tuple[Any, ...]  # of the wanted columns, in their order; MISSING where there is none
    num_bytes: int
    error: str | None = None  # why the whole row could not be read


@dataclass(frozen=True)
class Wanted:
    """What to take from a file, and what errors call the source."""

    what: str
    kind: str
    columns: Sequence[str]
    table: str | None = None
    query: str | None = None


def read_records(wanted: Wanted, entry: Input) -> Iterator[Record]:
    readers = {"jsonl": _jsonl, "tokens": _jsonl, "csv": _csv, "sql": _sql}
    return readers[wanted.kind](wanted, entry)


def _jsonl(wanted: Wanted, entry: Input) -> Iterator[Record]:
    """One row a line. A blank line is a row whose fields are empty texts."""
    none = (MISSING,) * len(wanted.columns)
    with open_input(entry, wanted.what) as file:
        for number, line in enumerate(file, 1):
            place = f"{entry.name}:{number}"
            if not line.strip():
                yield Record(place, ("",) * len(wanted.columns), len(line))
                continue
            try:
                row = json.loads(line.removeprefix(b"\xef\xbb\xbf").decode("utf-8"))
            except UnicodeDecodeError:
                yield Record(place, none, len(line), "undecodable")
                continue
            except (ValueError, RecursionError):
                yield Record(place, none, len(line), "unparsable")
                continue
            if wanted.kind == "tokens" and isinstance(row, list):
                row = {wanted.columns[0]: row}
            if not isinstance(row, dict):
                yield Record(place, none, len(line), "unparsable")
                continue
            yield Record(place, tuple(row.get(name, MISSING) for name in wanted.columns), len(line))


def _csv(wanted: Wanted, entry: Input) -> Iterator[Record]:
    """One row a record after the header. Bytes that are not UTF-8 stay visible as lone surrogates."""
    csv.field_size_limit(sys.maxsize)
    with open_input(entry, wanted.what) as raw:
        file = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(file, strict=True)
        header = next(reader, None)
        if header is None:
            return
        places = [_column(name, header, wanted, str(entry.path)) for name in wanted.columns]
        number = 0
        while True:
            number += 1
            try:
                row = next(reader, None)
            except csv.Error:
                yield Record(f"{entry.name}:{number}", (MISSING,) * len(places), 0, "unparsable")
                continue
            if row is None:
                return
            if not row:  # a blank line is no record
                continue
            values = tuple(row[place] if place < len(row) else MISSING for place in places)
            yield Record(f"{entry.name}:{number}", values, _num_bytes(row))


def _sql(wanted: Wanted, entry: Input) -> Iterator[Record]:
    """One row a result row, of the wanted columns only: no other column is read from the database."""
    try:
        yield from _select(wanted, entry)
    except sqlite3.Error as error:
        raise DataError(
            f"{wanted.what}: cannot read the database {entry.path}",
            found=str(error),
            wanted="a SQLite database that is not being written to, and a query that it understands",
            fix="check `path`, `table` and `query`; try the query with `sqlite3`",
        ) from error


def _select(wanted: Wanted, entry: Input) -> Iterator[Record]:
    check_unchanged(entry, wanted.what)
    connection = sqlite3.connect(f"file:{quote(str(entry.path.resolve()))}?mode=ro", uri=True)
    try:
        # TEXT that is not UTF-8 becomes lone surrogates; a BLOB stays bytes, which are no text.
        connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
        origin = _origin(connection, wanted, entry.path)
        described = connection.execute(f"select * from {origin} limit 0").description  # noqa: S608
        known = [column[0] for column in described]
        places = [_column(name, known, wanted, str(entry.path)) for name in wanted.columns]
        names = ", ".join(_quoted(known[place]) for place in places)
        rows = connection.execute(f"select {names} from {origin}")  # noqa: S608 (names are quoted)
        for number, values in enumerate(rows, 1):
            filled = tuple(MISSING if value is None else value for value in values)
            yield Record(f"{entry.name}:{number}", filled, _num_bytes(values))
    finally:
        connection.close()
    if entry.path.stat().st_mtime_ns != entry.modified_ns:
        raise changed(wanted.what, entry)


def _origin(connection: sqlite3.Connection, wanted: Wanted, path: Path) -> str:
    """What to select from: the quoted table, or the query in brackets."""
    if wanted.query is not None:
        return f"({wanted.query.strip().rstrip(';')}\n)"  # the line break ends a comment in the query
    table = wanted.table or ""
    sql = "select name from sqlite_master where type in ('table', 'view') order by name"
    tables = [name for (name,) in connection.execute(sql)]
    if table.lower() not in [name.lower() for name in tables]:
        raise DataError(
            f"{wanted.what}: {path} has no table {table!r}",
            found="its tables: " + (", ".join(tables) or "none"),
            wanted=f"a table or view named {table!r}",
            fix=near(table, tables) + "Name another `table`, or write a `query`",
        )
    return _quoted(table)


def _column(name: str, known: Sequence[str], wanted: Wanted, where: str) -> int:
    """The place of a column, by its exact name or else, as SQL does, whatever its case."""
    if name in known:
        return list(known).index(name)
    lower = [column.lower() for column in known]
    if wanted.kind == "sql" and name.lower() in lower:
        return lower.index(name.lower())
    raise DataError(
        f"{wanted.what}: {where} has no column {name!r}",
        found="its columns: " + (", ".join(known) or "none"),
        wanted=f"a column named {name!r}",
        fix=near(name, list(known)) + "Name the columns of the file in the recipe",
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _num_bytes(values: Sequence[Any]) -> int:
    """UTF-8 bytes of the texts in a row."""
    texts = (
        value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass") for value in values
    )
    return sum(map(len, texts))
