"""Which pieces of a block's documents are the same text: a hash for any span, and equal hashes found by sorting.

The hash of a span is that of its characters as a polynomial modulo 2**64, taken out of one running sum over the
block, so that words, lines and paragraphs cost a subtraction each. Equal means equal hash, which two different
texts of a document share about once in 10**15 documents; it is no defence against forgery.
Sorting: hashes with their places in the low bits, for np.sort (5 ns an element) is three times as fast as
np.argsort; what the low bits displaced is compared afterwards, so nothing is lost by it.
"""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bessemer.data.clean.characters import BLOCK_CHARACTERS, Block, Codes, Flags, Positions

Hashes = NDArray[np.uint64]

_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)
_ROUND, _OTHER_ROUND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True)
class Groups:
    """Elements that are equal to another one, group by group, in order within a group."""

    members: Positions
    firsts: Positions  # where in `members` each group begins
    is_later: Flags  # per member: not the first of its group

    @property
    def counts(self) -> Positions:
        return np.diff(self.firsts, append=len(self.members))

    @property
    def later(self) -> Positions:
        """Those that have an equal one before them."""
        return self.members[self.is_later]

    def only(self, which: Flags) -> "Groups":
        """The groups of those members; of each group there are all or none."""
        return Groups(self.members[which], np.flatnonzero(~self.is_later[which]), self.is_later[which])


class SpanHashes:
    """Hashes of spans of one block."""

    def __init__(self, block: Block) -> None:
        powers, self._inverses = _powers(max(len(block.codes) + 1, BLOCK_CHARACTERS * 2))
        self._sums = _running_sums(block.codes, powers)

    def of(self, starts: Positions, ends: Positions) -> Hashes:
        return (self._sums.take(ends) - self._sums.take(starts)) * self._inverses.take(starts)


def hash_of(text: str) -> np.uint64:
    """The hash that a span of this text has."""
    codes = np.array([ord(character) for character in text], dtype=np.uint32)
    sums = _running_sums(codes, _powers(BLOCK_CHARACTERS * 2)[0])
    return np.uint64(sums[-1])


def within_documents(hashes: Hashes, documents: Positions) -> Hashes:
    """Hashes that are equal only where the documents are, too."""
    keys = hashes + (documents.astype(np.uint64) + np.uint64(1)) * _ROUND
    keys ^= keys >> np.uint64(32)  # the low bits of the polynomial know only low bits of characters
    keys *= _OTHER_ROUND
    keys ^= keys >> np.uint64(29)
    return keys


def equal_groups(keys: Hashes) -> Groups:
    """The groups of two and more equal keys."""
    order = _sorted_places(keys)
    ordered = keys.take(order)
    like_before = np.zeros(len(keys) + 1, dtype=np.bool_)
    np.equal(ordered[1:], ordered[:-1], out=like_before[1:-1])
    repeated = like_before[:-1] | like_before[1:]
    is_later = like_before[:-1][repeated]
    return Groups(order[repeated], np.flatnonzero(~is_later), is_later)


def _sorted_places(keys: Hashes) -> Positions:
    """Places of the keys in the order of the keys; equal ones in the order of their places."""
    bits = np.uint64(max(len(keys) - 1, 1).bit_length())
    low = (np.uint64(1) << bits) - np.uint64(1)
    packed = np.sort((keys << bits) | np.arange(len(keys), dtype=np.uint64))
    places = (packed & low).astype(np.int64)
    kept = packed >> bits
    ordered = keys.take(places)
    if ((kept[1:] == kept[:-1]) & (ordered[1:] != ordered[:-1])).any():
        return np.argsort(keys, kind="stable")  # two keys that differ only in the bits that were pushed out
    return places


def _running_sums(codes: Codes, powers: Hashes) -> Hashes:
    sums = np.zeros(len(codes) + 1, dtype=np.uint64)
    terms = codes.astype(np.uint64)
    terms += np.uint64(1)
    terms *= powers[: len(codes)]
    np.cumsum(terms, out=sums[1:])
    return sums


@functools.lru_cache(maxsize=1)
def _powers(size: int) -> tuple[Hashes, Hashes]:
    """Powers of the base and of its inverse: 16 bytes a character of the largest block seen last."""
    made = []
    for base in (_BASE, _INVERSE):
        factors = np.full(size, base, dtype=np.uint64)
        factors[0] = 1
        made.append(np.cumprod(factors, dtype=np.uint64))
    return made[0], made[1]
