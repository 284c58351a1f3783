"""An HTTP answer as it lies in a WARC record: its head, and its body with every coding taken off.

Archives hold what went over the wire, or what was left after a tool had taken codings off and kept the
headers; so a body that does not begin as its coding says is taken as it is. What begins so and then
breaks is `corrupt`. However small the answer, its body is never inflated beyond LARGEST_BYTES.
Cost: gzip 480 MB/s, brotli 680 MB/s of text (one core).
Source: RFC 9110 and 9112.
"""

import io
import re
import zlib
from dataclasses import dataclass

from fastwarc.stream_io import BrotliReader, ZstdReader

from bessemer.data.sources.cuts import GZIP_MAGIC, ZSTD_MAGIC
from bessemer.data.sources.parts import LARGEST_BYTES
from bessemer.data.sources.streams import Broken

_MOST_HEAD_BYTES = 1 << 20
_STATUS = re.compile(rb"HTTP/\d(?:\.\d)?[ \t]+(\d{3})\b")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_CHUNK_HEAD = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r?\n")
_CHARSET = re.compile(r"""charset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_ZLIB_ANY, _ZLIB_RAW = 47, -15  # wbits: a gzip or a zlib header, none


@dataclass(frozen=True)
class Answer:
    status: int
    content_type: str  # lower case, without parameters; "" where none is named
    charset: str | None
    codings: tuple[str, ...]  # of the body, in the order they were put on
    raw_body: bytes

    def body(self) -> bytes:
        """Without its codings. Broken: corrupt, too_large, encoding (unknown)."""
        body = self.raw_body
        for coding in reversed(self.codings):
            body = _without(coding, body)
        return body


def parse_answer(block: bytes) -> Answer:
    """Broken("corrupt") where it is no HTTP answer."""
    status = _STATUS.match(block)
    if status is None:
        raise Broken("corrupt")
    end = _HEAD_END.search(block, 0, _MOST_HEAD_BYTES)
    head = block[: end.start()] if end else block[:_MOST_HEAD_BYTES]
    fields = _fields(head)
    declared = fields.get("content-type", "")
    names = [*fields.get("content-encoding", "").split(","), *fields.get("transfer-encoding", "").split(",")]
    found = _CHARSET.search(declared)
    return Answer(
        status=int(status[1]),
        content_type=media_type(declared),
        charset=found[1] if found else None,
        codings=tuple(name for name in (name.strip().lower() for name in names) if name),
        raw_body=block[end.end() :] if end else b"",
    )


def media_type(declared: str) -> str:
    return declared.split(";")[0].strip().lower()


def _fields(head: bytes) -> dict[str, str]:
    """Names in lower case; of several with one name the last, but codings are added up."""
    fields: dict[str, str] = {}
    for line in head.decode("latin-1").splitlines()[1:]:
        name, colon, value = line.partition(":")
        name = name.strip().lower()
        if not colon:
            continue
        if name.endswith("-encoding") and name in fields:
            value = f"{fields[name]},{value}"
        fields[name] = value.strip()
    return fields


def _without(coding: str, body: bytes) -> bytes:
    if coding in ("identity", "none"):
        return body
    if coding == "chunked":
        return _unchunked(body)
    if coding in ("gzip", "x-gzip"):
        return _inflated(body, _ZLIB_ANY) if body.startswith(GZIP_MAGIC) else body
    if coding == "deflate":  # by the standard with zlib's header; some servers leave it out
        return _deflated(body)
    if coding == "br":
        return _read_bounded(BrotliReader(io.BytesIO(body))) if body else body
    if coding == "zstd":
        return _read_bounded(ZstdReader(io.BytesIO(body))) if body.startswith(ZSTD_MAGIC) else body
    raise Broken("encoding")


def _unchunked(body: bytes) -> bytes:
    head = _CHUNK_HEAD.match(body)
    if head is None:
        return body
    chunks: list[bytes] = []
    while head is not None:
        size = int(head[1], 16)
        if size == 0:
            return b"".join(chunks)
        begin, end = head.end(), head.end() + size
        if end > len(body):
            break
        chunks.append(body[begin:end])
        line_break = 2 if body.startswith(b"\r\n", end) else 1 if body.startswith(b"\n", end) else 0
        head = _CHUNK_HEAD.match(body, end + line_break) if line_break else None
    raise Broken("corrupt")


def _deflated(body: bytes) -> bytes:
    for wbits in (_ZLIB_ANY, _ZLIB_RAW):
        try:
            return _inflated(body, wbits)
        except Broken as broken:
            if broken.reason == "too_large":
                raise
    raise Broken("corrupt")


def _inflated(body: bytes, wbits: int) -> bytes:
    """All members, one after another; what follows the last one is dropped."""
    pieces: list[bytes] = []
    left = LARGEST_BYTES + 1
    while not pieces or body.startswith(GZIP_MAGIC):
        inflate = zlib.decompressobj(wbits)
        try:
            pieces.append(inflate.decompress(body, left))
        except zlib.error as error:
            raise Broken("corrupt") from error
        left -= len(pieces[-1])
        if left <= 0:
            raise Broken("too_large")
        if not inflate.eof:
            raise Broken("corrupt")
        body = inflate.unused_data
    return b"".join(pieces)


def _read_bounded(stream: BrotliReader | ZstdReader) -> bytes:
    try:
        body: bytes = stream.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise Broken("corrupt") from error
    if len(body) > LARGEST_BYTES:
        raise Broken("too_large")
    return body
