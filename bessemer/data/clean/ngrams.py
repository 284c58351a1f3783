"""Gopher's n-gram signals: the characters in the most frequent n-gram, and in repeated n-grams.

An n-gram is n words of one document. What makes this cheap is that a repeated n-gram holds two repeated
(n-1)-grams: pairs of words are compared everywhere, triples only where both pairs occur twice, and so on,
each longer one as a pair of numbers of shorter ones, so that nothing but pairs is hashed.
Repeated n-grams are counted as datatrove counts them: from left to right, a repeated one is skipped whole,
and what was skipped is not remembered. That walk jumps from run to run of repeated n-grams.
Cost: a third of all signals. Source: arXiv:2112.11446 table A1, datatrove's gopher_repetition_filter.py.
Not kept from there: n-grams are compared word by word, not as words glued together ("ab c" is not "a bc").
"""

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bessemer.data.clean.characters import Flags, Positions
from bessemer.data.clean.spans import Hashes, repeated_keys, within_documents

Counts = NDArray[np.int64]

TOP_LENGTHS = (2, 3, 4)
REPEATED_LENGTHS = (5, 6, 7, 8, 9, 10)
_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class DocumentWords:
    """Words of several documents: their hashes, lengths and where each document's begin."""

    hashes: Hashes
    lengths: Positions
    bounds: Positions

    @property
    def documents(self) -> Positions:
        return np.repeat(np.arange(len(self.bounds) - 1), np.diff(self.bounds))


@dataclass(frozen=True)
class NGrams:
    """The n-grams of one length that occur more than once in their document, in order of place."""

    length: int
    places: Positions  # the first word of each
    numbers: NDArray[np.uint64]  # equal for equal n-grams of a document
    is_later: Flags  # not the first of its number


def ngram_characters(words: DocumentWords) -> dict[str, Counts]:
    """top_N and repeated_N of each document, in characters: of N-grams with spaces, and of words alone."""
    documents = words.documents
    before = np.concatenate(([0], np.cumsum(words.lengths)))
    grams = _pairs(words, documents)
    found: dict[str, Counts] = {}
    for length in range(TOP_LENGTHS[0], REPEATED_LENGTHS[-1] + 1):
        if length > TOP_LENGTHS[0]:
            grams = _longer(grams)
        if length in TOP_LENGTHS:
            found[f"top_{length}"] = _top_characters(grams, words.bounds, documents, before)
        if length in REPEATED_LENGTHS:
            found[f"repeated_{length}"] = _repeated_characters(grams, words.bounds, documents, before)
    return found


def _pairs(words: DocumentWords, documents: Positions) -> NGrams:
    keys = within_documents(words.hashes[:-1] * _MIX + words.hashes[1:], documents[:-1])
    # A document's last word is no pair with the next one's first: a key that no other is equal to.
    ends = np.unique(words.bounds[1:-1])
    ends = ends[(ends > 0) & (ends < len(documents))] - 1
    keys[ends] = within_documents(ends.astype(np.uint64) * _MIX, ends)
    found = repeated_keys(keys)
    return NGrams(2, found.places, found.numbers, found.is_later)


def _longer(grams: NGrams) -> NGrams:
    """Where two repeated ones overlap there may be a repeated one that is a word longer."""
    overlap = np.flatnonzero(grams.places[1:] == grams.places[:-1] + 1)
    bits = int(grams.numbers.max(initial=0)).bit_length()
    keys = (grams.numbers.take(overlap) << np.uint64(bits)) | grams.numbers.take(overlap + 1)
    found = repeated_keys(keys, 2 * bits)
    return NGrams(
        grams.length + 1, grams.places.take(overlap.take(found.places)), found.numbers, found.is_later
    )


def _top_characters(grams: NGrams, bounds: Positions, documents: Positions, before: Positions) -> Counts:
    """Characters of the most frequent n-gram times its count; of several, of the one that comes first."""
    length, num_words = grams.length, len(documents)
    # Where nothing is repeated the first n-gram is the most frequent one.
    best = np.where(np.diff(bounds) >= length, (1 << 40) - bounds[:-1], 0)
    first = ~grams.is_later
    counts = np.bincount(grams.numbers.astype(np.int64))[grams.numbers[first]]
    np.maximum.at(best, documents[grams.places[first]], (counts << 40) - grams.places[first])
    counts = (best + (1 << 40) - 1) >> 40
    place = ((counts << 40) - best) * (counts > 0)
    characters = before[np.minimum(place + length, num_words)] - before[place] + length - 1
    return counts * characters


def _repeated_characters(grams: NGrams, bounds: Positions, documents: Positions, before: Positions) -> Counts:
    entries, exits = _walk(grams, bounds[1:].tolist())
    totals = np.zeros(len(bounds) - 1, dtype=np.int64)
    np.add.at(totals, documents[entries], before[exits] - before[entries])
    return totals


def _walk(grams: NGrams, ends: list[int]) -> tuple[Positions, Positions]:
    """Where the walk from left to right begins and ends to skip repetitions. ends: of the documents.

    It jumps from run to run of n-grams that are not the first of their kind. A first one that was skipped is
    lost: the next one of its kind is no repetition.
    """
    if not len(grams.places):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    length, num_words = grams.length, int(grams.places[-1]) + 1
    numbers, is_first = np.zeros(num_words, dtype=np.uint32), np.zeros(num_words, dtype=np.uint8)
    numbers[grams.places], is_first[grams.places] = grams.numbers, ~grams.is_later
    number_at, firsts = memoryview(numbers.data), is_first.tobytes()
    entries, exits = [], []
    lost: set[int] = set()
    place = document = 0
    for start, last in zip(*_runs(grams), strict=True):
        if start > place:
            place = start
        if start >= ends[document]:
            document = bisect_right(ends, start)
            lost.clear()
        if place > last:
            continue
        if not lost:
            entries.append(place)
            place += ((last - place) // length + 1) * length
            exits.append(place)
        while place <= last:
            if number_at[place] in lost:
                lost.remove(number_at[place])
                place += 1
            else:
                entries.append(place)
                place += length
                exits.append(place)
        skipped = firsts.find(1, last + 1, place)
        while skipped >= 0:
            lost.add(number_at[skipped])
            skipped = firsts.find(1, skipped + 1, place)
    return np.array(entries, dtype=np.int64), np.array(exits, dtype=np.int64)


def _runs(grams: NGrams) -> tuple[list[int], list[int]]:
    """First and last places of the stretches where each n-gram is a later one of its kind. There is one."""
    later = grams.places[grams.is_later]
    begins = np.flatnonzero(np.diff(later, prepend=-2) > 1)
    return later[begins].tolist(), later[np.append(begins[1:], len(later)) - 1].tolist()
