"""Where a large file of lines may be cut: found while its content is hashed, in the same pass.

A cut is (byte, number of the row that begins there); the last cut is the end of the file, so it tells
how many rows there are. JSON lines end at each line break. A record of CSV may hold line breaks in
quotes, so that where it ends depends on every quote before it: in blocks with numpy, by parity, where
all quotes stand as RFC 4180 says, and one after another where one does not.

Rules for CSV, those of Python's strict reader: a quote opens a field only at its beginning; inside, two
are one, and one closes the field; what follows that must be a comma or the end of the line, else the
record is broken and ends with this line. Blank lines are no records and have no number. A record ends
with a line feed, with or without a carriage return before it.
"""

from typing import Any

import numpy as np

BOM = b"\xef\xbb\xbf"
GZIP_MAGIC, ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_COMMA, _FEED, _RETURN, _QUOTE = b',\n\r"'
_OUTSIDE, _INSIDE, _BROKEN = 0, 1, 2  # of quotes; broken: until the line ends
_MOST_CUTS = 256  # about, however large the file
Places = np.ndarray[tuple[int], np.dtype[Any]]
_NONE = np.zeros(0, dtype=np.int64)


class LineEnds:
    """Tells the bytes after which lines end, counted from the first byte fed."""

    def __init__(self) -> None:
        self._at = 0

    def feed(self, block: bytes, *, is_last: bool = False) -> tuple[Places, Places]:
        """(ends in this block, whether what ends there is a row)."""
        ends = np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == _FEED) + (self._at + 1)
        self._at += len(block)
        return ends, np.ones(len(ends), dtype=bool)


class RecordEnds:
    """Tells the bytes after which records of CSV end, counted from the first byte fed."""

    def __init__(self) -> None:
        self._state, self._last_end = _OUTSIDE, 0
        # A file begins like a line. The last byte is held until the one behind it is known.
        self._before, self._held, self._at = b"\n", b"", 0

    def feed(self, block: bytes, *, is_last: bool = False) -> tuple[Places, Places]:
        """(ends among the bytes fed so far, each told once; whether what ends there is no blank line)."""
        data = self._held + block
        known = len(data) if is_last else len(data) - 1
        if known <= 0:
            self._held = data
            return _NONE, _NONE.astype(bool)
        codes = np.frombuffer(self._before + data + (b"\n" if is_last else b""), dtype=np.uint8)
        lines, has_closed = self._lines(codes, known)
        lengths = np.diff(lines + (self._at + 1), prepend=self._last_end)
        is_row = (lengths > 2) | ((lengths == 2) & (codes[lines] != _RETURN))
        ends = lines + (self._at + 1)
        if len(ends):
            self._last_end = int(ends[-1])
        # A quote that is but a letter of its field must not look like one that closed a field.
        is_letter = data[known - 1] == _QUOTE and not has_closed
        self._before = b"x" if is_letter else data[known - 1 : known]
        self._held, self._at = data[known:], self._at + known
        return ends, is_row

    def _lines(self, codes: Any, known: int) -> tuple[Any, bool]:
        """(line feeds that end records, whether the last quote closed a field).

        Places count from the first byte that was not told of yet: codes[place + 1] is the one at a
        place, codes[place] the one before it, codes[place + 2] the one behind it.
        """
        here = codes[1 : known + 1]
        lines, quotes = np.flatnonzero(here == _FEED), np.flatnonzero(here == _QUOTE)
        if self._state == _BROKEN or not self._is_regular(codes, quotes):
            return self._one_by_one(codes, quotes.tolist(), lines.tolist())
        inside = (np.searchsorted(quotes, lines) + self._state) % 2 == 1
        self._state = (len(quotes) + self._state) % 2
        return lines[~inside], self._state == _OUTSIDE

    def _is_regular(self, codes: Any, quotes: Any) -> bool:
        """Each quote by its turn opens a field at its beginning, or closes one at its end."""
        before, behind = codes[quotes[self._state :: 2]], codes[quotes[1 - self._state :: 2] + 2]
        # A quote before one that opens has closed: the two are one quote inside the field.
        opens = (before == _COMMA) | (before == _FEED) | (before == _QUOTE)
        closes = (behind == _COMMA) | (behind == _FEED) | (behind == _RETURN) | (behind == _QUOTE)
        return bool(opens.all() and closes.all())

    def _one_by_one(self, codes: Any, quotes: list[int], lines: list[int]) -> tuple[Any, bool]:
        ends, line, closed = [], 0, -1 if codes[0] == _QUOTE else -2
        for place in quotes:
            while line < len(lines) and lines[line] < place:
                if self._state != _INSIDE:
                    ends.append(lines[line])
                    self._state = _OUTSIDE
                line += 1
            if self._state == _INSIDE:
                closes = codes[place + 2] in (_COMMA, _FEED, _RETURN, _QUOTE)
                self._state = _OUTSIDE if closes else _BROKEN
                closed = place
            elif self._state == _OUTSIDE and (codes[place] in (_COMMA, _FEED) or closed == place - 1):
                self._state = _INSIDE
        if self._state != _INSIDE and line < len(lines):
            ends += lines[line:]
            self._state = _OUTSIDE
        return np.array(ends, dtype=np.int64), bool(quotes) and closed == quotes[-1]


class Cuts:
    """Collects the cuts of one file, block by block: none where it is compressed."""

    def __init__(self, kind: str, size_bytes: int, every_bytes: int) -> None:
        self._every = max(every_bytes, size_bytes // _MOST_CUTS)
        self._ends = RecordEnds() if kind == "csv" else LineEnds()
        self._num_headers = 1 if kind == "csv" else 0
        self._start: int | None = None  # of the first line, behind a byte order mark
        self._is_compressed = False
        self._at, self._last_end, self._rows, self._tail = 0, 0, 0, b""
        self._next = self._every
        self._found: list[tuple[int, int]] = []

    def add(self, block: bytes) -> None:
        if self._start is None:
            self._is_compressed = block.startswith((GZIP_MAGIC, ZSTD_MAGIC))
            self._start = len(BOM) if block.startswith(BOM) else 0
            self._at = self._last_end = self._start
            block = block[self._start :]
        if not self._is_compressed:
            self._note(*self._ends.feed(block))
            self._at += len(block)
            self._tail = block[-1:] or self._tail

    def found(self) -> tuple[tuple[int, int], ...]:
        if self._is_compressed or self._start is None:
            return ()
        self._note(*self._ends.feed(b"", is_last=True))
        if self._last_end < self._at and (self._at - self._last_end, self._tail) != (1, b"\r"):
            self._rows += 1
        cuts = [cut for cut in self._found if cut[0] < self._at]
        return (*cuts, (self._at, max(self._rows - self._num_headers, 0) + 1))

    def _note(self, ends: Places, is_row: Places) -> None:
        if not len(ends):
            return
        ends = ends + self._start
        begin = 0
        while (place := int(np.searchsorted(ends, self._next))) < len(ends):
            self._rows += int(np.count_nonzero(is_row[begin : place + 1]))
            begin = place + 1
            number = self._rows - self._num_headers + 1
            if number >= 1:
                self._found.append((int(ends[place]), number))
            self._next = int(ends[place]) + self._every
        self._rows += int(np.count_nonzero(is_row[begin:]))
        self._last_end = int(ends[-1])
