"""The tokenizer of a build, from the words that its parts counted."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from bessemer.data.tokens.tokenizer import TextTokenizer, from_counts
from bessemer.data.tokens.words import MAX_WORDS, SCHEMA, merge_counts
from bessemer.log import Console


def learn(paths: Sequence[Path], vocab: int, console: Console) -> TextTokenizer:
    """`paths`: files of words.write_counts, in any order. What memory does not hold spills beside them."""
    counts = SCHEMA.empty_table()
    if paths:
        with tempfile.TemporaryDirectory(dir=paths[0].parent) as temporary:
            counts = merge_counts(paths, Path(temporary))
    most = ", the most frequent" if len(counts) == MAX_WORDS else ""
    console.line(f"data: learning {vocab:,} tokens from {len(counts):,} words{most}")
    return from_counts(counts, vocab)
