"""Gopher's n-gram signals: the characters in the most frequent n-gram, and in repeated n-grams.

An n-gram is n words of one document. What makes this cheap is that a repeated n-gram holds two repeated
(n-1)-grams: pairs of words are compared everywhere, triples only where both pairs occur twice, and so on, each
longer one as a pair of numbers of shorter ones, so that nothing but pairs is hashed.
Repeated n-grams are counted as datatrove counts them: from left to right, a repeated one is skipped whole, and
what was skipped is not remembered. That walk is done run by run of repeated n-grams, and word by word only in
documents where something not remembered matters.
Cost: a quarter of all signals. Source: arXiv:2112.11446 table A1, datatrove's gopher_repetition_filter.py.
Not kept from there: n-grams are compared word by word, not as words glued together ("ab c" is not "a bc").
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bessemer.data.clean.characters import Flags, Positions
from bessemer.data.clean.spans import Groups, Hashes, equal_groups, within_documents

Counts = NDArray[np.int64]

TOP_LENGTHS = (2, 3, 4)
REPEATED_LENGTHS = (5, 6, 7, 8, 9, 10)
_ROUNDS = 6  # walks of a block, before those documents that still change are walked word by word
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
    """The n-grams of one length that occur more than once in their document."""

    length: int
    numbers: NDArray[np.uint64]  # per word: the number of the repeated n-gram that begins there, or 0
    groups: Groups  # members are words


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
    if len(documents) < 2:
        return _numbered(2, equal_groups(np.zeros(0, np.uint64)), np.zeros(0, np.int64), len(documents))
    hashes = words.hashes[:-1] * _MIX + words.hashes[1:]
    inside = np.flatnonzero(documents[:-1] == documents[1:])
    keys = within_documents(hashes[inside], documents[inside])
    return _numbered(2, equal_groups(keys), inside, len(documents))


def _longer(grams: NGrams) -> NGrams:
    """Where two repeated ones overlap there may be a repeated one that is a word longer."""
    numbers = grams.numbers
    places = np.flatnonzero((numbers[:-1] != 0) & (numbers[1:] != 0))
    bits = np.uint64(len(grams.groups.firsts).bit_length())
    keys = (numbers[places] << bits) | numbers[places + 1]
    return _numbered(grams.length + 1, equal_groups(keys), places, len(numbers))


def _numbered(length: int, groups: Groups, places: Positions, num_words: int) -> NGrams:
    members = places[groups.members]
    numbers = np.zeros(num_words, dtype=np.uint64)
    numbers[members] = np.repeat(np.arange(1, len(groups.firsts) + 1, dtype=np.uint64), groups.counts)
    return NGrams(length, numbers, Groups(members, groups.firsts, groups.is_later))


def _top_characters(grams: NGrams, bounds: Positions, documents: Positions, before: Positions) -> Counts:
    """Characters of the most frequent n-gram times its count; of several, of the one that comes first."""
    length, groups = grams.length, grams.groups
    # Where nothing is repeated the first n-gram is the most frequent one.
    best = np.where(np.diff(bounds) >= length, (1 << 40) - bounds[:-1], 0)
    firsts = groups.members[groups.firsts]
    np.maximum.at(best, documents[firsts], (groups.counts << 40) - firsts)
    counts = (best + (1 << 40) - 1) >> 40
    first = np.minimum((counts << 40) - best, len(documents) - length) * (counts > 0)
    if not len(documents):
        return np.zeros_like(best)
    characters = before[np.minimum(first + length, len(documents))] - before[first] + length - 1
    return counts * characters


def _repeated_characters(grams: NGrams, bounds: Positions, documents: Positions, before: Positions) -> Counts:
    """Characters that the walk from left to right finds repeated.

    First it is walked as if each n-gram but the first of its kind were a repetition. Where the walk skipped a
    first one, it is walked again with what it has seen, until it sees what it was walked with.
    """
    totals = np.zeros(len(bounds) - 1, dtype=np.int64)
    groups, is_repetition = grams.groups, grams.groups.is_later
    for _ in range(_ROUNDS):
        entries, exits = _walk(np.sort(groups.members[is_repetition]), grams.length)
        totals[documents[groups.members]] = 0
        np.add.at(totals, documents[entries], before[exits] - before[entries])
        skipped = _skipped(len(documents), entries, exits, grams.length)[groups.members]
        sees = _seen_before(groups, skipped)
        wrong = np.zeros(len(bounds) - 1, dtype=np.bool_)
        wrong[documents[groups.members[(sees != is_repetition) & ~skipped]]] = True
        if not wrong.any():
            return totals
        again = wrong[documents[groups.members]]
        groups, is_repetition = groups.only(again), sees[again]
    for document in np.flatnonzero(wrong).tolist():
        totals[document] = _walk_words(grams, int(bounds[document]), int(bounds[document + 1]), before)
    return totals


def _walk(places: Positions, length: int) -> tuple[Positions, Positions]:
    """Where each run of repetitions is entered and left, by steps of `length` words. places: in order."""
    borders = np.flatnonzero(np.diff(places, prepend=-2) > 1)
    starts, lasts = (
        places[borders],
        places[np.append(borders[1:], len(places)) - 1] if len(places) else places,
    )
    exits = starts + ((lasts - starts) // length + 1) * length
    meeting = np.flatnonzero(exits[:-1] > starts[1:]).tolist()
    if not meeting:
        return starts, exits
    entries, left, ends, begins = starts.copy(), exits.tolist(), lasts.tolist(), starts.tolist()
    done = -1
    for number in meeting:
        if number < done:
            continue
        done = number + 1
        entry = left[number]
        # The last step of a run went into the next one: that is entered there, or passed over.
        while done < len(begins) and begins[done] < entry:
            steps = max((ends[done] - entry) // length + 1, 0)
            entries[done] = entry if steps else begins[done]
            left[done] = entry + steps * length if steps else begins[done]
            entry += steps * length
            done += 1
        done -= 1
    return entries, np.array(left, dtype=np.int64)


def _skipped(num_words: int, entries: Positions, exits: Positions, length: int) -> Flags:
    """Which words the walk stepped over."""
    flags = np.zeros(num_words + 1, dtype=np.bool_)
    steps = (exits - entries) // length
    ends = np.cumsum(steps)
    if not len(ends) or not ends[-1]:
        return flags
    # Where each step begins: the next `length` - 1 words are not looked at.
    begins = np.repeat(entries - (ends - steps) * length, steps) + np.arange(ends[-1]) * length
    for by in range(1, length):
        flags[begins + by] = True
    return flags


def _seen_before(groups: Groups, skipped: Flags) -> Flags:
    """Per member: whether an earlier one of its group was not skipped. What is skipped keeps its word for it."""
    never = np.iinfo(np.int64).max
    first_seen = np.minimum.reduceat(np.where(skipped, never, groups.members), groups.firsts)
    return groups.members > np.repeat(first_seen, groups.counts)


def _walk_words(grams: NGrams, start: int, end: int, before: Positions) -> int:
    """The walk itself, over the words of one document where a repeated n-gram begins."""
    places = np.flatnonzero(grams.numbers[start:end]) + start
    characters = before[np.minimum(places + grams.length, len(before) - 1)] - before[places]
    seen: set[int] = set()
    total = behind = 0
    numbers = grams.numbers[places].tolist()
    for place, number, size in zip(places.tolist(), numbers, characters.tolist(), strict=True):
        if place < behind:
            continue
        if number in seen:
            total += size
            behind = place + grams.length
        else:
            seen.add(number)
    return total
