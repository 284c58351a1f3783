"""Token files in Megatron-LM's format, version 1: `.bin` holds tokens, `.idx` where documents begin.

    .idx: b"MMIDIDX\\0\\0", version u64, type u8, documents u64, entries u64,
          sizes int32[documents] (tokens), pointers int64[documents] (bytes into .bin),
          entries int64[documents + 1] (0 … documents: each sequence is a document of its own)

Tokens are uint16 where the vocabulary allows it, else int32 (the format has no uint32; a token is never
so large that it matters). Read through a memory map: a row costs a page fault, not a copy of the file.
Source: megatron/core/datasets/indexed_dataset.py.
"""

import struct
from array import array
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from bessemer.durable import cannot_write
from bessemer.errors import DataError

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_TYPES: dict[int, type[np.integer[Any]]] = {8: np.uint16, 4: np.int32}
Tokens = np.ndarray[tuple[int], np.dtype[Any]]


class ShardWriter:
    """Writes `<stem>.bin`, and on leaving without an exception `<stem>.idx`."""

    def __init__(self, stem: Path, vocab: int) -> None:
        self._stem, self._code = stem, 8 if vocab <= 1 << 16 else 4
        self._sizes = array("i")
        try:
            self._file = open(stem.with_suffix(".bin"), "wb")  # noqa: SIM115 (closed in __exit__)
        except OSError as error:
            raise cannot_write(stem.with_suffix(".bin"), error) from error

    def add(self, tokens: Sequence[int] | Tokens) -> None:
        """One document."""
        try:
            self._file.write(np.asarray(tokens, dtype=_TYPES[self._code]).tobytes())
        except OSError as error:
            raise cannot_write(self._stem.with_suffix(".bin"), error) from error
        self._sizes.append(len(tokens))

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
        pointers *= np.dtype(_TYPES[self._code]).itemsize
        header = _HEADER.pack(_MAGIC, 1, self._code, len(sizes), len(sizes) + 1)
        entries = np.arange(len(sizes) + 1, dtype=np.int64)
        path = self._stem.with_suffix(".idx")
        try:
            path.write_bytes(header + sizes.tobytes() + pointers.tobytes() + entries.tobytes())
        except OSError as error:
            raise cannot_write(path, error) from error


class Shard:
    """All documents of a split as one stream of tokens. `borders[k]` is where document k begins."""

    def __init__(self, stem: Path) -> None:
        index, file = stem.with_suffix(".idx"), stem.with_suffix(".bin")
        header = index.read_bytes()
        magic, version, code, documents, _ = _HEADER.unpack_from(header)
        if magic != _MAGIC or version != 1 or code not in _TYPES:
            raise DataError(
                f"{index} is not an index of tokens",
                found=f"magic {magic!r}, version {version}, type {code}",
                wanted="Megatron's MMIDIDX, version 1, uint16 or int32",
                fix="remove the folder of this data and prepare it again with `bessemer data build`",
            )
        sizes = np.frombuffer(header, dtype=np.int32, count=documents, offset=_HEADER.size)
        self.borders = np.zeros(documents + 1, dtype=np.int64)
        np.cumsum(sizes, out=self.borders[1:])
        empty = np.zeros(0, dtype=_TYPES[code])  # a file without bytes cannot be mapped
        self.tokens: Tokens = np.memmap(file, dtype=_TYPES[code], mode="r") if file.stat().st_size else empty
        assert len(self.tokens) == self.borders[-1], f"{file}: {len(self.tokens)} tokens"

    @property
    def num_documents(self) -> int:
        return len(self.borders) - 1

    def document(self, number: int) -> Tokens:
        return self.tokens[self.borders[number] : self.borders[number + 1]]
