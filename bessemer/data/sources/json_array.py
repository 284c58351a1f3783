"""Rows of a JSON file that holds one array, as `json.dump` writes it: an element a row, a file of any size.

The text is decoded in blocks, and Python's own reader takes one element after another out of it, so memory
holds a block and an element. An element that breaks JSON's rules is an error row, as long as its quotes and
brackets close: they tell where the next one begins. Where they do not, nobody can tell, and what is no array
at all has no rows: both are a DataError that says what is there.
Cost: 110 MB/s a core where JSON lines of the same rows take 140 (alpaca's, indented; 60,000 of 0.9 kB).
"""

import codecs
import io
import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from bessemer.data.sources.inputs import place_of
from bessemer.data.sources.parts import Input, Part, Record, Wanted
from bessemer.data.sources.streams import Broken, open_stream
from bessemer.data.sources.values import MISSING
from bessemer.errors import DataError

_BLOCK_BYTES = 1 << 20
_MOST_CHARACTERS = 64 << 20  # of an element: in memory it takes up to 20 times that
_FIRST_ELEMENTS = 100
_FIELDS_SHOWN = 5
_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\r\n]*")
_MARKS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*("?)|[\[\]{},]', re.DOTALL)  # whole strings, and what nests
_BROKEN = object()


def read_array(wanted: Wanted, part: Part) -> Iterator[Record]:
    """The elements of a file, which is one part."""
    (entry,) = part.inputs
    number = 0
    with open_stream(entry, wanted.what) as stream:
        try:
            for number, (value, num_bytes) in enumerate(_elements(stream, wanted, entry), 1):
                place = f"{entry.name}:{number}"
                if isinstance(value, dict):
                    fields = tuple([value.get(name, MISSING) for name in wanted.columns])
                    yield Record(place, fields, num_bytes)
                else:
                    yield Record.failed(place, wanted, "unparsable", num_bytes)
        except Broken as broken:
            yield Record.failed(f"{entry.name}:{number + 1}", wanted, broken.reason)


def fields_of_array(wanted: Wanted, entry: Input) -> list[str] | None:
    """The fields of the first element that is an object; None where none of the first ones is."""
    with open_stream(entry, wanted.what) as stream:
        try:
            for value, _ in islice(_elements(stream, wanted, entry), _FIRST_ELEMENTS):
                if isinstance(value, dict):
                    return list(value)
        except Broken:
            pass  # told as a row when it is read
    return None


def holds_array(wanted: Wanted, entry: Input) -> bool:
    """Whether a file that was taken for JSON lines begins like an array of objects."""
    with open_stream(entry, wanted.what) as stream:
        text = _Text(stream)
        try:
            if text.peek() != "[":
                return False
            text.at += 1
            return text.peek() == "{"
        except Broken:
            return False


def _elements(stream: io.BufferedReader, wanted: Wanted, entry: Input) -> Iterator[tuple[Any, int]]:
    """(value, or _BROKEN; its bytes) of each."""
    text, number = _Text(stream), 0
    if text.peek() != "[":
        raise _no_array(text, wanted, entry)
    text.at += 1
    while text.peek() != "]":
        number += 1
        found = text.element()
        if found is None:
            raise _no_end(text, number, wanted, entry)
        yield found
        text.at += text.peek() == ","
    text.at += 1
    if text.peek():
        raise _not_one(
            wanted,
            entry,
            f"{text.text[text.at : text.at + 20]!r} behind its array, in line {text.line:,}",
            "write the arrays to files of their own, or join them",
        )


class _Text:
    """The part of a file that is decoded: it grows at its end, and what was read of it is dropped."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream = stream
        # Bytes that are not UTF-8 stay visible in their element as lone surrogates.
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._broken: Broken | None = None
        self._lines, self._is_all = 1, False
        self.text, self.at = "", 0

    @property
    def line(self) -> int:
        return self._lines + self.text.count("\n", 0, self.at)

    def peek(self) -> str:
        """The next character that is no space; empty at the end of the file."""
        while True:
            self.at = _space_end(self.text, self.at)
            if self.at < len(self.text) or not self._grow():
                return self.text[self.at : self.at + 1]

    def element(self) -> tuple[Any, int] | None:
        """(value, or _BROKEN; its bytes), and goes behind it. None: it has no end."""
        while True:
            value, end = self._decoded()
            if end is not None:
                size = len(self.text[self.at : end].encode("utf-8", "surrogateescape"))
                self.at = end
                return value, size
            if len(self.text) - self.at > _MOST_CHARACTERS or not self._grow():
                return None

    def _decoded(self) -> tuple[Any, int | None]:
        """(value, its end), or (_BROKEN, the mark behind it); no end: it is not in the text yet."""
        try:
            value, end = _DECODER.raw_decode(self.text, self.at)
            # Only what stands behind it tells a number from the beginning of one.
            if self.text[(behind := _space_end(self.text, end)) : behind + 1] in (",", "]"):
                return value, end
        except (ValueError, RecursionError):
            pass
        return _BROKEN, _mark_behind(self.text, self.at)

    def _grow(self) -> bool:
        """False at the end of the file. An element is read anew with every growth, so each doubles it."""
        if self._broken is not None:
            raise self._broken
        if self._is_all:
            return False
        self._lines += self.text.count("\n", 0, self.at)
        self.text, self.at = self.text[self.at :], 0
        missing, blocks = max(_BLOCK_BYTES, len(self.text)), []
        try:
            while missing > 0 and not self._is_all:
                block = self._stream.read1(missing)
                missing -= len(block)
                self._is_all = not block
                blocks.append(block)
        except Broken as broken:
            self._broken = broken  # what came before it is good
        self.text += self._decoder.decode(b"".join(blocks), final=self._is_all)
        return True


def _space_end(text: str, begin: int) -> int:
    found = _SPACE.match(text, begin)
    assert found is not None, "an expression that may be empty matches anywhere"
    return found.end()


def _mark_behind(text: str, begin: int) -> int | None:
    """Where the comma or bracket is that ends an element which may be broken; None: not in this text."""
    depth = 0
    for found in _MARKS.finditer(text, begin):
        mark = found[0]
        if mark[0] == '"':
            if not found[1]:  # the string goes on
                return None
        elif mark in "[{":
            depth += 1
        elif depth == 0 and mark != "}":
            return found.start()
        elif mark in "]}" and depth:
            depth -= 1
    return None


def _no_array(text: _Text, wanted: Wanted, entry: Input) -> DataError:
    try:
        value, end = _DECODER.raw_decode(text.text, text.at)
    except (ValueError, RecursionError):
        value, end = None, len(text.text)
    if isinstance(value, dict) and text.text[(behind := _space_end(text.text, end)) : behind + 1] == "{":
        return _not_one(wanted, entry, "one object behind the other: JSON lines", 'set kind = "jsonl"')
    fix = "write the list of rows to a file of its own"
    if isinstance(value, dict):
        return _not_one(wanted, entry, f"an object with {', '.join(list(value)[:_FIELDS_SHOWN])}", fix)
    begins = text.text[text.at : text.at + 20]
    return _not_one(wanted, entry, f"text that begins with {begins!r}" if begins else "an empty file", fix)


def _no_end(text: _Text, number: int, wanted: Wanted, entry: Input) -> DataError:
    return _not_one(
        wanted,
        entry,
        f"element {number:,} begins in line {text.line:,} and has no end: a quote or bracket is missing "
        "there, or the rest of the file",
        f"mend it, or write the file again: {text.text[text.at : text.at + 40]!r}",
    )


def _not_one(wanted: Wanted, entry: Input, found: str, fix: str) -> DataError:
    return DataError(
        f"{wanted.what}: {place_of(entry)} is not one array of JSON",
        found=found,
        wanted='[{"field": "text", …}, …]',
        fix=fix,
    )
