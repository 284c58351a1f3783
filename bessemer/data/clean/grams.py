"""Decontamination: which documents hold 13 words in a row of an evaluation.

An evaluation's texts are all strings of a `.jsonl` file, however deep, or a whole `.txt` file. Words are
those of `word_hashes`: case and punctuation do not hide a passage. A text of 8 to 12 words is searched for
whole; a shorter one ("(A) yes") would be found anywhere, so it is left out and counted. One hit refuses a
document, as for GPT-3; `fraction`, the share of its words that stand in a hit, is for people who look at what
was refused.
Cost: 72 MB/CPU-s with a million passages, most of it the words; these take 26 MB in each process.
Not found: evaluations that were paraphrased or translated. A passage that an evaluation shares with half of
the web, such as a licence, refuses all that have it: `eval` says which evaluation did.
Source: arXiv:2005.14165 appendix C. Chance of a false hit: 64 bits, so 1e-7 for 1e6 passages and 1e6 words.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from bessemer.data.clean.word_hashes import Hashes, Positions, Words, grams, whole_texts, word_hashes
from bessemer.durable import atomic_file
from bessemer.errors import DataError

GRAM_WORDS, SHORTEST_WORDS = 13, 8
SCHEMA = pa.schema([("fraction", pa.float32()), ("hits", pa.int32()), ("eval", pa.int16())])
_BATCH_CHARACTERS = 4_000_000


@dataclass(frozen=True)
class EvalGrams:
    """The grams of evaluation files, ready to be searched for."""

    names: tuple[str, ...]
    hashes: Hashes  # sorted, each once
    files: NDArray[np.int16]  # where each stands: the first file in `names` that has it
    lengths: tuple[int, ...]  # of the grams: 13, and those of shorter texts
    num_texts: int
    num_ignored: int  # of these, texts too short to search for
    may_be: NDArray[np.bool_]  # by the first bits of a hash: False says that it is no gram of an evaluation

    @classmethod
    def load(cls, files: Sequence[Path], base: Path) -> "EvalGrams":
        """Files are relative to `base`. One that is not readable, or gives nothing, is a DataError."""
        found = [_eval_grams(base / file) for file in files]
        all_hashes = np.concatenate([np.zeros(0, dtype=np.uint64), *(one.hashes for one in found)])
        numbers = np.repeat(np.arange(len(files), dtype=np.int16), [len(one.hashes) for one in found])
        hashes, first = np.unique(all_hashes, return_index=True)
        bits = max(16, 4 + len(hashes).bit_length())  # at most one in eight is True
        may_be = np.zeros(1 << bits, dtype=np.bool_)
        may_be[hashes >> np.uint64(64 - bits)] = True
        return cls(
            names=tuple(str(file) for file in files),
            hashes=hashes,
            files=numbers[first],
            lengths=tuple(sorted({length for one in found for length in one.lengths})),
            num_texts=sum(one.num_texts for one in found),
            num_ignored=sum(one.num_ignored for one in found),
            may_be=may_be,
        )

    @property
    def hash(self) -> str:
        """Of all that decides what is found."""
        digest = xxhash.xxh3_128(repr((GRAM_WORDS, SHORTEST_WORDS, self.names, self.lengths)).encode())
        digest.update(self.hashes.tobytes())
        digest.update(self.files.tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """For the workers, so that not each of them reads the evaluation files."""
        about = {"names": self.names, "lengths": self.lengths, "texts": [self.num_texts, self.num_ignored]}
        text = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
        with atomic_file(path) as file:
            np.savez(file, about=text, hashes=self.hashes, files=self.files, may_be=self.may_be)

    @classmethod
    def open(cls, path: Path) -> "EvalGrams":
        """What `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            about = json.loads(arrays["about"].tobytes())
            return cls(
                tuple(about["names"]),
                arrays["hashes"],
                arrays["files"],
                tuple(about["lengths"]),
                num_texts=about["texts"][0],
                num_ignored=about["texts"][1],
                may_be=arrays["may_be"],
            )

    def summary(self) -> str:
        """One line for people."""
        return (
            f"{len(self.names)} evaluation files: {self.num_texts:,} texts, {len(self.hashes):,} passages; "
            f"{self.num_ignored:,} texts of fewer than {SHORTEST_WORDS} words are not searched for"
        )

    def find(self, hashes: Hashes) -> tuple[Positions, NDArray[np.int16]]:
        """(places in `hashes`, file) of those that are an evaluation's."""
        bits = len(self.may_be).bit_length() - 1
        places = np.flatnonzero(self.may_be[hashes >> np.uint64(64 - bits)])
        if len(places) == 0:
            return places, np.zeros(0, dtype=np.int16)
        ranks = np.minimum(np.searchsorted(self.hashes, hashes[places]), len(self.hashes) - 1)
        equal = self.hashes[ranks] == hashes[places]
        return places[equal], self.files[ranks[equal]]


def contamination(texts: pa.Array, evaluations: EvalGrams, words: Words | None = None) -> pa.RecordBatch:
    """SCHEMA: of each text the share of words in a hit, the hits, and the file of the first (null: none).

    words: of the texts, where the caller has them already.
    """
    words = word_hashes(texts) if words is None else words
    starts, ends, documents, files = _hits(words, evaluations)
    num_hits = np.bincount(documents, minlength=len(texts)).astype(np.int32)
    first_file = np.full(len(texts), -1, dtype=np.int16)
    first_file[documents[::-1]] = files[::-1]
    # A word may stand in several hits: count from where the ones before have ended.
    reached = np.maximum.accumulate(np.concatenate(([0], ends)))[:-1]
    new_words = np.maximum(ends - np.maximum(starts, reached), 0)
    covered = np.bincount(documents, weights=new_words, minlength=len(texts))
    fraction = (covered / np.maximum(words.counts, 1)).astype(np.float32)
    return pa.record_batch(
        [pa.array(fraction), pa.array(num_hits), pa.array(first_file, mask=num_hits == 0)], schema=SCHEMA
    )


def _hits(words: Words, evaluations: EvalGrams) -> tuple[Positions, Positions, Positions, NDArray[np.int16]]:
    """(first word, word behind the last, document, file) of each hit, in the order of the text."""
    none = np.zeros(0, dtype=np.int64)
    parts = [(none, none, none, np.zeros(0, dtype=np.int16))]
    for length in evaluations.lengths:
        for hashes, documents, starts in grams(words, length):
            places, files = evaluations.find(hashes)
            parts.append((starts[places], starts[places] + length, documents[places], files))
    starts, ends, documents, files = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((ends, starts))
    return starts[order], ends[order], documents[order], files[order]


@dataclass(frozen=True)
class _Found:
    hashes: Hashes
    lengths: set[int]
    num_texts: int
    num_ignored: int


def _eval_grams(path: Path) -> _Found:
    hashes, lengths, num_texts, num_ignored = [], set(), 0, 0
    for texts in _batches(_texts(path)):
        words = word_hashes(pa.array(texts, pa.large_string()))
        hashes += [some for some, _, _ in grams(words, GRAM_WORDS)]
        short, documents = whole_texts(words, GRAM_WORDS)
        is_used = words.counts[documents] >= SHORTEST_WORDS
        hashes.append(short[is_used])
        counts = words.counts
        lengths |= set(np.minimum(counts[counts >= SHORTEST_WORDS], GRAM_WORDS).tolist())
        num_texts += len(counts)
        num_ignored += int((counts < SHORTEST_WORDS).sum())
    if not lengths:
        raise DataError(
            f"nothing to search for in the evaluation file {path}",
            found=f"{num_texts:,} texts, all of them of fewer than {SHORTEST_WORDS} words",
            wanted=f"at least one text of {SHORTEST_WORDS} words",
            fix="name the right file in data.clean.decontaminate, or remove this one",
        )
    return _Found(np.concatenate(hashes), lengths, num_texts, num_ignored)


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        # JSON may escape half of a surrogate pair, which UTF-8 has no bytes for.
        batch.append(text.encode("utf-8", "replace").decode())
        size += len(text)
        if size > _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _texts(path: Path) -> Iterator[str]:
    if path.suffix not in (".txt", ".jsonl"):
        raise _unreadable(path, f"a name that ends in {path.suffix or 'nothing'}", "a .jsonl or .txt file")
    try:
        with open(path, encoding="utf-8-sig") as file:
            if path.suffix == ".txt":
                yield file.read()
                return
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield from _strings(_json(path, number, line))
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error), "a file that can be read") from error
    except UnicodeDecodeError as error:
        raise _unreadable(path, f"bytes that are not UTF-8: {error.reason}", "UTF-8 text") from error


def _json(path: Path, number: int, line: str) -> Any:
    wanted = "one JSON object a line"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, f"line {number}: {error}", wanted) from error
    if not isinstance(row, dict):
        raise _unreadable(path, f"line {number}: {line.strip()[:40]}", wanted)
    return row


def _strings(value: Any) -> Iterator[str]:
    """All strings in a JSON value, in order, but keys."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict | list):
            waiting += reversed(list(value.values()) if isinstance(value, dict) else value)


def _unreadable(path: Path, found: str, wanted: str) -> DataError:
    return DataError(
        f"cannot read the evaluation file {path}",
        found=found,
        wanted=wanted,
        fix="correct the file, or change data.clean.decontaminate",
    )
