"""The stages that a part goes through before anything is decided: read, clean, and the measures.

Each writes one file (columns.py), named by what it depends on: the part's content and the reading
settings; that and the cleaning settings; that and the measure's own. So another threshold redoes none of
them, another PII setting does not read again, and a killed build goes on behind the last file.
Raise a stage's VERSION whenever the same input would give another file.
"""

import functools
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bessemer.data import holdout
from bessemer.data.clean.c4 import c4_text
from bessemer.data.clean.code import load_plugin
from bessemer.data.clean.grams import EvalGrams, contamination
from bessemer.data.clean.language import languages
from bessemer.data.clean.minhash import signatures
from bessemer.data.clean.pii import redact
from bessemer.data.clean.quality import QualityModel
from bessemer.data.clean.signals import signals
from bessemer.data.clean.text import normal_text
from bessemer.data.clean.word_hashes import Words, word_hashes
from bessemer.data.factory.columns import (
    READ_SCHEMA,
    batch_writer,
    document_batches,
    map_batches,
    read_batches,
    read_texts,
    same_rows,
    write_batches,
)
from bessemer.data.sources.documents import read
from bessemer.data.sources.parts import Part
from bessemer.recipe.schema import Source

VERSIONS = {
    "read": 1,
    "clean": 1,
    "language": 1,
    "signals": 1,
    "minhash": 1,
    "contamination": 1,
    "quality": 1,
    "parts": 1,
    "words": 1,
    "tokenizer": 1,
    "tokens": 1,
}
Announce = Callable[[int | None], None]
Measure = Callable[[pa.Array, Words | None], pa.RecordBatch]  # of texts, and of their words
_OF_WORDS = {"minhash", "contamination"}


def documents(task: dict[str, Any], announce: Announce) -> dict[str, Any]:
    """Write those of the part's files that are missing."""
    files = {name: Path(path) for name, path in task["files"].items()}
    if not files["read"].exists():
        source, part = Source.model_validate(task["source"]), Part.from_json(task["part"])
        left_out = {int(place): reason for place, reason in task["left_out"].items()}
        _read(source, part, files["read"], announce, left_out)
    if not files["clean"].exists():
        clean(files["read"], files["clean"], task["settings"]["clean"])
    missing = {
        name: settings
        for name, settings in task["settings"].items()
        if name not in ("read", "clean") and not files[name].exists()
    }
    if missing:
        _measure(missing, files)
    return {}


def _read(source: Source, part: Part, path: Path, announce: Announce, left_out: Mapping[int, str]) -> None:
    def begins(place: int) -> str | None:
        """A document is about to be extracted: whoever watches knows whose fault it is if this never ends."""
        announce(place)
        return left_out.get(place)

    write_batches(path, document_batches(read(source, part, begins)), READ_SCHEMA)
    announce(None)


def clean(source: Path, path: Path, settings: dict[str, Any]) -> None:
    """Unicode, white space and personal data; and the keys that decide what is held out or a duplicate."""
    plugin = None
    if settings["plugin"] is not None:  # allowed: else the build would not have come here
        plugin = load_plugin(settings["plugin"]["name"], Path(settings["plugin"]["base"]), allowed=True)

    def cleaned(batch: pa.RecordBatch) -> pa.RecordBatch:
        texts, error = batch["text"], batch["error"]
        if settings["text"] != "off":
            texts = normal_text(texts, settings["text"])
        if settings["c4"]:
            lines = [None if text is None else c4_text(text) for text in texts.to_pylist()]
            texts = pa.array(lines, texts.type)
        counts: list[tuple[str, pa.Array]] = []
        if settings["pii"] == "redact":
            texts, found = redact(texts)
            counts = [(f"pii.{name}", found[name]) for name in found.schema.names]
        dropped = pa.array(np.zeros(batch.num_rows, dtype=bool))
        if plugin is not None:
            source = pa.array([settings["plugin"]["source"]] * batch.num_rows, pa.string())
            made = plugin(pa.record_batch([batch["id"], texts, source], names=["id", "text", "source"]))
            without = pc.and_(pc.is_null(made["text"]), pc.is_null(made["error"]))
            dropped = pc.and_(pc.is_valid(texts), without)
            texts, error = made["text"], pc.coalesce(error, made["error"])
        columns = [("text", _if_changed(texts, batch["text"])), ("error", error), ("dropped", dropped)]
        columns += counts
        columns += _keys(batch, texts)
        return pa.record_batch([array for _, array in columns], names=[name for name, _ in columns])

    map_batches(path, read_batches(source), READ_SCHEMA, cleaned)


def _if_changed(texts: pa.Array, before: pa.Array) -> pa.Array:
    same = pc.fill_null(pc.equal(texts, before), True)
    return pc.if_else(same, pa.scalar(None, texts.type), texts)


def _keys(batch: pa.RecordBatch, texts: pa.Array) -> list[tuple[str, pa.Array]]:
    """Size, and words as white space parts them; hashes of the content, of the hold-out; passages."""
    rows = zip(
        texts.to_pylist(),
        batch["tokens"].to_pylist(),
        batch["group"].to_pylist(),
        batch["own_id"].to_pylist(),
        batch["id"].to_pylist(),
        strict=True,
    )
    high, low, held, most, words, passages = [], [], [], [], [], []
    for text, tokens, group, own_id, name in rows:
        content = _normalised(text, tokens)
        first, second = holdout.content_hash(content)
        high.append(first if content else 0)
        low.append(second if content else 0)
        words.append(content.count(b" ") + 1 if text is not None and content else 0)
        most.append(max(tokens, default=-1) if tokens else -1)
        held.append(holdout.holdout_hash(group, name if own_id else None, content))
        passages.append(holdout.passages(text or ""))
    sizes = pc.fill_null(pc.binary_length(texts), 0).cast(pa.int64())
    hashes = [("high", high), ("low", low), ("holdout", held)]
    offsets = np.cumsum([0, *map(len, passages)], dtype=np.int64)
    flat = np.concatenate([np.zeros(0, dtype=np.uint64), *passages])
    return [
        ("size_bytes", sizes),
        ("words", pa.array(words, pa.int64())),
        ("max_token", pa.array(most, pa.int64())),
        *((name, pa.array(values, pa.uint64())) for name, values in hashes),
        ("passages", pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(flat))),
    ]


def _normalised(text: str | None, tokens: list[int] | None) -> bytes:
    if text is not None:
        return holdout.normalise(text)
    return np.asarray(tokens or [], dtype=np.int32).tobytes()


def _measure(missing: Mapping[str, dict[str, Any]], files: Mapping[str, Path]) -> None:
    """Measures of the cleaned text of each document; of the empty text where there is none.

    All in one pass: reading the texts once more for each would be a tenth of the whole.
    """
    functions = {name: _measure_function(name, settings) for name, settings in missing.items()}
    nothing = pa.array([], pa.large_string())
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(batch_writer(files[name], function(nothing, None).schema))
            for name, function in functions.items()
        }
        for batch in read_texts(files["read"], files["clean"]):
            texts = pc.fill_null(batch["text"], "")
            words = word_hashes(texts) if _OF_WORDS & functions.keys() else None
            for name, function in functions.items():
                writers[name].write_batch(same_rows(function(texts, words), batch))


@functools.lru_cache(maxsize=1)
def _eval_grams(path: str) -> EvalGrams:
    """20 ms for a million grams, once a process."""
    return EvalGrams.open(Path(path))


def _measure_function(name: str, settings: dict[str, Any]) -> Measure:
    if name == "language":
        return lambda texts, _: languages(texts)
    if name == "signals":
        return lambda texts, _: signals(texts)
    if name == "minhash":
        return lambda texts, words: signatures(texts, words=words)
    if name == "contamination":
        grams = _eval_grams(settings["file"])
        return lambda texts, words: contamination(texts, grams, words)
    assert name == "quality", f"no measure {name!r}"
    model = QualityModel.load(Path(settings["file"]))
    return lambda texts, _: pa.record_batch([pa.array(model.scores(texts))], names=["quality"])
