"""Files between the stages of a build: Arrow IPC, a row a document, the same rows in the same order in each.

    read     id, group, own_id, origin, num_bytes, error, text or tokens: as they came from the source
    clean    text (null where cleaning left it as it was), error, size_bytes, pii.*, and the keys that decide
    …        one file a measure: signals, language, minhash, contamination, quality

A file appears whole or not at all, so that a build that was killed goes on where it was. Buffers are
compressed: texts take a third of their size. A reader names the columns that it needs; others are not
even read from the disk.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bessemer.data.sources.parts import Document
from bessemer.durable import atomic_file

BATCH_BYTES = 4_000_000
_BATCH_ROWS = 4096
_COMPRESSED = pa.ipc.IpcWriteOptions(compression="zstd")
READ_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("group", pa.string()),
        ("own_id", pa.bool_()),
        ("origin", pa.string()),
        ("num_bytes", pa.int64()),
        ("error", pa.string()),
        ("text", pa.large_string()),
        ("tokens", pa.large_list(pa.int32())),
    ]
)


@contextmanager
def batch_writer(path: Path, schema: pa.Schema) -> Iterator[Any]:
    with atomic_file(path) as file, pa.ipc.new_file(file, schema, options=_COMPRESSED) as writer:
        yield writer


def write_batches(path: Path, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
    with batch_writer(path, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def map_batches(
    path: Path, batches: Iterable[pa.RecordBatch], schema: pa.Schema, function: Callable[[Any], Any]
) -> None:
    """Write `function` of each batch. It must give as many rows as it gets. `schema`: of what it gets."""
    empty = pa.RecordBatch.from_pylist([], schema=schema)
    write_batches(path, (same_rows(function(batch), batch) for batch in batches), function(empty).schema)


def read_batches(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """In order; only the named columns, or all."""
    with pa.OSFile(str(path)) as file:
        options = None
        if columns is not None:
            schema = pa.ipc.open_file(file).schema
            options = pa.ipc.IpcReadOptions(
                included_fields=[schema.get_field_index(name) for name in columns]
            )
        reader = pa.ipc.open_file(file, options=options)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


def column_names(path: Path) -> list[str]:
    return list(_schema(path).names)


def _schema(path: Path) -> pa.Schema:
    with pa.OSFile(str(path)) as file:
        return pa.ipc.open_file(file).schema


def read_columns(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Whole columns of a file: for those of few bytes a row."""
    batches = list(read_batches(path, columns))
    if not batches:
        schema = _schema(path)
        names = schema.names if columns is None else columns
        return schema.empty_table().select(list(names))
    return pa.Table.from_batches(batches).combine_chunks()


def document_batches(documents: Iterable[Document]) -> Iterator[pa.RecordBatch]:
    """Of READ_SCHEMA, about BATCH_BYTES each: what a measure works on at once."""
    rows: list[Document] = []
    size = 0
    for document in documents:
        rows.append(document)
        size += len(document.text or "") + 4 * len(document.tokens or ())
        if size > BATCH_BYTES or len(rows) == _BATCH_ROWS:
            yield _batch(rows)
            rows, size = [], 0
    if rows:
        yield _batch(rows)


def read_texts(read: Path, clean: Path, *more: str) -> Iterator[pa.RecordBatch]:
    """`text` as cleaning left it (null: none), and more columns of the read file."""
    raw, changed = read_batches(read, ["text", *more]), read_batches(clean, ["text"])
    for first, second in zip(raw, changed, strict=True):
        yield pa.record_batch(
            [pc.coalesce(second["text"], first["text"]), *(first[name] for name in more)],
            names=["text", *more],
        )


def _batch(rows: Sequence[Document]) -> pa.RecordBatch:
    columns = {
        "id": [row.id for row in rows],
        "group": [row.group for row in rows],
        "own_id": [row.has_own_id for row in rows],
        "origin": [row.origin for row in rows],
        "num_bytes": [row.num_bytes for row in rows],
        "error": [row.error for row in rows],
        "text": [row.text for row in rows],
        "tokens": [row.tokens for row in rows],
    }
    arrays = [pa.array(columns[field.name], field.type) for field in READ_SCHEMA]
    return pa.record_batch(arrays, schema=READ_SCHEMA)


def same_rows(made: pa.RecordBatch, given: pa.RecordBatch) -> pa.RecordBatch:
    assert made.num_rows == given.num_rows, f"{given.num_rows} rows became {made.num_rows}"
    return made
