"""Rows of several sources as one split, and the order in which training reads them.

Row numbers run through the sources, one behind the other. Training asks `samples` which row is read at which
position: the mixture says of which source and which of its samples, and each epoch of a source is a
permutation of its own (order.py). Held-out rows are numbered in an order in which any first ones are like
all, as a validation during training reads only so many.
"""

from collections.abc import Iterator, Sequence
from typing import final

import numpy as np
import xxhash

from bessemer.data.mixture import Mixture, MixtureStage, Places
from bessemer.data.order import position_of, samples
from bessemer.data.rows import Row, Rows, StreamRows
from bessemer.errors import DataError


@final
class MixedRows(Rows):
    """`names`: of the sources, on which the order within a source depends and nothing else."""

    def __init__(self, sources: Sequence[StreamRows], names: Sequence[str], *, in_order: bool) -> None:
        self._sources, self._names = sources, names
        self._begins = np.cumsum([0, *map(len, sources)])
        self._documents_before = np.cumsum([0, *(source.num_documents for source in sources)])
        self._order: Places | None = None  # of held-out rows
        lengths = [len(source) for source in sources]
        if in_order and any(lengths):
            weights, most = tuple(map(float, lengths)), tuple(lengths)
            source, index = Mixture([MixtureStage(0, weights, most)]).places(np.arange(sum(lengths)))
            self._order = self._begins[source] + index

    def __len__(self) -> int:
        return int(self._begins[-1])

    def row(self, index: int) -> Row:
        """Raises IndexError beyond the last row."""
        source, inner = self._place(index)
        return self._sources[source].row(inner)

    def documents(self, index: int) -> list[tuple[int, int, int]]:
        source, inner = self._place(index)
        before = int(self._documents_before[source])
        return [(before + number, *place) for number, *place in self._sources[source].documents(inner)]  # type: ignore[misc]

    def samples(self, mixture: Mixture, seed: int, positions: Places) -> Places:
        """The row that is read at each position. Raises DataError behind the last that there is."""
        if mixture.end is not None and len(positions) and int(positions.max()) >= mixture.end:
            raise DataError(
                "the data is used up: every source was read as often as its `epochs` allow",
                found=f"{mixture.end:,} rows in all, and row {int(positions.max()) + 1:,} is asked for",
                wanted="as many rows as the run reads",
                fix="raise `epochs` of a source or remove it, or train fewer steps",
            )
        sources, indices = mixture.places(positions)
        rows = np.empty(len(positions), dtype=np.int64)
        for source in np.unique(sources).tolist():
            where = sources == source
            own_seed = seed ^ xxhash.xxh3_64_intdigest(self._names[source].encode())
            rows[where] = self._begins[source] + samples(own_seed, indices[where], len(self._sources[source]))
        return rows

    def source_of(self, row: int) -> int:
        return self._place(row)[0]

    def positions(self, mixture: Mixture, seed: int, source: int, index: int, before: int) -> Iterator[int]:
        """Every position below `before` at which a source's row is read: the inverse of `samples`."""
        own_seed = seed ^ xxhash.xxh3_64_intdigest(self._names[source].encode())
        num_rows = len(self._sources[source])
        for epoch in range(-(-int(mixture.counts(before)[source]) // num_rows)):
            position = mixture.position(source, position_of(own_seed, index, epoch, num_rows))
            if position is not None and position < before:
                yield position

    def _place(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        place = index if self._order is None else int(self._order[index])
        source = int(np.searchsorted(self._begins, place, "right")) - 1
        return source, place - int(self._begins[source])
