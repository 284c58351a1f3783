"""What is held out, and what of the rest is refused: duplicates, and documents that hold held-out text.

Held out is what hashes below `data.validation`: by group where the source has one, else by the id that
the source gives, else by content. The hash depends on nothing else, so every rendering of one group,
also in the task's data, falls on the same side, on any machine, and more data moves no document.
Duplicates (equal text but for white space and Unicode form): a held-out one stays, else the first.
`leak`: a training document that shares a passage with a held-out one is refused. A passage is three
long lines in a row (40 characters or more, shorter ones between them not counted), or one of 200. A
passage shared by more than 10 training groups is boilerplate, such as a licence header, and no leak.
Cost: 20 MB/s of text on one core. Not found: text that was re-wrapped; that is for near-duplicates.
"""

import unicodedata
from collections.abc import Iterable

import numpy as np
import xxhash

from bessemer.data.spool import Numbered, Numbers

TRAIN, VALIDATION, DUPLICATE, LEAK = 0, 1, 2, 3
REFUSED = {DUPLICATE: "dedup.exact", LEAK: "leak"}
_LONG_LINE, _VERY_LONG_LINE, _BOILERPLATE_GROUPS = 40, 200, 10
_OTHER_SPACE = "\t\r\v\f\x1c\x1d\x1e\x1f"  # of ASCII
_MASK64 = (1 << 64) - 1


def normalise(text: str) -> bytes:
    """Equal for texts that are the same but for white space and Unicode form; empty for no text."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return " ".join(text.split()).encode()


def holdout_hash(group: str | None, own_id: str | None, content: bytes) -> int:
    label = group if group is not None else own_id
    return xxhash.xxh3_64_intdigest(b"held out\0" + (content if label is None else label.encode()))


def content_hash(normalised: bytes) -> tuple[int, int]:
    """128 bits, in two halves."""
    content = xxhash.xxh3_128_intdigest(normalised)
    return content >> 64, content & _MASK64


def border(share: float, lowest: int, highest: int) -> int:
    """Held out is what hashes below it. lowest, highest: of all hashes there are.

    Where there are two groups or more, none of the splits stays empty: a few documents may all hash above
    the share; then the group with the smallest hash is held out.
    """
    if share == 0 or lowest >= highest:
        return 0
    return min(max(int(share * 2.0**64), lowest + 1), highest)


def split(hashes: Numbers, share: float) -> Numbers:
    """TRAIN or VALIDATION of each."""
    if not len(hashes):
        return np.zeros(0, dtype=np.int8)
    below = hashes < np.uint64(border(share, int(hashes.min()), int(hashes.max())))
    return np.where(below, VALIDATION, TRAIN).astype(np.int8)


def refuse_duplicates(parts: Numbers, numbers: Numbered) -> None:
    """Set DUPLICATE for all but one of the documents with the same content."""
    if len(parts) < 2:
        return
    order = np.lexsort(
        (np.arange(len(parts)), parts != VALIDATION, numbers.content_low, numbers.content_high)
    )
    high, low = numbers.content_high[order], numbers.content_low[order]
    again = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
    parts[order[1:][again]] = DUPLICATE


class Leaks:
    """Finds training documents that hold a held-out passage, or all of a held-out document."""

    def __init__(self, secret: Numbers, whole: Numbers) -> None:
        """Hashes of the passages, and of the contents, of what is held out."""
        self._secret, self._whole = np.unique(secret), np.unique(whole)
        self._certain: list[tuple[int, Numbers]] = []
        self._shared: list[tuple[int, Numbers, Numbers]] = []  # part, rows, the passages that each shares
        self._groups: list[Numbers] = []  # pairs of a passage's place and a training group that has it

    def add(
        self, part: int, rows: Numbers, lengths: Numbers, flat: Numbers, group: Numbers, content: Numbers
    ) -> None:
        """Training documents of a part: `lengths` passages each of `flat`, their group, their content."""
        self._certain.append((part, rows[np.isin(content, self._whole)]))  # only with deduplication off
        owner = np.repeat(np.arange(len(rows)), lengths)
        place = np.searchsorted(self._secret, flat)
        place[place == len(self._secret)] = 0
        hit = self._secret[place] == flat if len(self._secret) else np.zeros(len(flat), dtype=bool)
        owner, place = owner[hit], place[hit]
        self._shared.append((part, rows[owner], place))
        pairs = np.stack([place.astype(np.uint64), group[owner]], axis=1)
        self._groups.append(np.unique(pairs, axis=0))

    def found(self) -> Iterable[tuple[int, Numbers]]:
        """(part, rows) that hold what is held out."""
        pairs = (
            np.unique(np.concatenate(self._groups), axis=0) if self._groups else np.zeros((0, 2), np.uint64)
        )
        common = np.bincount(pairs[:, 0].astype(np.int64), minlength=len(self._secret))
        for (part, certain), (_, rows, place) in zip(self._certain, self._shared, strict=True):
            yield part, np.union1d(certain, rows[common[place] <= _BOILERPLATE_GROUPS])


def passages(text: str) -> Numbers:
    """Hashes of the text's passages. Lines are compared without margins: ` |  ` of help pages is one."""
    # Neither margins nor white space make a line longer: short ones are short from the beginning.
    if text.isascii() and not any(
        map(text.__contains__, _OTHER_SPACE)
    ):  # most: then only blanks in a row are to be joined
        margins = b" |#*"
        pieces = [line.strip(margins) for line in text.encode().split(b"\n") if len(line) >= _LONG_LINE]
        lines = [line if b"  " not in line else b" ".join(line.split()) for line in pieces]
        sizes = list(map(len, lines))
    else:
        long_lines = [line for line in text.split("\n") if len(line) >= _LONG_LINE]
        joined = [" ".join(line.strip(" \t|#*").split()) for line in long_lines]
        lines = [line.encode("utf-8", "surrogatepass") for line in joined]
        sizes = list(map(len, joined))
    lines = [line for line, size in zip(lines, sizes, strict=True) if size >= _LONG_LINE]
    sizes = [size for size in sizes if size >= _LONG_LINE]
    hashes = np.array(list(map(xxhash.xxh3_64_intdigest, lines)), dtype=np.uint64)
    very_long = [number for number, size in enumerate(sizes) if size >= _VERY_LONG_LINE]
    in_a_row = hashes[:-2] + np.uint64(3) * hashes[1:-1] + np.uint64(5) * hashes[2:]
    return np.concatenate([hashes[very_long], in_a_row])
