"""Cuts a source into parts: the same parts on every machine, and nearly the same when files come or go.

Files of lines are cut where `inputs` noted that they may be, Parquet files between row groups, Arrow
streams between batches, ready tokens between documents; what is packed cannot be cut. Small files are
put together in order of their names. Where a part of them begins is decided by each name for itself
(the larger a file, the likelier), so that adding or removing one file changes the part that it is in,
or splits or joins two, and leaves all others and whatever was computed for them as they are.
`limit`: parts that are known to lie beyond it are left out; what reads the parts still counts.
Cost: of Parquet, Arrow and Megatron files heads and footers are read, of CSV a header; 60,000 small files
take 0.6 s.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import xxhash

from bessemer.data.sources import megatron
from bessemer.data.sources.arrow_rows import UNREADABLE, check_schema, open_parquet, wanted_bytes
from bessemer.data.sources.inputs import WrongColumns, open_input, unfinished
from bessemer.data.sources.parts import PART_BYTES, Input, Part, Wanted, wanted_columns, what
from bessemer.data.sources.records import format_of
from bessemer.data.sources.rows_csv import check_columns
from bessemer.data.sources.streams import open_arrow
from bessemer.recipe.schema import Source

_MOST_FILES, _MOST_GROWTH = 4096, 4  # files in a part; bytes in one, in PART_BYTES
_FILE_BYTES = 8 << 10  # what a file costs besides its bytes, in bytes of reading
_PACKED = (".gz", ".zst")
_UNPACKED_TIMES = 8  # as large as that, by experience with texts
_HASHES = 1 << 64


@dataclass(frozen=True)
class _Piece:
    """A part, or a whole file that may share one with others."""

    part: Part
    num_rows: int | None  # None: not known before it is read
    num_bytes: int | None = None  # None: a part of its own


def cut(source: Source, inputs: Sequence[Input], part_bytes: int = PART_BYTES) -> list[Part]:
    """In order of the inputs. Columns that no file of the source has are a DataError."""
    if source.kind == "sql":
        from bessemer.data.sources.sql import sql_parts  # half a second, for those who have a database

        return sql_parts(source, list(inputs))
    pieces: list[_Piece] = []
    together: list[_Piece] = []
    for piece in _pieces(source, inputs, part_bytes):
        if piece.num_bytes is None or piece.num_bytes >= part_bytes:
            pieces += [*_grouped(together, part_bytes), piece]
            together = []
        else:
            together.append(piece)
    pieces += _grouped(together, part_bytes)
    return list(_limited(pieces, source.limit))


def _limited(pieces: Sequence[_Piece], limit: int | None) -> Iterator[Part]:
    before = 0
    for piece in pieces:
        if limit is None:
            yield piece.part
        elif before < limit:
            yield replace(piece.part, most_rows=limit - before)
            before += piece.num_rows or 0


def _grouped(files: Sequence[_Piece], part_bytes: int) -> Iterator[_Piece]:
    """Whole files together. A file begins a part if the hash of its name is below its share of one."""
    together: list[_Piece] = []
    for file in files:
        share = _weight(file) / part_bytes
        if together and _hash(file) < share * _HASHES:
            yield from _bounded(together, part_bytes)
            together = []
        together.append(file)
    if together:
        yield from _bounded(together, part_bytes)


def _bounded(files: list[_Piece], part_bytes: int) -> Iterator[_Piece]:
    """One part, or where that would be too much, several: cut at the lowest hash, which rarely changes."""
    sizes = sum(map(_weight, files))
    if len(files) == 1 or (len(files) <= _MOST_FILES and sizes <= _MOST_GROWTH * part_bytes):
        rows = [file.num_rows for file in files]
        known = None if None in rows else sum(number or 0 for number in rows)
        yield _Piece(Part(tuple(file.part.inputs[0] for file in files)), known)
        return
    place = min(range(1, len(files)), key=lambda number: _hash(files[number]))
    yield from _bounded(files[:place], part_bytes)
    yield from _bounded(files[place:], part_bytes)


def _weight(file: _Piece) -> int:
    return (file.num_bytes or 0) + _FILE_BYTES


def _hash(file: _Piece) -> int:
    return int(xxhash.xxh3_64_intdigest(file.part.inputs[0].name.encode()))


def _pieces(source: Source, inputs: Sequence[Input], part_bytes: int) -> Iterator[_Piece]:
    wanted, wrong, is_right = wanted_columns(source), None, False
    listed = iter(inputs)
    pieces: list[_Piece] = []
    for entry in listed:
        kind = format_of(source.kind, entry)
        try:
            if kind == "megatron":
                pieces += _documents_of(wanted, entry, next(listed), part_bytes)
            elif kind == "parquet":
                pieces += _row_groups(wanted, entry, part_bytes)
            elif kind == "arrow":
                pieces += _batches(wanted, entry, part_bytes)
            elif kind in ("jsonl", "csv", "warc"):
                if kind == "csv" and not is_right:
                    check_columns(wanted, entry)
                pieces += _lines(_with_records(source, entry, part_bytes), part_bytes)
            else:
                pieces.append(_whole(entry, 1))
            is_right = True
        except WrongColumns as error:
            wrong = wrong or error
            pieces.append(_whole(entry, 1))
    if wrong is not None and not is_right:
        raise wrong
    yield from pieces


def _whole(entry: Input, num_rows: int | None, num_bytes: int | None = None) -> _Piece:
    if num_bytes is None:
        num_bytes = entry.size_bytes * (_UNPACKED_TIMES if entry.name.endswith(_PACKED) else 1)
    return _Piece(Part((entry,)), num_rows, num_bytes)


def _with_records(source: Source, entry: Input, part_bytes: int) -> Input:
    """A crawl with its cuts. Only a walk through all of it tells them, so small files are left whole."""
    if source.kind != "warc" or entry.url is not None or entry.size_bytes < 2 * part_bytes:
        return entry
    from bessemer.data.sources.warc import warc_cuts

    with open_input(entry, what(source)) as file:
        try:
            return replace(entry, cuts=warc_cuts(file, part_bytes))
        except OSError as error:
            raise unfinished(what(source), entry, error) from error


def _lines(entry: Input, part_bytes: int) -> Iterator[_Piece]:
    if not entry.cuts:
        yield _whole(entry, None)
        return
    *cuts, (size, past) = entry.cuts
    begin, first = 0, 1
    for byte, number in cuts:
        if byte - begin >= part_bytes:
            yield _Piece(Part((entry,), begin, byte, first), number - first)
            begin, first = byte, number
    if begin:
        yield _Piece(Part((entry,), begin, None, first), past - first)
    else:
        yield _whole(entry, past - first, size)


def _row_groups(wanted: Wanted, entry: Input, part_bytes: int) -> Iterator[_Piece]:
    with open_arrow(entry, wanted.what) as source:
        try:
            file = open_parquet(source)
            groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
            sizes = [(group.num_rows, wanted_bytes(group, wanted.columns)) for group in groups]
            schema = file.schema_arrow
        except UNREADABLE:
            yield _whole(entry, 1)
            return
    check_schema(wanted, entry, schema)
    yield from _runs(entry, sizes, part_bytes)


def _batches(wanted: Wanted, entry: Input, part_bytes: int) -> Iterator[_Piece]:
    try:
        with pa.memory_map(str(entry.path)) as source, pa.ipc.open_stream(source) as stream:
            schema: Any = stream.schema
            sizes = [(batch.num_rows, batch.nbytes) for batch in stream]
    except UNREADABLE:
        yield _whole(entry, None)
        return
    check_schema(wanted, entry, schema)
    yield from _runs(entry, sizes, part_bytes)


def _runs(entry: Input, sizes: Sequence[tuple[int, int]], part_bytes: int) -> Iterator[_Piece]:
    """Runs of blocks, each (rows, bytes), of about part_bytes."""
    begin, first, rows, size = 0, 1, 0, 0
    for place, (num_rows, num_bytes) in enumerate(sizes):
        if rows and size + num_bytes > part_bytes:
            yield _Piece(Part((entry,), begin, place, first), rows)
            begin, first, rows, size = place, first + rows, 0, 0
        rows, size = rows + num_rows, size + num_bytes
    if begin:
        yield _Piece(Part((entry,), begin, len(sizes), first), rows)
    else:
        yield _whole(entry, rows, size)


def _documents_of(wanted: Wanted, index: Input, tokens: Input, part_bytes: int) -> Iterator[_Piece]:
    """Of a pair of files; as many documents in each part, whatever their lengths."""
    megatron.check_columns(wanted, index)
    num_documents = megatron.read_head(wanted.what, index, tokens).num_documents
    each = max(1, num_documents * part_bytes // max(1, tokens.size_bytes))
    for begin in range(0, num_documents, each):
        end = min(begin + each, num_documents)
        yield _Piece(Part((index, tokens), begin, end, begin + 1), end - begin)
