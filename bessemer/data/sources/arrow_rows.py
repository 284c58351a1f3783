"""Rows of Parquet files and of Arrow streams: the wanted columns only, a batch at a time.

What is wrong with a file (broken, another schema) is one error for that file; what is wrong with a value
is one for its row. Bytes that are not UTF-8 in a column of texts stay visible as lone surrogates.
Cost: Parquet 310 MB/s of text a core, Arrow streams 480 (pieces of 4 kB; Zstandard pages).
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bessemer.data.sources.inputs import WrongColumns, check_unchanged, no_column, place_of
from bessemer.data.sources.parts import LARGEST_BYTES, Input, Part, Record, Wanted
from bessemer.data.sources.streams import open_arrow
from bessemer.data.sources.values import MISSING

UNREADABLE = (pa.ArrowException, OSError, MemoryError)  # the disk's own errors are DataErrors
_BATCH_BYTES, _BATCH_ROWS = 8 << 20, 4096
_BUFFER_BYTES = 1 << 20


def read_parquet(wanted: Wanted, part: Part) -> Iterator[Record]:
    """The rows of a run of row groups. Columns that it lacks are WrongColumns."""
    (entry,) = part.inputs
    number = part.first_row
    with open_arrow(entry, wanted.what) as source:
        try:
            file = open_parquet(source)
            check_schema(wanted, entry, file.schema_arrow)
            groups = range(part.begin, file.num_row_groups if part.end is None else part.end)
            for group in groups:
                batches = file.iter_batches(
                    batch_size=_batch_rows(file.metadata.row_group(group), wanted.columns),
                    row_groups=[group],
                    columns=list(dict.fromkeys(wanted.columns)),
                    use_threads=False,
                )
                for batch in batches:
                    yield from _records(wanted, entry, batch, number)
                    number += batch.num_rows
        except UNREADABLE:
            yield Record.failed(f"{entry.name}:{number}", wanted, "corrupt")


def open_parquet(source: Any) -> Any:
    return pq.ParquetFile(source, buffer_size=_BUFFER_BYTES, pre_buffer=False)


def read_arrow(wanted: Wanted, part: Part) -> Iterator[Record]:
    """The rows of a run of batches of an Arrow stream, a local file as `datasets` saves it."""
    (entry,) = part.inputs
    number = part.first_row
    check_unchanged(entry, wanted.what)
    try:
        with pa.memory_map(str(entry.path)) as source, pa.ipc.open_stream(source) as stream:
            check_schema(wanted, entry, stream.schema)
            for place, batch in enumerate(stream):
                if part.end is not None and place >= part.end:
                    return
                if place < part.begin:  # only its head was read
                    continue
                for begin in range(0, batch.num_rows, _BATCH_ROWS):
                    yield from _records(wanted, entry, batch.slice(begin, _BATCH_ROWS), number + begin)
                number += batch.num_rows
    except UNREADABLE:
        yield Record.failed(f"{entry.name}:{number}", wanted, "corrupt")


def schema_of(wanted: Wanted, entry: Input, *, is_stream: bool) -> pa.Schema | None:
    """Of a file of Parquet or an Arrow stream; None where it cannot be read."""
    try:
        if is_stream:
            with pa.memory_map(str(entry.path)) as source, pa.ipc.open_stream(source) as stream:
                return stream.schema
        with open_arrow(entry, wanted.what) as source:
            return open_parquet(source).schema_arrow
    except UNREADABLE:
        return None


def class_names_in(schema: pa.Schema, column: str) -> list[str] | None:
    """What the numbers in a column stand for, as `datasets` keeps it beside a table (ClassLabel)."""
    try:
        info = json.loads((schema.metadata or {})[b"huggingface"])
        feature = info["info"]["features"][column]
        return [str(name) for name in feature["names"]] if feature["_type"] == "ClassLabel" else None
    except (KeyError, TypeError, ValueError):
        return None


def check_schema(wanted: Wanted, entry: Input, schema: pa.Schema) -> None:
    """WrongColumns where one is missing or cannot be what it is wanted for."""
    for place, name in enumerate(wanted.columns):
        if schema.get_field_index(name) < 0:
            raise no_column(wanted.what, place_of(entry), name, schema.names)
        kind = schema.field(name).type
        if wanted.any_type:
            continue
        if place == 0 and wanted.kind == "tokens":
            good = _is_list(kind) and pa.types.is_integer(kind.value_type)
        else:
            good = _is_text(kind) or (place > 0 and not pa.types.is_nested(kind))
        if not good:
            raise WrongColumns(
                f"{wanted.what}: column {name!r} of {place_of(entry)} cannot be read as wanted",
                found=f"its type is {str(kind)[:200]}",
                wanted="lists of whole numbers" if wanted.kind == "tokens" and place == 0 else "text",
                fix="name another column in the recipe, or write the file again with that type",
            )


def _batch_rows(group: Any, columns: Sequence[str]) -> int:
    """Rows whose wanted columns take about _BATCH_BYTES."""
    size = max(1, wanted_bytes(group, columns))
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES * group.num_rows // size))


def wanted_bytes(group: Any, columns: Sequence[str]) -> int:
    """What these columns of a row group take in memory, about."""
    chunks = [group.column(number) for number in range(group.num_columns)]
    return sum(
        chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns
    )


def _records(wanted: Wanted, entry: Input, batch: pa.RecordBatch, number: int) -> Iterator[Record]:
    found = [batch.column(batch.schema.get_field_index(name)) for name in wanted.columns]
    columns = [_values(column, any_type=wanted.any_type) for column in found]
    # What is no text has no size of its own in each row: then the mean is told.
    plain = _is_text(found[0].type) or not wanted.any_type
    sizes = _sizes(found[0]) if plain else [batch.nbytes // max(1, len(batch))] * len(batch)
    for place, (values, size) in enumerate(zip(zip(*columns, strict=True), sizes, strict=True), number):
        if size > LARGEST_BYTES:
            yield Record.failed(f"{entry.name}:{place}", wanted, "too_large", size)
        else:
            yield Record(f"{entry.name}:{place}", values, size)


def _values(column: pa.Array, *, any_type: bool) -> list[Any]:
    if _is_list(column.type) and not any_type:
        return _token_arrays(column)
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        values = [_surrogates(value) for value in column.cast(pa.large_binary()).to_pylist()]
    return [MISSING if value is None else value for value in values] if column.null_count else values


def _surrogates(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "surrogateescape")


def _token_arrays(column: pa.Array) -> list[Any]:
    """Of lists of whole numbers: an array for each, MISSING for none, a list where a number is missing."""
    lists = column.cast(pa.large_list(column.type.value_type))
    if lists.values.null_count:
        return [MISSING if value is None else value for value in lists.to_pylist()]
    numbers, borders = np.asarray(lists.values), lists.offsets.to_pylist()
    spans = zip(borders[:-1], borders[1:], lists.is_valid().to_pylist(), strict=True)
    return [numbers[begin:end] if is_there else MISSING for begin, end, is_there in spans]


def _sizes(column: pa.Array) -> list[int]:
    """Bytes of each text or list."""
    if _is_list(column.type):
        lengths = pc.multiply(pc.list_value_length(column), column.type.value_type.byte_width)
    elif pa.types.is_dictionary(column.type):
        lengths = pc.binary_length(column.cast(column.type.value_type))
    elif pa.types.is_string_view(column.type):
        lengths = pc.binary_length(column.cast(pa.large_string()))
    else:
        lengths = pc.binary_length(column)
    return list(pc.fill_null(lengths, 0).to_pylist())


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
