"""The documents of a recipe's sources, one row after another.

Readers of databases, books and crawls are imported when there is such a source: their libraries take half a
second, and every worker of a build starts with this file.

A row is one file (text, code, html), one line (jsonl, tokens) or one row of a table. Each comes out
either as a document or with the reason why it is none; a file that cannot be read at all is one such
row. Whoever reads counts them, so that what went in equals what was kept, refused and unreadable.

    missing, not_text, not_tokens   a field that is absent or something else
    undecodable, binary             bytes that are no text: not UTF-8 (or UTF-16 with its mark), or with NUL
    unparsable                      a line, record or page that breaks its format
    too_large                       above LARGEST_BYTES; it was never held in memory
    truncated, corrupt              what is behind this place of a packed or binary file is lost
    wrong_columns                   a file that lacks columns which others of its source have
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from bessemer.data.sources.cutting import cut
from bessemer.data.sources.huggingface import find_dataset
from bessemer.data.sources.inputs import WrongColumns, find_inputs
from bessemer.data.sources.megatron import index_path, with_tokens
from bessemer.data.sources.pages import html_text, page_text
from bessemer.data.sources.parts import (
    PART_BYTES,
    Begins,
    Document,
    Input,
    Part,
    Record,
    Wanted,
    none_left_out,
    wanted_columns,
    what,
)
from bessemer.data.sources.records import format_of, read_part
from bessemer.data.sources.streams import Broken, read_whole
from bessemer.data.sources.values import MISSING, usable_text
from bessemer.data.sources.values import usable_label as _usable_label
from bessemer.recipe.schema import Source

__all__ = [
    "FILE_KINDS",
    "documents",
    "html_text",
    "label",
    "read",
    "source_inputs",
    "usable_text",
    "wanted_columns",
    "what",
]

FILE_KINDS = ("text", "code", "html")
_MOST_TOKEN = 2**31 - 1  # as tokens are stored
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def source_inputs(source: Source, base: Path, cut_bytes: int = PART_BYTES) -> list[Input]:
    path = source.path or ""
    if source.kind == "sql":
        from bessemer.data.sources.sql import sql_inputs

        return sql_inputs(source, base)
    if source.kind == "huggingface":
        return find_dataset(what(source), path, base, cut_bytes)
    if source.kind == "tokens":
        found = find_inputs(what(source), index_path(path, base), base, "jsonl", cut_bytes)
        return with_tokens(what(source), found)
    return find_inputs(what(source), path, base, source.kind, cut_bytes)


def documents(source: Source, inputs: Sequence[Input]) -> Iterator[Document]:
    """Every row of the source, or its first `limit` ones. `inputs`: as source_inputs listed them."""
    rows = (document for part in cut(source, inputs) for document in read(source, part))
    return islice(rows, source.limit)


def read(source: Source, part: Part, begins: Begins = none_left_out) -> Iterator[Document]:
    """The rows of a part, in order."""
    if source.kind in (*FILE_KINDS, "books"):
        rows = _file_by_file(source, part, begins)
    elif source.kind == "warc":
        from bessemer.data.sources.warc import read_warc

        rows = read_warc(source, part, begins)
    elif source.kind == "sql":
        from bessemer.data.sources.sql import read_sql

        rows = read_sql(source, part)
    else:
        rows = _read_rows(source, part)
    return islice(rows, part.most_rows)


def _file_by_file(source: Source, part: Part, begins: Begins) -> Iterator[Document]:
    reader = _read_files
    if source.kind == "books":
        from bessemer.data.sources.books import read_books

        reader = read_books
    for place, entry in enumerate(part.inputs):
        reason = begins(place)
        if reason is not None:
            yield Document(entry.name, None, entry.size_bytes, error=reason)
        else:
            yield from reader(source, replace(part, inputs=(entry,)))


def label(fields: dict[str, Any], column: str | None) -> tuple[str | None, str | None]:
    """An id or a group as text."""
    return (None, None) if column is None else _usable_label(fields[column])


def _read_files(source: Source, part: Part) -> Iterator[Document]:
    for entry in part.inputs:
        group = PurePosixPath(entry.name).name.split(".")[0] if source.group == "stem" else None
        try:
            content = read_whole(entry, what(source))
        except Broken as broken:
            yield Document(entry.name, group, entry.size_bytes, error=broken.reason)
            continue
        text, error = page_text(content) if source.kind == "html" else _decoded(content)
        yield Document(entry.name, group, len(content), text=text, error=error)


def _decoded(content: bytes) -> tuple[str | None, str | None]:
    encoding = "utf-16" if content.startswith(_UTF16_MARKS) else "utf-8-sig"
    try:
        text = content.decode(encoding).replace("\r\n", "\n")
    except UnicodeDecodeError:
        return None, "undecodable"
    if "\0" in text:  # valid, but no file of text has it
        return None, "binary"
    return text, None


def _read_rows(source: Source, part: Part) -> Iterator[Document]:
    wanted = wanted_columns(source)
    for entry_part in _one_by_one(source, part):
        try:
            for record in read_part(wanted, entry_part):
                yield _row(source, wanted, record)
        except WrongColumns:  # `cut` saw to it that another file of the source has them
            if entry_part.begin == 0:  # once for a file, however it was cut
                yield Document(entry_part.inputs[0].name, None, 0, error="wrong_columns")


def _one_by_one(source: Source, part: Part) -> Iterator[Part]:
    """Whole files apart, so that what is wrong with one does not end the others."""
    if len(part.inputs) == 1 or format_of(source.kind, part.inputs[0]) == "megatron":
        yield part
    else:
        yield from (Part((entry,)) for entry in part.inputs)


def _row(source: Source, wanted: Wanted, record: Record) -> Document:
    fields = dict(zip(wanted.columns, record.values, strict=True))
    own_id, id_error = label(fields, source.id)
    group, group_error = label(fields, source.group)
    text, tokens, error = None, None, record.error
    if error is None and source.kind == "tokens":
        tokens, error = _token_list(fields[wanted.columns[0]])
    elif error is None:
        text, error = usable_text(fields[wanted.columns[0]])
    error = error or id_error or group_error
    if error is not None:
        text, tokens = None, None
    identity = own_id if own_id is not None else record.place
    return Document(identity, group, record.num_bytes, text, tokens, error, own_id is not None)


def _token_list(value: Any) -> tuple[list[int] | None, str | None]:
    if value is MISSING or value is None:
        return None, "missing"
    if isinstance(value, np.ndarray):
        good = len(value) == 0 or _is_tokens(value)
        return (value.astype(np.int64).tolist(), None) if good else (None, "not_tokens")
    if value == "" or value == []:  # a blank line
        return [], None
    good = isinstance(value, list) and set(map(type, value)) == {int}
    return (value, None) if good and min(value) >= 0 and max(value) <= _MOST_TOKEN else (None, "not_tokens")


def _is_tokens(numbers: Any) -> bool:
    whole = numbers.dtype.kind in "iu" or bool((np.floor(numbers) == numbers).all())  # NaN equals nothing
    return bool(whole and numbers.min() >= 0 and numbers.max() <= _MOST_TOKEN)
