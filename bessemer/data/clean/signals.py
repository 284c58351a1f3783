"""All that the rules of Gopher, C4 and FineWeb measure of each document, as columns; nothing is decided here.

Columns are float32 where they are a share or a mean, int32 where they count. A share of nothing is 0. Words
are those of words.py, characters are code points.
Computed for blocks of documents at once with numpy (characters.py). Cost: 13 MB/CPU-s of man pages,
HTML documentation and sources, 31 times as fast as datatrove's four stock filters (0.43) in the same hour.
Rules are thresholds on these columns (rules.py), so that another threshold needs no second reading.
Sources: Gopher arXiv:2112.11446 section A.1.1 and table A1, C4 arXiv:1910.10683 section 2.2,
FineWeb arXiv:2406.17557 section 3.6; where they leave something open, datatrove's filters (Apache-2.0).
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bessemer.data.clean import characters, lines, ngrams
from bessemer.data.clean.characters import Block, blocks, places_of, shifted
from bessemer.data.clean.spans import Hashes, SpanHashes, hash_of
from bessemer.data.clean.words import Words, words

Counts = NDArray[np.int64]
Numbers = NDArray[np.float64] | Counts

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")

# Name, type, what it is.
COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "characters": (pa.int32(), "characters of the document"),
    "words": (pa.int32(), "words with at least one character that is no symbol"),
    "mean_word_length": (pa.float32(), "characters of those words / those words"),
    "hashes_per_word": (pa.float32(), '"#" / all words'),
    "ellipses_per_word": (pa.float32(), '"..." and "…" / all words'),
    "bullet_lines": (pa.float32(), "lines whose first character is • or - / lines"),
    "ellipsis_lines": (pa.float32(), 'lines that end in "..." or "…" / lines'),
    "alphabetic_words": (pa.float32(), "words with a letter / all words"),
    "stop_words": (pa.int32(), "how many of the, be, to, of, and, that, have, with occur"),
    "duplicate_lines": (pa.float32(), "lines that an earlier one is equal to / lines"),
    "duplicate_line_characters": (pa.float32(), "characters of those lines / characters"),
    "duplicate_paragraphs": (pa.float32(), "paragraphs that an earlier one is equal to / paragraphs"),
    "duplicate_paragraph_characters": (pa.float32(), "characters of those paragraphs / characters"),
    **{
        f"top_{length}_gram": (pa.float32(), f"most frequent {length}-gram's size * its count / characters")
        for length in ngrams.TOP_LENGTHS
    },
    **{
        f"duplicate_{length}_grams": (pa.float32(), f"characters in repeated {length}-grams / characters")
        for length in ngrams.REPEATED_LENGTHS
    },
    "c4_lorem_ipsum": (pa.int32(), 'lines C4 would keep, but for "lorem ipsum"'),
    "c4_curly_bracket": (pa.int32(), 'lines C4 would keep, but for "{"'),
    "c4_javascript": (pa.int32(), 'lines C4 would keep, but for "javascript"'),
    "c4_policy": (pa.int32(), "lines C4 would keep, but for a policy of cookies, privacy or use"),
    "c4_sentences": (pa.int32(), "sentences in the lines that C4 keeps"),
    "written_lines": (pa.int32(), "lines with something other than white space"),
    "punctuated_lines": (pa.float32(), "written lines that end in terminal punctuation / written lines"),
    "short_lines": (pa.float32(), "written lines of at most 30 characters / written lines"),
    "duplicate_written_characters": (
        pa.float32(), "characters of written lines that an earlier one is equal to / characters but newlines"
    ),
    "newlines_per_word": (pa.float32(), "newlines / all words"),
}  # fmt: skip
SCHEMA = pa.schema([pa.field(name, kind, nullable=False) for name, (kind, _) in COLUMNS.items()])


def signals(texts: pa.Array) -> pa.RecordBatch:
    """One row of COLUMNS for each document of an array of strings. A null is an empty document."""
    columns: dict[str, list[Numbers]] = {name: [] for name in COLUMNS}
    for block in blocks(texts):
        for name, values in block_signals(block).items():
            columns[name].append(values)
    arrays = [
        pa.array(np.concatenate(columns[name] or [np.zeros(0)]).astype(kind.to_pandas_dtype()))
        for name, (kind, _) in COLUMNS.items()
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def block_signals(block: Block) -> dict[str, Numbers]:
    found, hashes, chunks = words(block), SpanHashes(block), lines.Chunks.of(block)
    by_newline = lines.newline_lines(block)
    by_break = lines.text_lines(block, by_newline)
    kinds = found.kinds(block)
    of_words = hashes.of(found.starts, found.ends)
    return {
        "characters": block.ends - block.starts,
        **_word_signals(block, found, kinds),
        "stop_words": _stop_words(found, of_words),
        **_edge_signals(lines.edge_counts(block, by_break, chunks)),
        **_repetition_signals(block, lines.repetition_counts(block, by_newline, chunks, hashes), found),
        **_ngram_signals(block, found, of_words),
        **lines.c4_counts(block, by_break, chunks, found, kinds),
    }


def _word_signals(block: Block, found: Words, kinds: NDArray[np.uint16]) -> dict[str, Numbers]:
    of_letters = places_of((kinds & characters.NOT_SYMBOL) != 0)
    lengths = np.concatenate(([0], np.cumsum(found.lengths[of_letters])))
    bounds = np.searchsorted(of_letters, found.bounds)
    alphabetic = np.searchsorted(places_of((kinds & characters.ALPHABETIC) != 0), found.bounds)
    return {
        "words": np.diff(bounds),
        "mean_word_length": _share(np.diff(lengths[bounds]), np.diff(bounds)),
        "hashes_per_word": _share(np.diff(block.bounds(block.where("#"))), found.counts),
        "ellipses_per_word": _share(_ellipses(block), found.counts),
        "alphabetic_words": _share(np.diff(alphabetic), found.counts),
    }


def _stop_words(found: Words, hashes: Hashes) -> Counts:
    """How many of the stop words each document has."""
    total = np.zeros(len(found.bounds) - 1, dtype=np.int64)
    for word in STOP_WORDS:
        places = places_of(hashes == hash_of(word))
        total += np.diff(np.searchsorted(places, found.bounds)) > 0
    return total


def _ellipses(block: Block) -> Counts:
    """Of each document, "…" and "..." that do not overlap, as str.count counts."""
    dot = block.signs == ord(".")
    starts = places_of(dot & shifted(dot, -1) & ~shifted(dot, 1))
    ends = places_of(dot & shifted(dot, 1) & ~shifted(dot, -1)) + 1
    each = np.concatenate(([0], np.cumsum((ends - starts) // 3)))
    return np.diff(each[block.bounds(starts)]) + np.diff(block.bounds(block.where("…")))


def _edge_signals(counts: dict[str, Counts]) -> dict[str, Numbers]:
    return {name: _share(counts[name], counts["text_lines"]) for name in ("bullet_lines", "ellipsis_lines")}


def _repetition_signals(block: Block, counts: dict[str, Counts], found: Words) -> dict[str, Numbers]:
    size = block.ends - block.starts
    written = counts["written_lines"]
    return {
        "duplicate_lines": _share(counts["repeated_lines"], counts["lines"]),
        "duplicate_line_characters": _share(counts["repeated_line_characters"], size),
        "duplicate_paragraphs": _share(counts["repeated_paragraphs"], counts["paragraphs"]),
        "duplicate_paragraph_characters": _share(counts["repeated_paragraph_characters"], size),
        "written_lines": written,
        "punctuated_lines": _share(counts["ended_lines"], written),
        "short_lines": _share(counts["short_lines"], written),
        "duplicate_written_characters": _share(
            counts["repeated_written_characters"], size - counts["newlines"]
        ),
        "newlines_per_word": _share(counts["newlines"], found.counts),
    }


def _ngram_signals(block: Block, found: Words, hashes: Hashes) -> dict[str, Numbers]:
    of_words = ngrams.DocumentWords(hashes, found.lengths, found.bounds)
    counts, size = ngrams.ngram_characters(of_words), block.ends - block.starts
    tops = {f"top_{length}_gram": _share(counts[f"top_{length}"], size) for length in ngrams.TOP_LENGTHS}
    repeated = {
        f"duplicate_{length}_grams": _share(counts[f"repeated_{length}"], size)
        for length in ngrams.REPEATED_LENGTHS
    }
    return {**tops, **repeated}


def _share(part: Counts, whole: Counts) -> NDArray[np.float64]:
    """part / whole, and 0 where there is no whole."""
    return part / np.maximum(whole, 1) * (whole > 0)
