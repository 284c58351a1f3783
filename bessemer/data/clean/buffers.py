"""The bytes of an array of strings, without copying them, and the rows that places in them belong to."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Buffers:
    """UTF-8 of all rows, row r is data[starts[r] : starts[r + 1]]. A null has no bytes."""

    texts: pa.Array
    data: Bytes
    starts: Positions

    @staticmethod
    def of(texts: pa.Array) -> "Buffers":
        large = texts.cast(pa.large_string())
        if large.null_count:  # what lies under a null is nobody's text
            large = large.fill_null("")
        _, offsets, content = large.buffers()
        if len(large) == 0 or content is None:
            return Buffers(large, np.zeros(0, np.uint8), np.zeros(len(large) + 1, np.int64))
        starts = np.frombuffer(offsets, np.int64)[large.offset : large.offset + len(large) + 1]
        data = np.frombuffer(content, np.uint8)[starts[0] : starts[-1]]
        return Buffers(large, data, starts - starts[0])

    def rows_of(self, places: Positions) -> Positions:
        return np.searchsorted(self.starts, places, side="right") - 1

    def in_rows(self, places: Positions) -> Iterator[tuple[int, bytes, int]]:
        """(row, its bytes, place in it) of each place. They must ascend: a row is copied once."""
        known, content = -1, b""
        for row, place in zip(self.rows_of(places).tolist(), places.tolist(), strict=True):
            if row != known:
                known, content = row, self.row(row)
            yield row, content, place - int(self.starts[row])

    def row(self, row: int) -> bytes:
        return self.data[self.starts[row] : self.starts[row + 1]].tobytes()
