"""Token files in Megatron-LM's format, version 1: `.bin` holds tokens, `.idx` where documents begin.

    .idx: b"MMIDIDX\\0\\0", version u64, type u8, sequences u64, entries u64,
          sizes int32[sequences] (tokens), pointers int64[sequences] (bytes into .bin),
          entries int64[entries] (the sequence that each document begins with, and the number of all)

Written here: each document one sequence, uint16 where the vocabulary allows it, else int32 (the format
has no uint32; a token is never so large that it matters). Read: any integer type, documents of several
sequences, and modes behind the entries, which are left aside. Read through a memory map: a row costs a
page fault, not a copy of the file.
Several shards are read as one stream (`Stream`), without joining their files.
Source: megatron/core/datasets/indexed_dataset.py.
"""

import struct
from array import array
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, final

import numpy as np

from bessemer.durable import cannot_write
from bessemer.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
TYPES: dict[int, type[np.integer[Any]]] = {
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    8: np.uint16,
}
_FIX = "prepare this data again: `bessemer data build`, or the tool that wrote the files"
Tokens = np.ndarray[tuple[int], np.dtype[Any]]
Offsets = np.ndarray[Any, np.dtype[np.int64]]


class ShardWriter:
    """Writes `<stem>.bin`, and on leaving without an exception `<stem>.idx`."""

    def __init__(self, stem: Path, vocab: int) -> None:
        self._path, self._index = shard_file(stem, ".bin"), shard_file(stem, ".idx")
        self._code = 8 if vocab <= 1 << 16 else 4
        self._sizes = array("i")
        try:
            self._file = open(self._path, "wb")  # noqa: SIM115 (closed in __exit__)
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def add(self, tokens: Sequence[int] | Tokens) -> None:
        """One document."""
        self.add_many(np.asarray(tokens), np.array([0, len(tokens)]))

    def add_many(self, tokens: Tokens, offsets: Offsets) -> None:
        """Documents on end: document k is tokens[offsets[k] : offsets[k + 1]]."""
        whole = tokens[offsets[0] : offsets[-1]].astype(TYPES[self._code], copy=False)
        try:
            self._file.write(np.ascontiguousarray(whole).data)
        except OSError as error:
            raise cannot_write(self._path, error) from error
        self._sizes.frombytes(np.diff(offsets).astype(np.int32).tobytes())

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None:
            self._write_index()

    def _write_index(self) -> None:
        sizes = np.frombuffer(self._sizes, dtype=np.int32)
        pointers = np.zeros(len(sizes), dtype=np.int64)
        np.cumsum(sizes[:-1], out=pointers[1:])
        pointers *= np.dtype(TYPES[self._code]).itemsize
        header = HEADER.pack(MAGIC, 1, self._code, len(sizes), len(sizes) + 1)
        entries = np.arange(len(sizes) + 1, dtype=np.int64)
        try:
            self._index.write_bytes(header + sizes.tobytes() + pointers.tobytes() + entries.tobytes())
        except OSError as error:
            raise cannot_write(self._index, error) from error


class Shard:
    """All documents of a file as one stream of tokens. `borders[k]` is where document k begins."""

    def __init__(self, stem: Path) -> None:
        self.stem = stem
        file = shard_file(stem, ".bin")
        self.borders, dtype, size_bytes = _read_index(shard_file(stem, ".idx"))
        try:
            found_bytes = file.stat().st_size
        except OSError as error:
            raise _damaged(file, str(error)) from error
        if found_bytes != size_bytes:
            raise _damaged(file, f"{found_bytes} bytes, where its index tells of {size_bytes}")
        empty = np.zeros(0, dtype=dtype)  # a file without bytes cannot be mapped
        self.tokens: Tokens = np.memmap(file, dtype=dtype, mode="r") if size_bytes else empty

    @property
    def num_documents(self) -> int:
        return len(self.borders) - 1

    def document(self, number: int) -> Tokens:
        return self.tokens[self.borders[number] : self.borders[number + 1]]


@final
class Stream:
    """Shards on end: the tokens, borders and documents of all of them in one numbering.

    A slice inside one shard is a view of its file; one across shards is a copy. Cost: 2 µs a slice.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = tuple(shards)
        self._token_begins = _begins([len(shard.tokens) for shard in shards])
        self._document_begins = _begins([shard.num_documents for shard in shards])
        parts = [
            shard.borders[:-1] + begin for shard, begin in zip(shards, self._token_begins[:-1], strict=True)
        ]
        self.borders: Offsets = np.concatenate([*parts, self._token_begins[-1:]])

    @property
    def tokens(self) -> "Stream":
        """For `stream.tokens[begin:end]` and `len(stream.tokens)`, as of one shard."""
        return self

    def __len__(self) -> int:
        return int(self._token_begins[-1])

    def __getitem__(self, span: slice) -> Tokens:
        begin, end, step = span.indices(len(self))
        assert step == 1, f"step {step}"
        first, inside = self._find(self._token_begins, begin)
        if first < len(self.shards) and inside + end - begin <= len(self.shards[first].tokens):
            return self.shards[first].tokens[inside : inside + max(0, end - begin)]
        parts: list[Tokens] = [np.zeros(0, np.uint16)]
        for number in range(first, len(self.shards)):
            shard_begin = int(self._token_begins[number])
            if shard_begin >= end:
                break
            parts.append(self.shards[number].tokens[max(0, begin - shard_begin) : end - shard_begin])
        return np.concatenate(parts)

    @property
    def num_documents(self) -> int:
        return int(self._document_begins[-1])

    def document(self, number: int) -> Tokens:
        """Raises IndexError beyond the last."""
        shard, inside = self.place(number)
        return self.shards[shard].document(inside)

    def place(self, number: int) -> tuple[int, int]:
        """(shard, number in it) of a document."""
        if not 0 <= number < self.num_documents:
            raise IndexError(f"document {number} of {self.num_documents}")
        return self._find(self._document_begins, number)

    @staticmethod
    def _find(begins: Offsets, place: int) -> tuple[int, int]:
        shard = int(begins.searchsorted(place, "right")) - 1
        return shard, place - int(begins[shard])


def shard_file(stem: Path, suffix: str) -> Path:
    """A stem may have a dot in its name, which Path.with_suffix would cut off."""
    return stem.with_name(stem.name + suffix)


def _read_index(index: Path) -> tuple[Offsets, type[np.integer[Any]], int]:
    """(where documents begin, type of the tokens, bytes that the tokens take)."""
    try:
        content = index.read_bytes()
    except OSError as error:
        raise _damaged(index, str(error)) from error
    magic, version, code, sequences, entries = HEADER.unpack_from(content.ljust(HEADER.size, b"\0"))
    if magic != MAGIC or version != 1 or code not in TYPES:
        raise DataError(
            f"{index} is not an index of tokens",
            found=f"magic {magic!r}, version {version}, type {code}",
            wanted="Megatron's MMIDIDX, version 1, integers",
            fix=_FIX,
        )
    if len(content) < HEADER.size + 12 * sequences + 8 * entries:
        raise _damaged(index, f"{len(content)} bytes for {sequences} sequences and {entries} entries")
    sizes = np.frombuffer(content, np.int32, sequences, HEADER.size)
    places = np.frombuffer(content, np.int64, sequences, HEADER.size + 4 * sequences)
    documents = np.frombuffer(content, np.int64, entries, HEADER.size + 12 * sequences)
    begins, width = _begins(sizes), np.dtype(TYPES[code]).itemsize
    if (sizes < 0).any() or not np.array_equal(places, begins[:-1] * width):
        raise _damaged(index, "sequences that do not lie on end")
    ends = [int(documents[0]), int(documents[-1])] if entries else []
    if ends != [0, sequences] or (np.diff(documents) < 0).any():
        raise _damaged(index, f"documents {ends} of {sequences} sequences, or out of order")
    return begins[documents], TYPES[code], int(begins[-1]) * width


def _begins(sizes: Sequence[int] | np.ndarray[Any, np.dtype[Any]]) -> Offsets:
    begins = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=begins[1:])
    return begins


def _damaged(path: Path, found: str) -> DataError:
    return DataError(f"{path} cannot be read", found=found, wanted="the pair that was written", fix=_FIX)
