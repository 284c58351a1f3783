"""Rows of CSV files, also of a range of a file that begins at a record.

Where a record ends is told by the same code that finds the cuts, so that parts of a file give what the
whole gives; Python's strict reader takes each apart. Bytes that are not UTF-8 stay visible as lone
surrogates. The first record is the header; every part reads it again.
Cost: 145 MB/s a core (pieces of 4 kB of Python sources; the reader goes through every character).
"""

import csv
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress

from bessemer.data.sources.cuts import BOM, RecordEnds
from bessemer.data.sources.inputs import no_column, place_of
from bessemer.data.sources.parts import LARGEST_BYTES, Input, Part, Record, Wanted
from bessemer.data.sources.streams import Broken, open_stream
from bessemer.data.sources.values import MISSING

_BLOCK_BYTES = 1 << 20
_BLANK = (b"", b"\r", b"\n", b"\r\n")


def read_csv(wanted: Wanted, part: Part, most_bytes: int = LARGEST_BYTES) -> Iterator[Record]:
    """The rows of a part of one file. A column that it lacks is WrongColumns."""
    csv.field_size_limit(sys.maxsize)  # records are bounded already
    (entry,) = part.inputs
    number = part.first_row
    try:
        places = _places(wanted, entry, most_bytes)
        records = _records(wanted, part, most_bytes)
        if part.begin == 0:
            next(records, None)  # the header
        for record, num_bytes in records:
            place = f"{entry.name}:{number}"
            if record is None:
                yield Record.failed(place, wanted, "too_large", num_bytes)
            else:
                yield _row(wanted, places, place, record)
            number += 1
    except Broken as broken:
        yield Record.failed(f"{entry.name}:{number}", wanted, broken.reason)


def check_columns(wanted: Wanted, entry: Input) -> None:
    """WrongColumns where the file lacks a wanted one. A file without a header is not looked at."""
    with suppress(Broken):
        _places(wanted, entry, LARGEST_BYTES)


def header_of(wanted: Wanted, entry: Input) -> list[str] | None:
    """The names in the first record; None where it cannot be read."""
    try:
        header, _ = next(_records(wanted, Part((entry,)), LARGEST_BYTES), (b"", 0))
        return _fields(header) if header else None
    except (Broken, csv.Error):
        return None


def _places(wanted: Wanted, entry: Input, most_bytes: int) -> list[int]:
    """Where the wanted columns are in a row. None in a file without a header."""
    header, _ = next(_records(wanted, Part((entry,)), most_bytes), (b"", 0))
    if header is None:
        raise Broken("too_large")
    if not header:
        return []
    try:
        names = _fields(header)
    except csv.Error:
        names = []
    for name in wanted.columns:
        if name not in names:
            raise no_column(wanted.what, place_of(entry), name, names)
    return [names.index(name) for name in wanted.columns]


def _records(wanted: Wanted, part: Part, most_bytes: int) -> Iterator[tuple[bytes | None, int]]:
    """(a record that is no blank line, its bytes), None for one above `most_bytes`."""
    ends, held, held_at, dropped = RecordEnds(), bytearray(), 0, 0
    with open_stream(part.inputs[0], wanted.what, part.begin) as stream:
        left = sys.maxsize if part.end is None else part.end - part.begin
        if part.begin == 0 and stream.peek(len(BOM)).startswith(BOM):
            left -= len(stream.read(len(BOM)))
        while block := stream.read1(min(_BLOCK_BYTES, left)):
            left -= len(block)
            held += block
            begin = held_at
            for end, is_row in zip(*map(list, ends.feed(block)), strict=True):
                if is_row:
                    size = dropped + int(end) - begin
                    yield (None if size > most_bytes else bytes(held[begin - held_at : end - held_at])), size
                begin, dropped = int(end), 0
            del held[: begin - held_at]
            held_at = begin
            if len(held) > most_bytes:  # its beginning is dropped, its end will tell
                dropped, held_at = dropped + len(held), held_at + len(held)
                held.clear()
        if dropped or bytes(held[:3]) not in _BLANK:
            size = dropped + len(held)
            yield (None if size > most_bytes else bytes(held)), size


def _row(wanted: Wanted, places: Sequence[int], place: str, record: bytes) -> Record:
    try:
        row = _fields(record)
    except csv.Error:
        return Record.failed(place, wanted, "unparsable", len(record))
    values = tuple([row[column] if column < len(row) else MISSING for column in places])
    return Record(place, values, len(record))


def _fields(record: bytes) -> list[str]:
    return next(csv.reader((record.decode("utf-8", "surrogateescape"),), strict=True))
