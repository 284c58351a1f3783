"""The records of a WARC file, each with the byte at which it begins, and what is broken between them.

Files as crawlers write them have a gzip member for each record. Each member is given to fastwarc as a
stream of its own, so that a record whose Content-Length lies cannot swallow those behind it, so that a
member that is cut off or damaged is noticed (fastwarc alone takes the first for the end of the file and
stops at the second), and so that reading goes on at the next member. Plain files and Zstandard are one
stream; after a break in a plain one reading goes on at the next line that begins a record.
Where a record begins is known only by reading from the beginning: a page that is itself a WARC looks the
same from inside. So files are cut by walking through them.
Cost: 17 µs a record, and 425 MB/s of inflated records; fastwarc alone does twice that and more.
Source: https://iipc.github.io/warc-specifications/specifications/warc-format/warc-1.1/
"""

import io
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from fastwarc.stream_io import ZstdReader
from fastwarc.warc import ArchiveIterator, HeaderMap, WarcRecord, WarcRecordType

from bessemer.data.sources.cuts import GZIP_MAGIC, ZSTD_MAGIC
from bessemer.data.sources.streams import Broken

_BLOCK_BYTES = 1 << 16
_MOST_BREAKS = 100  # then the rest is left: a file made to break costs no more searches than that
_DICTIONARY_MAGIC = b"\x5d\x2a\x4d\x18"  # a Zstandard file whose first frame is its dictionary
_MEMBER_START = re.compile(rb"\x1f\x8b\x08[\x00-\x1f]")
_RECORD_START = re.compile(rb"(?<=\r\n\r\n)WARC/1\.")
_OVERLAP_BYTES = 16  # longer than both
_HEAD_BYTES = 4096  # of a gzip member: enough to inflate its first word


@dataclass(frozen=True)
class Break:
    reason: str  # truncated, corrupt
    in_record: bool  # the record told before it is the broken one; else it is one that was not told


class Record:
    """A record that is being read."""

    def __init__(self, record: WarcRecord) -> None:
        self.kind: WarcRecordType = record.record_type
        self.length: int = record.content_length
        self.headers: HeaderMap = record.headers
        self._record, self._num_read = record, 0

    def read(self) -> bytes:
        """All of it, or as much as there is."""
        block: bytes = self._record.reader.read()
        self._num_read += len(block)
        return block

    def skip_rest(self) -> bool:
        """Whether it was as long as it says."""
        skipped: int = self._record.consume()
        return self._num_read + skipped == self.length


Found = tuple[int, Record | Break]


def warc_records(file: BinaryIO, begin: int = 0, end: int | None = None) -> Iterator[Found]:
    """Those that begin in [begin, end), in order. `begin`: 0, or the place of a record.

    The place of a record in a gzip member is that of the member; in a Zstandard file it is 0.
    A record must be used before the next one is asked for. The file must be able to seek.
    """
    source = _Source(file)
    source.seek(begin)
    magic = source.peek(4)
    if magic.startswith(GZIP_MAGIC):
        yield from _of_members(source, end)
    elif magic.startswith((ZSTD_MAGIC, _DICTIONARY_MAGIC)):
        for _, found in _of_stream(ZstdReader(source)):
            yield begin, found
    else:
        yield from _of_plain(source, end)


def _of_stream(stream: io.RawIOBase | ZstdReader) -> Iterator[Found]:
    """Up to the first break, if there is one. Places are those of the stream."""
    place: int = stream.tell()
    record: Record | None = None
    try:
        for found in ArchiveIterator(stream, parse_http=False):
            place, record = found.stream_pos, Record(found)
            yield place, record
            if not record.skip_rest():
                yield place, Break("truncated", in_record=True)
                return
        return
    except Broken as broken:
        reason = broken.reason
    except OSError as error:
        if error.errno is not None:  # of the disk or the network; fastwarc's own have none
            raise
        reason = "corrupt"
    yield place, Break(reason, in_record=record is not None)


def _of_members(source: "_Source", end: int | None) -> Iterator[Found]:
    num_breaks = 0
    source.skip_zeros()
    while num_breaks < _MOST_BREAKS and source.peek(1) and (end is None or source.tell() < end):
        start, member = source.tell(), _Member(source)
        is_broken = not GZIP_MAGIC.startswith(source.peek(2))
        if is_broken:
            yield start, Break("corrupt", in_record=False)
        else:
            for _, found in _of_stream(member):
                yield start, found
                is_broken = is_broken or isinstance(found, Break)
        num_breaks += is_broken
        if not member.skip_rest():
            source.search(_MEMBER_START, start + 1, _holds_a_record)
        source.skip_zeros()  # some writers fill up their last block


def _of_plain(source: "_Source", end: int | None) -> Iterator[Found]:
    for _ in range(_MOST_BREAKS):
        place, record, broken = source.tell(), None, None
        for place, found in _of_stream(source):
            if end is not None and place >= end:
                return
            if isinstance(found, Record):
                record = found
                yield place, found
            else:
                broken = found
        behind = _behind(source, place, record)
        if broken is None and behind is not None and not source.peek(_BLOCK_BYTES).strip(b"\r\n"):
            return
        # fastwarc says nothing of a record that is cut off in its header.
        reason = broken.reason if broken else "truncated"
        ends_well = behind is not None and record is not None and source.peek(4) == b"\r\n\r\n"
        if behind is not None and ends_well:
            place = behind + 4
        yield place, Break(reason, in_record=record is not None and not ends_well)
        if not source.search(_RECORD_START, place + 1):
            return


def _behind(source: "_Source", place: int, record: Record | None) -> int | None:
    """Goes to where this record ends by its own word; None where not even its header ends."""
    source.seek(place)
    if record is None:
        return place
    head_bytes = source.peek(_BLOCK_BYTES).find(b"\r\n\r\n") + 4
    behind = min(place + head_bytes + record.length, source.num_bytes())
    return source.seek(behind) if head_bytes >= 4 else None


def _holds_a_record(member: bytes) -> bool:
    try:
        return zlib.decompressobj(31).decompress(member, 5) == b"WARC/"
    except zlib.error:
        return False


class _Source(io.RawIOBase):
    """A file of which bytes can be looked at before they are read."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file, self._ahead, self._at = file, b"", 0

    def tell(self) -> int:
        return self._at

    def num_bytes(self) -> int:
        """Of the whole file; seek afterwards."""
        return self._file.seek(0, 2)

    def seek(self, place: int, whence: int = 0) -> int:
        assert whence == 0, whence
        self._at, self._ahead = self._file.seek(place), b""
        return place

    def read(self, size: int = _BLOCK_BYTES) -> bytes:
        block = self._ahead or self._file.read(max(size, _BLOCK_BYTES))
        block, self._ahead = block[:size], block[size:]
        self._at += len(block)
        return block

    def give_back(self, block: bytes) -> None:
        """What was read last."""
        self._ahead, self._at = block + self._ahead, self._at - len(block)

    def peek(self, size: int) -> bytes:
        while len(self._ahead) < size and (block := self._file.read(_BLOCK_BYTES)):
            self._ahead += block
        return self._ahead[:size]

    def skip_zeros(self) -> None:
        while self.peek(1) == b"\0":
            block = self.read()
            self.give_back(block.lstrip(b"\0"))

    def search(self, start: re.Pattern[bytes], after: int, is_true: Callable[[bytes], bool] = bool) -> bool:
        """To the first true start at `after` or behind it; else to the end."""
        place = after
        while True:
            self.seek(place)
            window = self.peek(_BLOCK_BYTES)
            for found in start.finditer(window):
                self.seek(place + found.start())
                if is_true(self.peek(_HEAD_BYTES)):
                    return True
            if len(window) < _BLOCK_BYTES:
                self.seek(place + len(window))
                return False
            place += len(window) - _OVERLAP_BYTES


class _Member(io.RawIOBase):
    """What one gzip member inflates to. Broken where it does not, also if asked again."""

    def __init__(self, source: _Source) -> None:
        super().__init__()
        self._source, self._inflate, self._at = source, zlib.decompressobj(31), 0
        self._broken: Broken | None = None

    def tell(self) -> int:
        return self._at

    def read(self, size: int = _BLOCK_BYTES) -> bytes:
        if self._broken is not None:
            raise self._broken
        block = b""
        while not block and not self._inflate.eof:
            packed = self._source.read()
            try:
                block = self._inflate.decompress(packed, size)
            except zlib.error:
                self._broken = Broken("corrupt")
                raise self._broken from None
            self._source.give_back(self._inflate.unused_data or self._inflate.unconsumed_tail)
            if not packed and not block and not self._inflate.eof:
                self._broken = Broken("truncated")
                raise self._broken
        self._at += len(block)
        return block

    def skip_rest(self) -> bool:
        """Whether the source stands behind it now."""
        try:
            while self.read():
                pass
        except Broken:
            return False
        return True
