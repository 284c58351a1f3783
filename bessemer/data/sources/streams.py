"""The bytes of an input, unpacked where they are packed (gzip, Zstandard: told by their first bytes).

Whatever is packed is unpacked in blocks: how much comes out is known to nobody beforehand, so readers
hold no row above LARGEST_BYTES. What is wrong with the packed bytes is `Broken`, with the reason, and
whoever reads counts it; what is wrong with the disk or the network is a DataError.
Cost: gzip 430 MB/s, Zstandard 1.4 GB/s of unpacked text (one core).
"""

import gzip
import io
import zlib
from typing import Any, BinaryIO

import pyarrow as pa

from bessemer.data.sources.cuts import GZIP_MAGIC, ZSTD_MAGIC
from bessemer.data.sources.inputs import open_input, unfinished
from bessemer.data.sources.parts import LARGEST_BYTES, Input

_BLOCK_BYTES = 1 << 20
_ZSTD_BYTES = 64 << 10


class Broken(Exception):
    """What was read so far is good, and nothing more comes. The reason is one word."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Source(io.RawIOBase):
    """A file whose failing disk or network is a DataError, however it is read."""

    def __init__(self, file: BinaryIO, entry: Input, what: str) -> None:
        self._file, self._entry, self._what = file, entry, what

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(place, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, into: Any) -> int:
        try:
            block = self._file.read(len(into))
        except OSError as error:
            raise unfinished(self._what, self._entry, error) from error
        into[: len(block)] = block
        return len(block)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Unpacked(io.RawIOBase):
    def __init__(self, packed: io.BufferedReader, magic: bytes) -> None:
        self._packed = packed
        # Both read little at a time: what was unpacked in the same call before an error would be lost.
        if magic.startswith(GZIP_MAGIC):
            self._read: Any = gzip.GzipFile(fileobj=packed).read1
        else:
            unpack = pa.CompressedInputStream(pa.PythonFile(packed, mode="r"), "zstd")
            self._read = lambda size: unpack.read(min(size, _ZSTD_BYTES))

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        try:
            block = self._read(len(into))
        except EOFError as error:
            raise Broken("truncated") from error
        except (OSError, zlib.error) as error:  # those of the disk are DataErrors already
            raise Broken("truncated" if "Truncated" in str(error) else "corrupt") from error
        into[: len(block)] = block
        return len(block)

    def close(self) -> None:
        self._packed.close()
        super().close()


def open_plain(entry: Input, what: str) -> io.BufferedReader:
    """The bytes as they are, whatever they begin with. It can seek where the file can."""
    return io.BufferedReader(_Source(open_input(entry, what), entry, what), _BLOCK_BYTES)


def open_stream(entry: Input, what: str, begin: int = 0) -> io.BufferedReader:
    """From byte `begin`, which only a file that is not packed may have."""
    file = open_input(entry, what)
    if begin:
        file.seek(begin)
    stream: io.BufferedReader = io.BufferedReader(_Source(file, entry, what), _BLOCK_BYTES)
    try:
        magic = b"" if begin else stream.peek(4)
    except BaseException:
        stream.close()
        raise
    if not magic.startswith((GZIP_MAGIC, ZSTD_MAGIC)):
        return stream
    return io.BufferedReader(_Unpacked(stream, magic), _BLOCK_BYTES)


def open_arrow(entry: Input, what: str) -> Any:
    """For Arrow's own readers, which go to and fro in it."""
    return pa.PythonFile(_Source(open_input(entry, what), entry, what), mode="r")


def read_whole(entry: Input, what: str, most_bytes: int = LARGEST_BYTES) -> bytes:
    """All bytes of a file. Above `most_bytes` it is Broken, and what is not packed is not even read."""
    with open_stream(entry, what) as stream:
        if not isinstance(stream.raw, _Unpacked) and entry.size_bytes > most_bytes:
            raise Broken("too_large")
        content = stream.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise Broken("too_large")
    return content
