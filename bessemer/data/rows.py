"""Rows that a model trains on: tokens, what each should predict, and where its document begins.

Pre-training rows are windows of the stream of documents: row i is tokens i*T … (i+1)*T, targets are one
further, and a target that would cross into the next document is none. So the begin token is never a
target; every other token is one exactly once, also the first of a window, whose target belongs to the
window before. The last window is filled up with padding, which is no target.
Task rows hold whole examples (packed_rows.py).
Dims: T tokens in a row.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from bessemer.data.tokens.shards import Shard, Stream

NO_LOSS = -100
Int32 = np.ndarray[tuple[int], np.dtype[np.int32]]


@dataclass(frozen=True)
class Row:
    tokens_T: Int32
    targets_T: Int32  # NO_LOSS: none
    starts_T: Int32  # where in the row the document of each token begins; padding belongs to the last
    # What else the loss needs, [T] or [T, …], zero where a row holds nothing (formulas/objective.py).
    columns: Mapping[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    units: int | None = None  # what the loss is divided by; None: targets


class Rows(ABC):
    """A split, cut into rows of one length."""

    truncated = 0  # examples that did not fit a row whole

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def row(self, index: int) -> Row: ...

    @abstractmethod
    def documents(self, index: int) -> list[tuple[int, int, int]]:
        """(number in the split, begin, end in the row) of each document that the row shows."""


@final
class StreamRows(Rows):
    """Windows of the documents of a pre-training split. Cost: 16 µs a row of 1024, over 60 M tokens/s."""

    def __init__(self, shard: Shard | Stream, context: int, pad_id: int) -> None:
        self._shard, self._context, self._pad_id = shard, context, pad_id

    @property
    def num_documents(self) -> int:
        return self._shard.num_documents

    def __len__(self) -> int:
        return (len(self._shard.tokens) + self._context - 1) // self._context

    def row(self, index: int) -> Row:
        """Raises IndexError beyond the last row."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        begin, length = index * self._context, self._context
        stream = self._shard.tokens[begin : begin + length + 1]
        window = np.full(length + 1, self._pad_id, dtype=np.int32)
        window[: len(stream)] = stream
        targets_T = window[1:].copy()
        targets_T[max(0, len(stream) - 1) :] = NO_LOSS
        borders = self._shard.borders
        # Documents that begin inside the window or right behind it.
        first, last = np.searchsorted(borders, (begin + 1, begin + length + 1))
        inside = (borders[first:last] - begin).astype(np.int32)
        inside = inside[inside < len(stream)]
        targets_T[inside - 1] = NO_LOSS
        starts_T = np.zeros(length, dtype=np.int32)
        inside = inside[inside < length]
        starts_T[inside] = inside
        return Row(window[:length], targets_T, np.maximum.accumulate(starts_T))

    def documents(self, index: int) -> list[tuple[int, int, int]]:
        begin, borders = index * self._context, self._shard.borders
        end = min(begin + self._context, len(self._shard.tokens))
        first = int(np.searchsorted(borders, begin, "right")) - 1
        last = int(np.searchsorted(borders, end, "left"))
        shown = range(first, last)
        return [
            (k, int(max(borders[k], begin) - begin), int(min(borders[k + 1], end) - begin)) for k in shown
        ]


def pad_id_of(tokenizer: dict[str, Any]) -> int:
    """Padding is never seen nor predicted; the end token stands in where a tokenizer has none."""
    pad = tokenizer["pad_id"]
    return int(tokenizer["eos_id"] if pad is None else pad)
