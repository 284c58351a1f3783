"""Rows of files of rows, of which only the named columns are taken: one reader for each format.

A row that cannot be used is still a row: it comes with the reason in `error`, so that whoever counts
loses none. What is wrong with a whole file (not a database, no such column) is a DataError.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from bessemer.data.sources.arrow_rows import read_arrow, read_parquet
from bessemer.data.sources.inputs import changed, check_unchanged, near, no_column
from bessemer.data.sources.lines import read_lines
from bessemer.data.sources.megatron import read_megatron
from bessemer.data.sources.parts import Input, Part, Record, Wanted
from bessemer.data.sources.rows_csv import read_csv
from bessemer.data.sources.values import MISSING
from bessemer.errors import DataError

__all__ = ["MISSING", "Record", "Wanted", "format_of", "read_part", "read_records"]

_BY_SUFFIX = {
    "tokens": {".idx": "megatron", ".parquet": "parquet"},
    "huggingface": {".arrow": "arrow", ".jsonl": "jsonl", ".json": "jsonl", ".csv": "csv"},
}
_OTHERWISE = {"tokens": "jsonl", "huggingface": "parquet"}


def format_of(kind: str, entry: Input) -> str:
    """How a file of rows is written: its source's kind, or where that has several, by its name."""
    if kind not in _BY_SUFFIX:
        return kind
    return _BY_SUFFIX[kind].get(PurePosixPath(entry.name).suffix, _OTHERWISE[kind])


def read_part(wanted: Wanted, part: Part) -> Iterator[Record]:
    """The rows of a part of one file (with ready tokens, of an index and its .bin)."""
    return _READERS[format_of(wanted.kind, part.inputs[0])](wanted, part)


def read_records(wanted: Wanted, entry: Input) -> Iterator[Record]:
    """All rows of a file."""
    return read_part(wanted, Part((entry,)))


def _sql(wanted: Wanted, part: Part) -> Iterator[Record]:
    """One row a result row, of the wanted columns only: no other column is read from the database."""
    (entry,) = part.inputs
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
    raise no_column(wanted.what, where, name, known)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _num_bytes(values: Sequence[Any]) -> int:
    """UTF-8 bytes of the texts in a row."""
    texts = (
        value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass") for value in values
    )
    return sum(map(len, texts))


_READERS: dict[str, Callable[[Wanted, Part], Iterator[Record]]] = {
    "jsonl": read_lines,
    "csv": read_csv,
    "parquet": read_parquet,
    "arrow": read_arrow,
    "megatron": read_megatron,
    "sql": _sql,
}
