"""One part to one shard of each split: tokens, where documents begin, and where each of them comes from.

Documents lie in an order by the hash of their content, so that what one file held does not stay together.
The folder appears whole or not at all.
Memory: the tokens of a part, 4 bytes each.
"""

import functools
import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bessemer.data.factory.columns import read_batches, read_texts
from bessemer.data.folders import unfinished
from bessemer.data.order import mixed
from bessemer.data.tokens.encoder import Encoder, framed
from bessemer.data.tokens.shards import ShardWriter
from bessemer.data.tokens.sidecar import write_sidecar
from bessemer.data.tokens.tokenizer import TextTokenizer
from bessemer.durable import publish_folder, write_json
from bessemer.errors import WriteError
from bessemer.rundir import read_object

_LABELS = ("id", "group", "origin")


def encode(task: dict[str, Any], _: Callable[[int | None], None]) -> dict[str, Any]:
    final = Path(task["folder"])
    if encoded(final) is not None:
        return {}
    fates = np.fromfile(task["files"]["mask"], dtype=np.uint8)
    learnt, encoder = _engines(task["files"]["tokenizer"], json.dumps(task["special"]), task["fast"])
    folder = unfinished(final)
    ids, offsets, rows = _tokens(task, fates, encoder, learnt)
    splits = {}
    for name, code in task["splits"].items():
        chosen = np.flatnonzero(rows["fate"] == code)
        chosen = chosen[np.argsort(mixed(rows["low"][chosen]), kind="stable")]
        splits[name] = _write(folder / name, ids, offsets, rows["table"], chosen, learnt.vocab, task)
    write_json(folder / "summary.json", {"splits": splits, "files": _sizes(folder)})
    _publish(folder, final)
    return {}


@functools.lru_cache(maxsize=1)
def _engines(path: str, special: str, fast: bool) -> tuple[TextTokenizer, Encoder]:
    """0.25 s for 32,768 tokens: as much as encoding a part, so once a process."""
    learnt = TextTokenizer.read(Path(path), json.loads(special))
    return learnt, Encoder(learnt, fast=fast)


def _publish(folder: Path, final: Path) -> None:
    """Another build may have written the same shards meanwhile: they are as good."""
    if encoded(final) is None:
        shutil.rmtree(final, ignore_errors=True)
    try:
        publish_folder(folder, final)
    except WriteError:
        if encoded(final) is None:
            raise
        shutil.rmtree(folder, ignore_errors=True)


def encoded(folder: Path) -> dict[str, Any] | None:
    """What a folder of shards says of itself; None: it is not there, or not as it was written."""
    summary = read_object(folder / "summary.json")
    return summary if summary is not None and summary["files"] == _sizes(folder) else None


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.name != "summary.json"}


def _tokens(
    task: dict[str, Any], fates: np.ndarray, encoder: Encoder, learnt: TextTokenizer
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """All tokens of the documents that are kept, framed; offsets of each; and what is known of them."""
    read, clean = Path(task["files"]["read"]), Path(task["files"]["clean"])
    language = read_batches(Path(task["files"]["language"]), ["language"]) if task["language"] else None
    flat: list[np.ndarray] = []
    lengths: list[np.ndarray] = []
    tables: list[pa.RecordBatch] = []
    lows: list[np.ndarray] = []
    kept_fates: list[np.ndarray] = []
    begin = 0
    keys = read_batches(clean, ["low", "size_bytes", "words"])
    for batch, known in zip(read_texts(read, clean, "tokens", *_LABELS), keys, strict=True):
        fate = fates[begin : begin + batch.num_rows]
        begin += batch.num_rows
        spoken = next(language)["language"].cast(pa.string()) if language is not None else None
        mask = pa.array(fate <= max(task["splits"].values()))
        batch, known = batch.filter(mask), known.filter(mask)
        ids, offsets, sizes = _batch_tokens(batch, known, encoder, learnt)
        ids, offsets = framed(ids, offsets, learnt)
        flat.append(ids)
        lengths.append(np.diff(offsets))
        lows.append(known["low"].to_numpy(zero_copy_only=False))
        kept_fates.append(fate[fate <= max(task["splits"].values())])
        spoken = pa.nulls(batch.num_rows, pa.string()) if spoken is None else spoken.filter(mask)
        columns = [*(batch[name] for name in _LABELS), spoken, pa.array(sizes, pa.int64()), known["words"]]
        tables.append(pa.record_batch(columns, names=[*_LABELS, "language", "bytes", "words"]))
    texts = ((name, pa.string()) for name in (*_LABELS, "language"))
    schema = pa.schema([*texts, ("bytes", pa.int64()), ("words", pa.int64())])
    offsets = np.cumsum(np.concatenate([[0], *lengths]), dtype=np.int64)
    known_rows = {
        "fate": np.concatenate([np.zeros(0, np.uint8), *kept_fates]),
        "low": np.concatenate([np.zeros(0, np.uint64), *lows]),
        "table": pa.Table.from_batches(tables, schema).combine_chunks(),
    }
    return np.concatenate([np.zeros(0, np.int32), *flat]), offsets, known_rows


def _batch_tokens(
    batch: pa.RecordBatch, known: pa.RecordBatch, encoder: Encoder, learnt: TextTokenizer
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids, offsets, UTF-8 bytes of the text of each). Rows that are tokens already are what they are."""
    if batch["tokens"].null_count == batch.num_rows:
        ids, offsets = encoder.encode(batch["text"])
        return ids, offsets, known["size_bytes"].to_numpy(zero_copy_only=False)
    assert batch["text"].null_count == batch.num_rows, "a source gives texts or tokens, not both"
    lists = batch["tokens"]
    ids = pc.list_flatten(lists).to_numpy(zero_copy_only=False).astype(np.int32)
    offsets = np.cumsum(np.concatenate([[0], pc.list_value_length(lists).to_numpy(zero_copy_only=False)]))
    parts = [ids[first:last].tolist() for first, last in pairwise(offsets.tolist())]
    return ids, offsets, np.array([len(learnt.decode(part).encode()) for part in parts], dtype=np.int64)


def _write(
    stem: Path,
    ids: np.ndarray,
    offsets: np.ndarray,
    table: pa.Table,
    chosen: np.ndarray,
    vocab: int,
    task: dict[str, Any],
) -> dict[str, int]:
    lengths = np.diff(offsets)[chosen]
    places = np.repeat(offsets[:-1][chosen] - np.cumsum(lengths) + lengths, lengths) + np.arange(
        lengths.sum()
    )
    with ShardWriter(stem, vocab) as shard:
        shard.add_many(ids[places], np.concatenate([[0], np.cumsum(lengths)]))
    rows = table.take(pa.array(chosen))
    constant = {name: pa.array([task[name]] * len(chosen), pa.string()) for name in ("source", "licence")}
    write_sidecar(stem, rows, constant, lengths)
    size = int(pc.sum(rows["bytes"]).as_py() or 0)
    return {"documents": len(chosen), "tokens": int(lengths.sum()), "bytes": size}
