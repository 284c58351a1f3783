"""The documents of a recipe's sources, one row after another, in the order of file names.

A row is one file (text, code, html), one line (jsonl, tokens) or one result row (csv, sql). Each row
comes out either as a document or with the reason why it is none; `build` counts them, so that what
went in equals what was kept, refused and unreadable.
HTML: the main content as resiliparse finds it, or all text where it finds none (13 times as fast as
trafilatura at similar quality of text).
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from resiliparse.extract.html2text import extract_plain_text

from bessemer.data.sources.inputs import find_inputs, open_input
from bessemer.data.sources.parts import Document, Input
from bessemer.data.sources.records import MISSING, Record, Wanted, read_records
from bessemer.errors import DataError
from bessemer.recipe.schema import Source

FILE_KINDS = ("text", "code", "html")


def source_inputs(source: Source, base: Path) -> list[Input]:
    return find_inputs(what(source), source.path or "", base)


def what(source: Source) -> str:
    """What errors call it."""
    return f"source {source.name!r}"


def documents(source: Source, inputs: Sequence[Input]) -> Iterator[Document]:
    """Every row of the source. `inputs`: as source_inputs listed and hashed them."""
    for entry in inputs:
        if source.kind in FILE_KINDS:
            yield _file(source, entry)
            continue
        wanted = wanted_columns(source)
        for record in read_records(wanted, entry):
            yield _row(source, wanted, record)


def wanted_columns(source: Source) -> Wanted:
    text = source.text
    if source.kind == "tokens" and "text" not in source.model_fields_set:
        text = "tokens"
    columns = [text, *(name for name in (source.id, source.group) if name is not None)]
    return Wanted(what(source), source.kind, columns, source.table, source.query)


def usable_text(value: Any) -> tuple[str | None, str | None]:
    """(text, None), or (None, the reason why this value is no text)."""
    if value is MISSING or value is None:
        return None, "missing"
    if not isinstance(value, str):
        return None, "not_text"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # lone surrogates: escaped in JSON, or bytes that were not UTF-8
        return None, "undecodable"
    return value.replace("\r\n", "\n"), None


def _file(source: Source, entry: Input) -> Document:
    with open_input(entry, what(source)) as file:
        try:
            content = file.read()
        except OSError as error:
            raise DataError(
                f"{what(source)}: cannot read {entry.path}",
                found=error.strerror or str(error),
                wanted="a file that can be read to its end",
                fix="check the disk, then run the same command again",
            ) from error
    group = PurePosixPath(entry.name).name.split(".")[0] if source.group == "stem" else None
    text, error_name = _decoded(content, is_html=source.kind == "html")
    return Document(entry.name, group, len(content), text=text, error=error_name)


def _decoded(content: bytes, *, is_html: bool) -> tuple[str | None, str | None]:
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        return None, "undecodable"
    if "\0" in text:  # valid UTF-8, but no file of text has it
        return None, "binary"
    if not is_html:
        return text, None
    try:
        return html_text(text), None
    except (ValueError, RuntimeError):
        return None, "unparsable"


def html_text(page: str) -> str:
    """The text of a web page, without navigation, with its paragraphs."""
    text = extract_plain_text(page, main_content=True, preserve_formatting=True)
    if not text.strip():
        text = extract_plain_text(page, preserve_formatting=True)
    lines = [line.replace("\xa0", " ").rstrip() for line in text.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


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


def label(fields: dict[str, Any], column: str | None) -> tuple[str | None, str | None]:
    """An id or a group as text. Whole numbers are common ids; anything else would be a guess."""
    if column is None:
        return None, None
    value = fields[column]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value), None
    return usable_text(value)


def _token_list(value: Any) -> tuple[list[int] | None, str | None]:
    if value is MISSING or value is None:
        return None, "missing"
    if value == "":  # a blank line
        return [], None
    whole = isinstance(value, list) and all(type(token) is int and token >= 0 for token in value)
    return (value, None) if whole else (None, "not_tokens")
