"""Learn the merges of byte-level BPE from counted words: those of Hugging Face's BpeTrainer, one for one.

From counts, because Hugging Face's trainer takes only texts, and keeps all of them as words in memory.
All distinct words lie in one array of symbols, parted by sentinels. For each pair of symbols there is a
list of the places where it arose; the most frequent pair is taken from a heap, its places are checked (a
place goes stale when its symbols were merged otherwise), and all are merged at once in numpy. Counts are
not kept up to date: a pair's count only falls, so an entry that has fallen goes back into the heap.
No two pairs ever spell the same token: a stretch that ends as one token saw no merge across its borders,
so each stretch of the same letters was merged in the same way. So a pair arises in one merge and never
again, and each entry is complete when it is made. Not kept of the original: its counts wrap at 2^31.
Cost: 32,768 tokens from 1 M distinct words in 11 s on one core; memory 25 bytes a byte of words. From 139 MB
of text, counting too, 5 times the rate of Hugging Face's trainer.
Source: tokenizers/src/models/bpe/trainer.rs (0.23), `do_train`.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

Numbers = np.ndarray[Any, np.dtype[Any]]
_BORDER, _GONE = -1, -2
_LOW = (1 << 32) - 1
_BLOCK = 2_000_000


@dataclass(frozen=True)
class Merges:
    vocab: dict[str, int]
    merges: list[tuple[str, str]]


def byte_letters() -> list[str]:
    """The printable letter that stands for each byte in tokenizer.json (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + place) for place, byte in enumerate(others)}
    return [letters[byte] for byte in range(256)]


def learn_merges(counts: pa.Table, vocab: int, special: Sequence[str]) -> Merges:
    """`counts`: words.count_words. Fewer than `vocab` tokens where no pair is left."""
    letters = byte_letters()
    tokens = [*special, *sorted(letters)]
    ids = {token: number for number, token in enumerate(tokens)}
    corpus = _Corpus(counts, np.array([ids[letter] for letter in letters], np.int32))
    queue = _Queue(corpus)
    merges: list[tuple[str, str]] = []
    while len(tokens) < vocab and (found := queue.pop()) is not None:
        left, right, places = found
        word = tokens[left] + tokens[right]
        assert word not in ids, f"{word!r} is a special token"
        merges.append((tokens[left], tokens[right]))
        ids[word] = len(tokens)
        tokens.append(word)
        queue.add(corpus.merge(places, left, right, ids[word]), ids[word])
    return Merges(ids, merges)


@dataclass(frozen=True)
class _Around:
    """What stands beside the places just merged."""

    places: Numbers
    before: Numbers  # where the symbol in front begins
    left: Numbers  # that symbol, now; a border is negative
    right: Numbers  # the symbol behind, now


class _Corpus:
    """The words as symbols. A symbol lies where its first byte does; its length is written there and at
    its last byte, so that the symbols on both sides are found without lists of neighbours."""

    def __init__(self, counts: pa.Table, byte_ids: Numbers) -> None:
        words = counts["word"].cast(pa.large_binary()).combine_chunks()
        words = words.chunk(0) if isinstance(words, pa.ChunkedArray) else words
        offsets = np.frombuffer(words.buffers()[1], np.int64)[words.offset : words.offset + len(words) + 1]
        octets = np.frombuffer(words.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
        owner = np.repeat(np.arange(len(words), dtype=np.int32), np.diff(offsets))
        size = len(octets) + len(words) + 2
        assert size < 1 << 31, f"{size} symbols"
        self.counts = counts["count"].to_numpy()
        self.first_byte = int(byte_ids.min())
        self.symbol = np.full(size, _BORDER, np.int32)
        self.length = np.ones(size, np.int32)
        self.word = np.zeros(size, np.int32)
        places = np.arange(1, len(octets) + 1, dtype=np.int32) + owner
        self.symbol[places] = byte_ids[octets]
        self.word[places] = owner

    def byte_pairs(self) -> Iterator[tuple[Numbers, Numbers]]:
        """Where a byte has another behind it, and which two: 16 bits, which numpy sorts in linear time."""
        for begin in range(0, len(self.symbol) - 1, _BLOCK):
            block = self.symbol[begin : begin + _BLOCK + 1]
            places = np.flatnonzero((block[:-1] >= 0) & (block[1:] >= 0))
            pairs = (block[places] - self.first_byte) * 256 + block[places + 1] - self.first_byte
            yield places + begin, pairs.astype(np.uint16)

    def weight(self, places: Numbers) -> Numbers:
        return self.counts[self.word[places]]

    def still(self, places: Numbers, left: int, right: int) -> Numbers:
        """Those of the places where this pair stands."""
        places = places[self.symbol[places] == left]
        return places[self.symbol[places + self.length[places]] == right]

    def merge(self, places: Numbers, left: int, right: int, new: int) -> _Around:
        if left == right and len(places):
            places = self._apart(np.sort(places))
        first = self.length[places]
        second = places + first
        total = first + self.length[second]
        after = places + total
        self.symbol[second] = _GONE
        self.symbol[places] = new
        self.length[places] = total
        self.length[after - 1] = total
        before = places - self.length[places - 1]
        return _Around(places, before, self.symbol[before], self.symbol[after])

    def _apart(self, places: Numbers) -> Numbers:
        """Of `aaa`, the first two: from the left, none that shares a symbol with one taken."""
        number = np.arange(len(places))
        follows = np.zeros(len(places), bool)
        follows[1:] = places[1:] == (places + self.length[places])[:-1]
        first = np.maximum.accumulate(np.where(follows, 0, number))
        return places[(number - first) % 2 == 0]


class _Queue:
    """Pairs by count, most frequent first, then by their ids.

    An entry is a row of arrays. Only those that count `self._least` or more are in the heap, the others
    wait: most never come up, and a tuple in a heap is ten times as large as a row.
    """

    def __init__(self, corpus: _Corpus) -> None:
        self._corpus = corpus
        self._heap: list[tuple[int, int, int]] = []  # (-count, key, row)
        self._keys, self._counts = _Column(np.int64), _Column(np.int64)
        self._ends, self._places = _Column(np.int64), _Column(np.int32)
        self._ends.extend(np.zeros(1, np.int64))
        self._least = 1 << 62
        self._begin()

    def pop(self) -> tuple[int, int, Numbers] | None:
        """(left, right, places) of the pair to merge next. None when no pair is left."""
        corpus = self._corpus
        while self._fill():
            negative, key, row = self._heap[0]
            left, right = key >> 32, key & _LOW
            ends, places = self._ends.values, self._places.values
            places = places[ends[row] : ends[row + 1]]
            places = corpus.still(places, left, right)
            count = int(corpus.weight(places).sum())
            if count == -negative:
                heapq.heappop(self._heap)
                return left, right, places
            if count:
                heapq.heapreplace(self._heap, (-count, key, row))
            else:
                heapq.heappop(self._heap)
        return None

    def add(self, around: _Around, new: int) -> None:
        """The pairs that a new token makes with its neighbours."""
        on_left = around.left >= 0
        # Behind it the token itself: that pair is the neighbour's, on its left.
        on_right = (around.right >= 0) & (around.right != new)
        wide = np.int64(new)
        left = around.left[on_left].astype(np.int64) << 32 | wide
        right = around.right[on_right].astype(np.int64) | wide << 32
        keys = np.concatenate([left, right])
        if len(keys):
            places = np.concatenate([around.before[on_left], around.places[on_right]])
            order = np.argsort(keys)
            self._extend(keys[order], places[order].astype(np.int32))

    def _begin(self) -> None:
        """The pairs of bytes. Block by block, as an array for sorting them all would be the largest here."""
        corpus, base = self._corpus, self._corpus.first_byte
        sizes, counts = np.zeros(1 << 16, np.int64), np.zeros(1 << 16, np.float64)  # exact up to 2^53
        for places, pairs in corpus.byte_pairs():
            sizes += np.bincount(pairs, minlength=1 << 16)
            counts += np.bincount(pairs, corpus.weight(places), 1 << 16)
        free = np.cumsum(sizes) - sizes
        sorted_places = np.empty(sizes.sum(), np.int32)
        for places, pairs in corpus.byte_pairs():
            order = np.argsort(pairs, kind="stable")
            own = np.bincount(pairs, minlength=1 << 16)
            pairs = pairs[order]
            sorted_places[(free - np.cumsum(own) + own)[pairs] + np.arange(len(pairs))] = places[order]
            free += own
        found = np.flatnonzero(sizes)
        keys = (found // 256 + base) << 32 | (found % 256 + base)
        self._append(keys, counts[found].astype(np.int64), np.cumsum(sizes[found]), sorted_places)

    def _extend(self, keys: Numbers, places: Numbers) -> None:
        """Entries from the key of each place, in the order of the keys."""
        changes = np.ones(len(keys), bool)
        np.not_equal(keys[1:], keys[:-1], out=changes[1:])
        begins = np.flatnonzero(changes)
        if len(begins):
            counts = np.add.reduceat(self._corpus.weight(places), begins)
            self._append(keys[begins], counts, np.append(begins[1:], len(keys)), places)

    def _append(self, keys: Numbers, counts: Numbers, ends: Numbers, places: Numbers) -> None:
        row = len(self._keys.values)
        for place in np.flatnonzero(counts >= self._least).tolist():
            heapq.heappush(self._heap, (-int(counts[place]), int(keys[place]), row + place))
        self._keys.extend(keys)
        self._counts.extend(counts)
        self._ends.extend(self._ends.values[-1] + ends)
        self._places.extend(places)

    def _fill(self) -> bool:
        """Bring waiting entries into the heap until none of them counts more than its first."""
        while not self._heap or -self._heap[0][0] < self._least:
            if self._least <= 1:
                return bool(self._heap)
            counts, keys = self._counts.values, self._keys.values
            waiting = counts < self._least
            most = int(counts[waiting].max(initial=0))
            self._least = max(1, most // 2)
            for row in np.flatnonzero(waiting & (counts >= self._least)).tolist():
                heapq.heappush(self._heap, (-int(counts[row]), int(keys[row]), row))
        return True


class _Column:
    """An array that grows at its end."""

    def __init__(self, dtype: Any) -> None:
        self._room = np.empty(1024, dtype)
        self.values = self._room[:0]

    def extend(self, values: Numbers) -> None:
        begin, end = len(self.values), len(self.values) + len(values)
        if end > len(self._room):
            room = np.empty(max(end, len(self._room) * 3 // 2), self._room.dtype)
            room[:begin] = self.values
            self._room = room
        self._room[begin:end] = values
        self.values = self._room[:end]
