"""Which pieces of a document are the same text: a hash for any span, and equal hashes found by sorting.

The hash of a span is that of its characters as a polynomial modulo 2**64, taken out of one running sum over
the block, so that words, lines and paragraphs cost a subtraction each. Equal means equal hash: of a document
of 1,000 words that is wrong once in 10**13 documents; it is no defence against forgery.
Sorting: hashes with their places in the low bits, for np.sort (5 ns an element) is three times as fast as
np.argsort; what the low bits push out is compared afterwards, so nothing is lost by it.
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
class Repeated:
    """Those of some keys that occur more than once, in order of place."""

    places: Positions
    numbers: NDArray[np.uint64]  # the same for the same key, from 0 to the number of keys
    is_later: Flags  # not the first with its key

    @property
    def later(self) -> Positions:
        return self.places[self.is_later]


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


def repeated_keys(keys: Hashes, key_bits: int = 64) -> Repeated:
    """Which keys, all below 2**key_bits, occur more than once."""
    order, ordered = _sorted(keys, key_bits)
    is_first = np.ones(len(keys) + 1, dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=is_first[1:-1])
    # A key's number and what is known of it go back to its place in one step.
    known = np.cumsum(is_first[:-1]).astype(np.uint64) << np.uint64(2)
    known |= (~(is_first[:-1] & is_first[1:])).astype(np.uint64) << np.uint64(1)
    known |= (~is_first[:-1]).astype(np.uint64)
    by_place = np.empty(len(keys), dtype=np.uint64)
    by_place[order] = known
    places = np.flatnonzero((by_place & np.uint64(2)) != 0)
    by_place = by_place.take(places)
    return Repeated(places, by_place >> np.uint64(2), (by_place & np.uint64(1)) != 0)


def _sorted(keys: Hashes, key_bits: int) -> tuple[Positions, Hashes]:
    """Places of the keys in order of the keys, equal ones in order of place; and those keys."""
    bits = max(len(keys) - 1, 1).bit_length()
    packed = np.sort((keys << np.uint64(bits)) | np.arange(len(keys), dtype=np.uint64))
    places = (packed & np.uint64((1 << bits) - 1)).view(np.int64)
    packed >>= np.uint64(bits)
    if key_bits + bits <= 64:
        return places, packed
    ordered = keys.take(places)
    if ((packed[1:] == packed[:-1]) & (ordered[1:] != ordered[:-1])).any():
        places = np.argsort(keys, kind="stable")  # two keys that differ only in bits that were pushed out
        ordered = keys.take(places)
    return places, ordered


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
