"""A 64-bit hash of every word of a batch of documents, and of every n words in a row, all at once in numpy.

Words are what stays when case is folded and every run of other characters is one space: letters, digits and
marks, of any script; `_` parts words. Scripts written without spaces (Han, kana, Thai, Lao, Khmer, Burmese,
Tibetan) go by the character. Upper case becomes lower character by character, where UTF-8 needs as many
bytes for both: a dotted capital I, say, stays. Characters newer than Unicode 3.2 are words, but for blocks
of symbols: so every version of Python sees the same words.
How: bytes are translated (to 0 what is no word), a word begins and ends where the class of the byte changes,
and is hashed 8 bytes at a time for all words at once. Other than ASCII characters are decoded in place.
Cost: words 220 MB/CPU-s of ASCII, 160 with some other characters, 60 of Russian, 50 of Chinese; n words in a
row 900 more. Memory: 1.4 times the text of a batch.
Not kept: what was between words, so "a b" and "a-b" are one. The hash is no defence against forgery.
"""

import functools
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Positions = NDArray[np.int64]
BLOCK_BYTES = 1 << 19  # fits a core's cache together with what is made of it
_BLOCK_WORDS = 1 << 16
_LONG_WORD = 64  # bytes; longer ones are hashed one by one, or a word of 1 MB would take 131,072 rounds
_PADDING = 16  # bytes that may be read behind the last word
_MASKS = np.array([(1 << 8 * length) - 1 for length in range(9)], dtype=np.uint64)
_ONE, _TWO, _THREE = (
    np.uint64(constant) for constant in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
_SEPARATOR, _WORD, _SINGLE, _SINGLE_TOO = 0, 1, 2, 3
_ASCII = bytes(
    byte if byte >= 0x80 else ord(chr(byte).lower()) if chr(byte).isalnum() else 0 for byte in range(256)
)
_NO_SPACES = [  # first and last
    (0x0E01, 0x0EDF), (0x0F40, 0x0FBC), (0x1000, 0x109F), (0x1780, 0x17DF),
    (0x3005, 0x3007), (0x3021, 0x3029),
    (0x3031, 0x3035), (0x3041, 0x3096), (0x309D, 0x309F), (0x30A1, 0x30FA),
    (0x30FC, 0x30FF), (0x31F0, 0x31FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFF66, 0xFF9D),
    (0x1B000, 0x1B16F), (0x20000, 0x3FFFD),
]  # fmt: skip
_SYMBOLS = [(0x2000, 0x2BFF), (0x2E00, 0x2E7F), (0xE000, 0xF8FF), (0xFE00, 0xFE0F), (0x1F000, 0x1FAFF)]
_TABLE_END = 0x40000  # behind it are tags and private use: separators


@dataclass(frozen=True)
class Words:
    hashes: Hashes  # of all words of all documents
    starts: Positions  # of each document's first word in `hashes`, and the end of the last document

    @property
    def counts(self) -> Positions:
        return np.diff(self.starts)


def word_hashes(texts: pa.Array) -> Words:
    """Of an array of strings. A null has no words."""
    texts = texts.cast(pa.large_string())
    hashes: list[Hashes] = [np.zeros(0, dtype=np.uint64)]
    counts = np.zeros(len(texts), dtype=np.int64)
    empty, newline = (pa.scalar(text, pa.large_string()) for text in ("", "\n"))
    lengths = pc.binary_length(texts).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    for first, last in _blocks(lengths):
        # A separator behind each document: no word goes on into the next.
        joined = pc.binary_join_element_wise(
            texts.slice(first, last - first), empty, newline, null_handling="replace", null_replacement=""
        )
        ends = np.cumsum(lengths[first:last] + 1)
        for start, piece in _pieces(joined):
            found, begins = _hash_words(piece)
            hashes.append(found)
            documents = np.searchsorted(ends, begins + start, side="right")
            counts[first:last] += np.bincount(documents, minlength=last - first)
    return Words(np.concatenate(hashes), np.concatenate(([0], np.cumsum(counts))))


def grams(words: Words, length: int) -> Iterator[tuple[Hashes, Positions, Positions]]:
    """(hash, document, number of its first word) of every `length` words in a row, block by block."""
    for first in range(0, len(words.hashes) - length + 1, _BLOCK_WORDS):
        block = words.hashes[first : first + _BLOCK_WORDS + length - 1]
        hashes, documents = _rolling(block, length), _documents(words, first, first + len(block))
        inside = np.flatnonzero(documents[: len(hashes)] == documents[length - 1 :])
        yield mix(hashes[inside]), documents[inside], inside + first


def whole_texts(words: Words, shorter_than: int) -> tuple[Hashes, Positions]:
    """(hash, document) of each document with at least one word and fewer than `shorter_than`."""
    documents = np.flatnonzero((words.counts > 0) & (words.counts < shorter_than))
    hashes = np.zeros(len(documents), dtype=np.uint64)
    for length in range(1, shorter_than):
        of_length = np.flatnonzero(words.counts[documents] == length)
        starts = words.starts[documents[of_length]]
        # The same hash as that of `grams`: 12 words of an evaluation are found inside of longer documents.
        rows = words.hashes[starts[:, None] + np.arange(length)]
        hashes[of_length] = mix(_rolling(rows.reshape(-1), length)[::length])
    return hashes, documents


def mix(hashes: Hashes) -> Hashes:
    """Each bit of the result depends on each bit given (finalizer of splitmix64)."""
    hashes = hashes ^ (hashes >> np.uint64(30))
    hashes *= _TWO
    hashes ^= hashes >> np.uint64(27)
    hashes *= _THREE
    hashes ^= hashes >> np.uint64(31)
    return hashes


def _documents(words: Words, first: int, last: int) -> Positions:
    """The document of each word from first to last (exclusive)."""
    low = int(np.searchsorted(words.starts, first, side="right")) - 1
    high = int(np.searchsorted(words.starts, last, side="left"))
    inside = np.clip(words.starts[low : high + 1], first, last)
    return np.repeat(np.arange(low, high), np.diff(inside))


def _rolling(hashes: Hashes, length: int) -> Hashes:
    """Of each `length` in a row: made of halves, so 13 take five multiplications and not thirteen."""
    if length == 1:
        return hashes + _ONE
    half = length // 2
    halves = _rolling(hashes, half)
    count = len(hashes) - length + 1
    made = halves[:count] * _TWO + halves[half : half + count] + np.uint64(length)
    made ^= made >> np.uint64(29)
    return made * _THREE + hashes[length - 1 :] if length % 2 else made


def _blocks(lengths: Positions) -> Iterator[tuple[int, int]]:
    """Rows first to last (exclusive) of about BLOCK_BYTES; a longer document is alone."""
    ends = np.cumsum(lengths + 1)
    first = 0
    while first < len(lengths):
        before = ends[first - 1] if first else 0
        last = max(int(np.searchsorted(ends, before + BLOCK_BYTES, side="right")), first + 1)
        yield first, last
        first = last


def _pieces(joined: pa.Array) -> Iterator[tuple[int, bytes]]:
    """(start, bytes) of a block; a document longer than two blocks is cut between words, or characters."""
    offsets = np.frombuffer(joined.buffers()[1], dtype=np.int64)[joined.offset :]
    content = memoryview(joined.buffers()[2] or b"")[offsets[0] : offsets[len(joined)]]
    start = 0
    while len(content) - start > 2 * BLOCK_BYTES:
        window = bytes(content[start + BLOCK_BYTES : start + 2 * BLOCK_BYTES])
        cut = window.translate(_ASCII).rfind(0)
        if cut < 0:
            cut = next(place for place in range(len(window)) if window[place] & 0xC0 != 0x80)
        yield start, bytes(content[start : start + BLOCK_BYTES + cut])
        start += BLOCK_BYTES + cut
    yield start, bytes(content[start:])


def _hash_words(content: bytes) -> tuple[Hashes, Positions]:
    """(hash, first byte) of each word of UTF-8 text."""
    data = np.frombuffer(bytearray(content.translate(_ASCII)) + bytearray(_PADDING), dtype=np.uint8)
    classes = (data != 0).view(np.uint8)
    if not content.isascii():
        _fold_other_scripts(data, classes)
    borders = np.flatnonzero(classes[1:] != classes[:-1]) + 1
    if classes[0] != _SEPARATOR:
        borders = np.concatenate(([0], borders))
    if content.isascii():  # words and separators alternate
        starts, ends = borders[0::2], borders[1::2]
    else:
        is_word = classes[borders[:-1]] != _SEPARATOR
        starts, ends = borders[:-1][is_word], borders[1:][is_word]
    return _hash_spans(data, starts, ends - starts), starts


def _hash_spans(data: NDArray[np.uint8], starts: Positions, lengths: Positions) -> Hashes:
    lanes: Any = np.ndarray((len(data) - 7,), "<u8", data, strides=(1,))  # the 8 bytes from each place on
    hashes = (lanes[starts] & _MASKS[np.minimum(lengths, 8)]).astype(np.uint64)
    hashes = mix(hashes + _ONE)
    rest = np.flatnonzero((lengths > 8) & (lengths <= _LONG_WORD))
    done = 8
    while len(rest):
        chunk = lanes[starts[rest] + done] & _MASKS[np.minimum(lengths[rest] - done, 8)]
        hashes[rest] = mix((hashes[rest] ^ chunk) * _ONE)
        done += 8
        rest = rest[lengths[rest] > done]
    for number in np.flatnonzero(lengths > _LONG_WORD).tolist():
        word = data[starts[number] : starts[number] + lengths[number]]
        hashes[number] = xxhash.xxh3_64_intdigest(word.tobytes())
    return hashes


def _fold_other_scripts(data: NDArray[np.uint8], classes: NDArray[np.uint8]) -> None:
    """In place: lower case; class 0 for what is no letter; borders around each character that is a word."""
    leads = np.flatnonzero(data >= 0xC0)
    first = data[leads].astype(np.uint32)
    lengths = 2 + (first >= 0xE0) + (first >= 0xF0).astype(np.int64)
    codes = first & (np.uint32(0x7F) >> lengths.astype(np.uint32))
    for byte in (1, 2, 3):
        has = lengths > byte
        codes = np.where(has, codes << np.uint32(6) | (data[leads + byte] & np.uint8(0x3F)), codes)
    codes = np.minimum(codes, _TABLE_END - 1)
    kinds, lower = _table()
    kind = kinds[codes]
    # Neighbours differ, so that there is a border between them.
    kind += ((kind == _SINGLE) & (np.arange(len(kind)) % 2 == 1)).astype(np.uint8)
    folded = lower[codes]
    changes = np.flatnonzero(folded != codes)
    _write_characters(data, leads[changes], lengths[changes], folded[changes])
    for byte in range(4):
        has = lengths > byte
        classes[leads[has] + byte] = kind[has]


def _write_characters(
    data: NDArray[np.uint8], places: Positions, lengths: Positions, codes: NDArray[np.uint32]
) -> None:
    for length, prefix in ((2, 0xC0), (3, 0xE0), (4, 0xF0)):
        of_length = lengths == length
        place, code = places[of_length], codes[of_length]
        for byte in range(length - 1, 0, -1):
            data[place + byte] = (code & np.uint32(0x3F)) | np.uint32(0x80)
            code = code >> np.uint32(6)
        data[place] = code | np.uint32(prefix)


@functools.cache
def _table() -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """(kind, lower case) of every character below _TABLE_END. 60 ms, once a process."""
    kinds = np.full(_TABLE_END, _SEPARATOR, dtype=np.uint8)
    lower = np.arange(_TABLE_END, dtype=np.uint32)
    old = unicodedata.ucd_3_2_0
    for code in range(0x80, 0x20000):
        category = old.category(chr(code))
        is_symbol = category == "Cn" and any(low <= code <= high for low, high in _SYMBOLS)
        if category[0] in "LMN" or (category == "Cn" and not is_symbol):
            kinds[code] = _WORD
        if category in ("Lu", "Lt"):
            folded = chr(code).lower()
            if len(folded) == 1 and len(folded.encode()) == len(chr(code).encode()):
                lower[code] = ord(folded)
    for low, high in _NO_SPACES:
        kinds[low : high + 1] = _SINGLE
    return kinds, lower
