"""Prepare pre-training data: read, decide, learn the tokenizer, encode. Read this file top to bottom.

    read      every row of every source once; texts go to a spool on disk
    decide    held out, duplicate, leak (holdout.py): before anything is learnt from a text
    tokenizer from the training split, or the recipe's ready one
    encode    both splits, documents in an order by their hash: so each row mixes sources, the first
              validation rows are like all, and repeats by weight lie apart
Weight w repeats each training document floor(w) times, and once more for a share of w - floor(w) of
them, chosen by hash. Held-out documents are never repeated.
Cost: 2 MB/s of text on one core, most of it the tokenizer; memory 60 bytes a document.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bessemer.data import holdout
from bessemer.data.ledger import SourceCount
from bessemer.data.sources.documents import documents
from bessemer.data.sources.parts import Input
from bessemer.data.spool import Numbered, Numbers, Spool, Stored
from bessemer.data.tokens import tokenizer
from bessemer.data.tokens.shards import ShardWriter
from bessemer.data.tokens.tokenizer import TextTokenizer
from bessemer.durable import write_bytes, write_text
from bessemer.errors import DataError
from bessemer.log import Console
from bessemer.recipe.schema import Recipe, Source

SPLITS = {"train": holdout.TRAIN, "validation": holdout.VALIDATION}
_BATCH_BYTES = 4_000_000


@dataclass(frozen=True)
class Work:
    """What the steps of one build share."""

    recipe: Recipe
    inputs: Sequence[Sequence[Input]]  # of each source
    ready: TextTokenizer | None
    folder: Path
    console: Console

    @property
    def sources(self) -> list[Source]:
        return self.recipe.data.source


def build(work: Work) -> dict[str, Any]:
    """Write tokenizer.json and tokens/ into the folder. Returns the manifest's own part."""
    timings: dict[str, float] = {}
    counts = [SourceCount(source.name, source.kind, source.licence) for source in work.sources]
    spool = Spool(work.folder / "documents.spool")
    try:
        with _timed(timings, "read_s"):
            _read(work, spool, counts)
        with _timed(timings, "decide_s"):
            numbers = spool.numbers()
            parts = _decide(work, spool, numbers, counts)
        with _timed(timings, "tokenizer_s"):
            learnt = work.ready or _learn(work, spool, parts)
            write_text(work.folder / "tokenizer.json", learnt.text)
            write_text(work.folder / "tokenizer_config.json", learnt.config_text())
        with _timed(timings, "encode_s"):
            splits = {
                name: _encode(work, spool, _order(work, numbers, parts, part), learnt, name, counts)
                for name, part in SPLITS.items()
            }
    finally:
        spool.close()
    return {
        "tokenizer": learnt.description(),
        "splits": splits,
        "sources": [count.to_json() for count in counts],
        "timings_s": timings,
    }


def _read(work: Work, spool: Spool, counts: list[SourceCount]) -> None:
    for place, (source, inputs, count) in enumerate(zip(work.sources, work.inputs, counts, strict=True)):
        vocab = work.ready.vocab if work.ready else 0
        for document in documents(source, inputs):
            error = document.error
            if document.tokens and max(document.tokens) >= vocab:
                error = "not_tokens"
            count.read(document.num_bytes, error)
            if error is not None:
                continue
            normalised = (
                holdout.normalise(document.text)
                if document.text is not None
                else np.asarray(document.tokens, dtype=np.int32).tobytes()
            )
            if not normalised:
                count.refused["empty"] += 1
                continue
            own_id = document.id if document.has_own_id else None
            key = holdout.holdout_hash(document.group, own_id, normalised)
            stored = Stored(place, document.id, document.group, document.text, document.tokens)
            spool.add(stored, normalised, key)
            work.console.progress(f"data: {source.name}, {count.rows_in:,} rows")
        work.console.progress(f"data: {source.name}, {count.rows_in:,} rows", last=True)


def _decide(work: Work, spool: Spool, numbers: Numbered, counts: list[SourceCount]) -> Numbers:
    """TRAIN, VALIDATION or why not, for each document; counted by source."""
    parts = holdout.split(numbers.holdout, work.recipe.data.validation)
    if work.recipe.data.clean.dedup == "exact":
        holdout.refuse_duplicates(parts, numbers)
    holdout.refuse_leaks(parts, numbers, spool)
    for place, count in enumerate(counts):
        own = parts[numbers.source == place]
        count.kept = int(np.isin(own, list(SPLITS.values())).sum())
        for part, rule in holdout.REFUSED.items():
            if refused := int((own == part).sum()):
                count.refused[rule] += refused
        count.check_kept()
    if not (parts == holdout.TRAIN).any():
        raise DataError(
            "no document is left to train on",
            found=f"{int((parts == holdout.VALIDATION).sum())} documents, all held out",
            wanted="documents of two groups or more",
            fix="set data.validation = 0, or give the sources a finer `group`",
        )
    return parts


def _learn(work: Work, spool: Spool, parts: Numbers) -> TextTokenizer:
    """From the training split: all of it, or a share of the documents chosen by their place."""
    training = np.flatnonzero(parts == holdout.TRAIN)
    sizes = np.array([spool.size_bytes(number) for number in training.tolist()], dtype=np.int64)
    if sizes.sum() > tokenizer.MAX_TRAINING_BYTES:
        # In an order by hash, so that every source and every part of it has its share.
        order = np.argsort(_mixed(training.astype(np.uint64)), kind="stable")
        enough = int(np.searchsorted(np.cumsum(sizes[order]), tokenizer.MAX_TRAINING_BYTES, "right"))
        training = np.sort(training[order[: max(1, enough)]])
    work.console.line(
        f"data: learning {work.recipe.tokenizer.vocab:,} tokens from {len(training):,} documents"
    )
    texts = (document.text for document in spool.read(training) if document.text is not None)
    return tokenizer.train(texts, work.recipe.tokenizer.vocab)


def write_order(numbers: Numbered, chosen: Numbers) -> Numbers:
    """These documents, repeats among them, in an order that only their content decides."""
    keys = _mixed(numbers.content_low[chosen] + _mixed(_copy_number(chosen).astype(np.uint64)))
    return chosen[np.argsort(keys, kind="stable")]


def _order(work: Work, numbers: Numbered, parts: Numbers, part: int) -> Numbers:
    """The documents of a split as they are written, with repeats by weight."""
    chosen = np.flatnonzero(parts == part)
    if part == holdout.TRAIN:
        weights = np.array([source.weight for source in work.sources])[numbers.source[chosen]]
        share = (numbers.content_high[chosen] >> np.uint64(11)).astype(np.float64) / 2.0**53
        times = np.floor(weights).astype(np.int64) + (share < weights - np.floor(weights))
        chosen = np.repeat(chosen, times)
    return write_order(numbers, chosen)


def _copy_number(repeated: Numbers) -> Numbers:
    """0, 1, 2 … within each run of equal numbers."""
    begins = np.flatnonzero(np.diff(repeated, prepend=-1))
    lengths = np.diff(begins, append=len(repeated))
    return np.arange(len(repeated)) - np.repeat(begins, lengths)


def _mixed(numbers: Numbers) -> Numbers:
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def _encode(
    work: Work, spool: Spool, order: Numbers, learnt: TextTokenizer, name: str, counts: list[SourceCount]
) -> dict[str, int]:
    """Write one split. Beside the tokens, a line a document says which it is."""
    total = {"documents": 0, "tokens": 0, "bytes": 0}
    (work.folder / "tokens").mkdir(exist_ok=True)
    stem = work.folder / "tokens" / f"{name}-00000"
    labels: list[str] = []
    with ShardWriter(stem, learnt.vocab) as shard:
        for batch in _batches(spool.read(order)):
            encoded = iter(learnt.encode([document.text for document in batch if document.text is not None]))
            for document in batch:
                inner = next(encoded) if document.text is not None else document.tokens or []
                text = document.text if document.text is not None else learnt.decode(inner)
                tokens = learnt.document(inner)
                shard.add(tokens)
                count = counts[document.source]
                count.documents += 1
                count.tokens += len(tokens)
                labels.append(json.dumps([count.name, document.id, document.group]) + "\n")
                total["documents"] += 1
                total["tokens"] += len(tokens)
                total["bytes"] += len(text.encode())
            work.console.progress(f"data: {name}, {total['documents']:,} of {len(order):,} documents")
    work.console.progress(f"data: {name}, {total['documents']:,} documents", last=True)
    write_bytes(stem.with_suffix(".jsonl"), "".join(labels).encode())
    return total


def _batches(stored: Iterator[Stored]) -> Iterator[list[Stored]]:
    batch: list[Stored] = []
    size = 0
    for document in stored:
        batch.append(document)
        size += len(document.text or "") + 4 * len(document.tokens or ())
        if size > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _timed:
    """Adds the wall time of a block to a table."""

    def __init__(self, timings: dict[str, float], name: str) -> None:
        self._timings, self._name = timings, name

    def __enter__(self) -> None:
        self._begin = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._timings[self._name] = round(time.monotonic() - self._begin, 3)
