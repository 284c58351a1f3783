"""Rows of files of rows, of which only the named columns are taken: one reader for each format.

A row that cannot be used is still a row: it comes with the reason in `error`, so that whoever counts
loses none. What is wrong with a whole file (not a database, no such column) is a DataError.
"""

from collections.abc import Callable, Generator, Iterator
from pathlib import PurePosixPath

from bessemer.data.sources.arrow_rows import class_names_in, read_arrow, read_parquet, schema_of
from bessemer.data.sources.json_array import fields_of_array, read_array
from bessemer.data.sources.lines import first_fields, read_lines
from bessemer.data.sources.megatron import read_megatron
from bessemer.data.sources.parts import Input, Part, Record, Wanted
from bessemer.data.sources.rows_csv import header_of, read_csv
from bessemer.data.sources.values import MISSING

__all__ = [
    "MISSING",
    "Record",
    "Wanted",
    "class_names",
    "columns_of",
    "format_of",
    "read_part",
    "read_records",
]

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


def read_records(wanted: Wanted, entry: Input) -> Generator[Record, None, None]:
    """All rows of a file. Close it where not all are read: it may hold a file or a session open."""
    yield from read_part(wanted, Part((entry,)))


def columns_of(wanted: Wanted, entry: Input) -> list[str] | None:
    """The columns of a file; of JSON, the fields of its first row. None: it cannot be told."""
    kind = format_of(wanted.kind, entry)
    if kind == "sql":
        from bessemer.data.sources.sql import columns_of as columns_of_database

        return columns_of_database(wanted, entry)
    if kind == "jsonl":
        return first_fields(wanted, entry)
    if kind == "json":
        return fields_of_array(wanted, entry)
    if kind == "csv":
        return header_of(wanted, entry)
    schema = schema_of(wanted, entry, is_stream=kind == "arrow")
    return None if schema is None else list(schema.names)


def class_names(wanted: Wanted, entry: Input, column: str) -> list[str] | None:
    """The names that whole numbers in a column stand for, where its file says so."""
    kind = format_of(wanted.kind, entry)
    if kind not in ("arrow", "parquet"):
        return None
    schema = schema_of(wanted, entry, is_stream=kind == "arrow")
    return None if schema is None else class_names_in(schema, column)


def _sql(wanted: Wanted, part: Part) -> Iterator[Record]:
    from bessemer.data.sources.sql import read_sql_records  # half a second, for those who have a database

    return read_sql_records(wanted, part)


_READERS: dict[str, Callable[[Wanted, Part], Iterator[Record]]] = {
    "jsonl": read_lines,
    "json": read_array,
    "csv": read_csv,
    "parquet": read_parquet,
    "arrow": read_arrow,
    "megatron": read_megatron,
    "sql": _sql,
}
