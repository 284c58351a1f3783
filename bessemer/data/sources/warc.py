"""Web pages out of WARC files (a crawl) and WET files (its text, taken out by the crawler).

A row is one response or one conversion; what else is in the file (requests, metadata, revisits) is none.
A response counts as a document if its status is 200 and it is HTML, plain text or PDF; each other one as
an error with its reason: http_status, content_type, encoding (a coding that nobody knows), truncated (by
the crawler, or the file is cut off), corrupt (its digest, its length or a coding is wrong), too_large.
The digest is that of the record's block; what a payload's digest covers, tools do not agree on.
Ids are the records' own; `group = "host"` holds out hosts as a whole, so that no page of one tells about
another.
Cost: 213 records a CPU-second, 18 MB/s (pages of 85 kB, gzip); reading without extraction 5,000 records.
"""

import base64
import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import BinaryIO
from urllib.parse import urlsplit

from fastwarc.warc import WarcRecordType

from bessemer.data.sources.http_answers import media_type, parse_answer
from bessemer.data.sources.inputs import open_input, unfinished
from bessemer.data.sources.pages import page_text, plain_text
from bessemer.data.sources.parts import (
    LARGEST_BYTES,
    PART_BYTES,
    Begins,
    Document,
    Input,
    Part,
    none_left_out,
)
from bessemer.data.sources.pdf import pdf_text
from bessemer.data.sources.streams import Broken
from bessemer.data.sources.warc_records import Break, Record, warc_records
from bessemer.recipe.schema import Source

_ROWS = WarcRecordType.response | WarcRecordType.conversion
_RECORD_ID = re.compile(r"<?(?:urn:uuid:)?([^<>]+)>?")
_DIGESTS = ("sha1", "sha256", "sha512", "md5")
_HTML = ("text/html", "application/xhtml+xml")


def read_warc(source: Source, part: Part, begins: Begins = none_left_out) -> Iterator[Document]:
    """The rows of a part. Its begin and end are places that `warc_cuts` found."""
    rows = count()
    what = f"source {source.name!r}"
    for entry in part.inputs:
        with open_input(entry, what) as file:
            try:
                yield from _rows(file, entry, part, begins, rows, by_host=source.group == "host")
            except OSError as error:
                raise unfinished(what, entry, error) from error


def warc_cuts(file: BinaryIO, every_bytes: int = PART_BYTES) -> tuple[tuple[int, int], ...]:
    """(byte, number of its first row) where parts of about that size may begin; the last is the end.

    Exact, as it walks through the whole file: 480 MB/s of inflated records, a 25th of what reading costs.
    None but the end in a Zstandard file or a gzip file of one member.
    """
    cuts, row, was_row = [(0, 1)], 1, False
    for place, found in warc_records(file):
        if isinstance(found, Break):
            row += not (found.in_record and was_row)
            continue
        if place >= cuts[-1][0] + every_bytes:
            cuts.append((place, row))
        was_row = bool(found.kind & _ROWS)
        row += was_row
    return (*cuts[1:], (file.seek(0, 2), row))


def _rows(
    file: BinaryIO, entry: Input, part: Part, begins: Begins, rows: Iterator[int], *, by_host: bool
) -> Iterator[Document]:
    """A row is held until it is known that it ends where it says."""
    held: Document | None = None
    last, number = -1, 0
    for place, found in warc_records(file, part.begin, part.end):
        number = number + 1 if place == last else 1
        last = place
        here = f"{entry.name}:{place}" if number == 1 else f"{entry.name}:{place}.{number}"
        if isinstance(found, Break):
            if held is not None and found.in_record:
                held = replace(held, text=None, error=found.reason)
                continue
            if held is not None:
                yield held
            held = Document(here, None, 0, error=found.reason)
            continue
        if held is not None:
            yield held
        held = None
        if found.kind & _ROWS:
            reason = begins(next(rows))
            left_out = Document(here, None, 0, error=reason)
            held = left_out if reason is not None else _row(found, here, by_host=by_host)
    if held is not None:
        yield held


def _row(record: Record, place: str, *, by_host: bool) -> Document:
    found = _RECORD_ID.fullmatch((record.headers.get("WARC-Record-ID") or "").strip())
    address = (record.headers.get("WARC-Target-URI") or "").strip(" <>") or None
    group = _host(address) if by_host else None
    text, error = None, None
    try:
        text, error = _text(record)
    except Broken as broken:
        error = broken.reason
    return Document(
        found[1] if found else place,
        group,
        record.length,
        text,
        error=error,
        has_own_id=found is not None,
        origin=address,
    )


def _text(record: Record) -> tuple[str | None, str | None]:
    """Broken where there is none."""
    block = _block(record)
    if record.kind == WarcRecordType.conversion:
        is_text = media_type(record.headers.get("Content-Type") or "") == "text/plain"
        return plain_text(block, "utf-8") if is_text else (None, "content_type")
    if not (record.headers.get("Content-Type") or "").lower().startswith("application/http"):
        return None, "content_type"  # dns:, ftp:
    answer = parse_answer(block)
    if answer.status != 200:
        return None, "http_status"
    kind = answer.content_type or (record.headers.get("WARC-Identified-Payload-Type") or "").lower()
    if kind in _HTML:
        return page_text(answer.body(), answer.charset)
    if kind == "text/plain":
        return plain_text(answer.body(), answer.charset)
    if kind == "application/pdf":
        return pdf_text(answer.body())[:2]
    return None, "content_type"


def _block(record: Record) -> bytes:
    """All bytes of a record that is whole."""
    if record.length > LARGEST_BYTES:
        raise Broken("too_large")
    block = record.read()
    if len(block) != record.length or record.headers.get("Content-Length") is None:
        raise Broken("truncated")
    kind, _, written = (record.headers.get("WARC-Block-Digest") or "").partition(":")
    kind = kind.strip().lower().replace("-", "")
    if kind in _DIGESTS:
        digest = hashlib.new(kind, block, usedforsecurity=False).digest()
        if written.strip().upper() not in _spellings(digest):
            raise Broken("corrupt")
    if record.headers.get("WARC-Truncated"):
        raise Broken("truncated")
    return block


def _spellings(digest: bytes) -> tuple[str, str]:
    """As WARC 1.1 advises, and as some tools do."""
    return base64.b32encode(digest).decode().rstrip("="), digest.hex().upper()


def _host(address: str | None) -> str | None:
    try:
        host = urlsplit(address or "").hostname
    except ValueError:
        return None
    return host.rstrip(".").removeprefix("www.") or None if host else None
