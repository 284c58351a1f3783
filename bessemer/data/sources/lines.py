"""Rows of JSON lines: one a line, also of a range of a file that begins at a line.

A blank line is a row whose fields are empty texts. A line above LARGEST_BYTES is an error and is passed
over in blocks; so is a shorter one that would become millions of values, each of them 20 times as large
in memory as in its line.
Cost: 240 MB/s a core, most of it Python's own JSON reader (pieces of 4 kB of Python sources, with their
line ends escaped); lists of tokens 77 MB/s.
"""

import io
import json
from collections.abc import Iterator
from typing import Any

from bessemer.data.sources.parts import LARGEST_BYTES, Input, Part, Record, Wanted
from bessemer.data.sources.streams import Broken, open_stream
from bessemer.data.sources.values import MISSING

_SKIP_BYTES = 1 << 20
_FIRST_LINES = 100
_MOST_VALUES = 8 << 20
_LONG_BYTES = 16 << 20  # shorter lines cannot hold too many values


def read_lines(wanted: Wanted, part: Part, most_bytes: int = LARGEST_BYTES) -> Iterator[Record]:
    """The rows of a part of one file."""
    (entry,) = part.inputs
    at, number = part.begin, part.first_row
    with open_stream(entry, wanted.what, part.begin) as stream:
        try:
            while part.end is None or at < part.end:
                line = stream.readline(most_bytes + 1)
                if not line:
                    return
                place, num_bytes = f"{entry.name}:{number}", len(line)
                if num_bytes > most_bytes and not line.endswith(b"\n"):
                    num_bytes += _skip_line(stream)
                    yield Record.failed(place, wanted, "too_large", num_bytes)
                else:
                    yield _record(wanted, place, line)
                at, number = at + num_bytes, number + 1
        except Broken as broken:
            yield Record.failed(f"{entry.name}:{number}", wanted, broken.reason)


def first_fields(wanted: Wanted, entry: Input) -> list[str] | None:
    """The fields of the first row that is an object; None where none of the first lines is one."""
    with open_stream(entry, wanted.what) as stream:
        try:
            for _ in range(_FIRST_LINES):
                row = _object(stream.readline(LARGEST_BYTES))
                if row is not None:
                    return list(row)
        except Broken:
            pass  # told as a row when it is read
    return None


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _skip_line(stream: io.BufferedReader) -> int:
    """Read to the end of the line. Returns how many bytes that were."""
    skipped = 0
    while block := stream.readline(_SKIP_BYTES):
        skipped += len(block)
        if block.endswith(b"\n"):
            break
    return skipped


def _record(wanted: Wanted, place: str, line: bytes) -> Record:
    if line.isspace():
        return Record(place, ("",) * len(wanted.columns), len(line))
    if len(line) > _LONG_BYTES and sum(map(line.count, (b",", b"[", b"{"))) > _MOST_VALUES:
        return Record.failed(place, wanted, "too_large", len(line))
    try:
        row = json.loads(line.removeprefix(b"\xef\xbb\xbf").decode("utf-8"))
    except UnicodeDecodeError:
        return Record.failed(place, wanted, "undecodable", len(line))
    except (ValueError, RecursionError):
        return Record.failed(place, wanted, "unparsable", len(line))
    if wanted.kind == "tokens" and isinstance(row, list):
        row = {wanted.columns[0]: row}
    if not isinstance(row, dict):
        return Record.failed(place, wanted, "unparsable", len(line))
    return Record(place, tuple([row.get(name, MISSING) for name in wanted.columns]), len(line))
