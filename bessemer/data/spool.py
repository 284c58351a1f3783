"""Documents between reading and encoding: texts on disk, a few numbers of each in memory.

What is held out, which duplicate stays and in which order documents are written can only be said once
all are known; their texts need not be in memory for that. About 60 bytes of memory a document.
"""

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from bessemer.durable import cannot_write

Numbers = np.ndarray[tuple[int], np.dtype[Any]]


@dataclass(frozen=True)
class Stored:
    """A document as it comes back. One of text and tokens is set."""

    source: int
    id: str
    group: str | None
    text: str | None
    tokens: list[int] | None


@dataclass(frozen=True)
class Numbered:
    """What decisions are made from, one element a document, in reading order."""

    source: Numbers
    holdout: Numbers  # uint64: hash of what is held out together
    content_high: Numbers  # uint64: hash of the normalised text
    content_low: Numbers

    def __len__(self) -> int:
        return len(self.source)


class Spool:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._ends = array("q", [0])
        self._source, self._is_text = array("i"), array("b")
        self._holdout, self._high, self._low = array("Q"), array("Q"), array("Q")
        try:
            self._file = open(path, "w+b")  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise cannot_write(path, error) from error

    def add(self, document: Stored, normalised: bytes, holdout: int) -> None:
        """`normalised`: documents for which it is equal are duplicates."""
        labels = json.dumps([document.id, document.group]).encode() + b"\n"
        text = document.text
        body = text.encode() if text is not None else np.asarray(document.tokens, dtype=np.int32).tobytes()
        try:
            self._file.write(labels + body)
        except OSError as error:
            raise cannot_write(self._path, error) from error
        self._ends.append(self._ends[-1] + len(labels) + len(body))
        self._source.append(document.source)
        self._is_text.append(text is not None)
        self._holdout.append(holdout)
        content = xxhash.xxh3_128_intdigest(normalised)
        self._high.append(content >> 64)
        self._low.append(content & ((1 << 64) - 1))

    def numbers(self) -> Numbered:
        def view(numbers: "array[int]", kind: type[np.generic]) -> Numbers:
            return np.frombuffer(numbers, dtype=kind) if len(numbers) else np.zeros(0, dtype=kind)

        return Numbered(
            view(self._source, np.int32),
            view(self._holdout, np.uint64),
            view(self._high, np.uint64),
            view(self._low, np.uint64),
        )

    def read(self, numbers: Numbers) -> Iterator[Stored]:
        """The documents of these numbers, in this order."""
        self._file.flush()
        for number in numbers.tolist():
            begin, end = self._ends[number], self._ends[number + 1]
            self._file.seek(begin)
            labels, body = self._file.read(end - begin).split(b"\n", 1)
            name, group = json.loads(labels)
            source = self._source[number]
            if self._is_text[number]:
                yield Stored(source, name, group, body.decode(), None)
            else:
                yield Stored(source, name, group, None, np.frombuffer(body, dtype=np.int32).tolist())

    def size_bytes(self, number: int) -> int:
        """Of the text or tokens with their labels."""
        return self._ends[number + 1] - self._ends[number]

    def close(self) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)
