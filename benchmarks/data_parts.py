"""Single figures of the data room, each in a process of its own: JSON on stdout.

python data_parts.py tokenize CORPUS TOKENIZER    ours against encode_batch_fast, and every difference
python data_parts.py minhash CORPUS FOLDER        signatures and near-duplicates
python data_parts.py exact FOLDER ROWS            exact duplicates among so many rows
python data_parts.py loader DATA                  rows of prepared data as micro-batches
python data_parts.py order SAMPLES                opening an order of so many samples
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("RAYON_NUM_THREADS", "1")  # both tokenizers: CPU seconds of one core

import numpy as np
import pyarrow as pa

from bessemer.data.clean.minhash import signatures
from bessemer.data.factory.duplicates import exact_duplicates, near_duplicates
from bessemer.data.mixed_rows import MixedRows
from bessemer.data.mixture import Mixture, MixtureStage
from bessemer.data.order import mixed
from bessemer.data.rows import StreamRows
from bessemer.data.tokens.encoder import Encoder, fuzz
from bessemer.data.tokens.tokenizer import TextTokenizer

_BATCH_BYTES, _HALF_A_GIB = 4_000_000, 1 << 29
_REAL_TOKENS, _FUZZ = 20_000_000, 30_000


def tokenize(corpus: str, path: str) -> dict[str, Any]:
    tokenizer = TextTokenizer.read(Path(path))
    encoder = Encoder(tokenizer)
    spent = {"ours": 0.0, "encode_batch_fast": 0.0}
    num_tokens = num_bytes = wrong = documents = 0
    for texts in _batches(_texts(Path(corpus)), 256_000):
        own, own_s = _timed(lambda texts=texts: encoder.encode(texts))
        other, other_s = _timed(
            lambda texts=texts: tokenizer.engine.encode_batch_fast(texts, add_special_tokens=False)
        )
        spent["ours"] += own_s
        spent["encode_batch_fast"] += other_s
        wrong += _differences(own, [one.ids for one in other])
        num_bytes += sum(len(text.encode()) for text in texts)
        num_tokens, documents = num_tokens + len(own[0]), documents + len(texts)
        if num_tokens >= _REAL_TOKENS:
            break
    strings = fuzz(_FUZZ)
    right = [one.ids for one in tokenizer.engine.encode_batch_fast(strings, add_special_tokens=False)]
    return {
        "tokens": num_tokens,
        "documents": documents,
        "mb": num_bytes / 1e6,
        "cpu_s": spent,
        "differing_documents": wrong,
        "fuzz_strings": len(strings),
        "differing_fuzz_strings": _differences(encoder.encode(strings), right),
        "slow_batches": encoder.slow_batches,
    }


def _differences(own: Any, right: list[list[int]]) -> int:
    ids, offsets = own
    return sum(ids[offsets[k] : offsets[k + 1]].tolist() != one for k, one in enumerate(right))


def minhash(corpus: str, folder: str) -> dict[str, Any]:
    """All texts, as the peer's `minhash` reads them, at most."""
    batches = [pa.array(texts, pa.large_string()) for texts in _batches(_texts(Path(corpus)), _BATCH_BYTES)]
    num_bytes = sum(batch.nbytes for batch in batches)
    measured, signatures_s = _timed(lambda: [signatures(batch) for batch in batches])

    def rows() -> Iterator[pa.RecordBatch]:
        begin = 0
        for batch in measured:
            numbers = pa.array(np.arange(begin, begin + len(batch)))
            arrays = [numbers, pa.array(np.ones(len(batch), np.int8)), *batch.columns]
            yield pa.record_batch(arrays, names=["number", "priority", *batch.schema.names])
            begin += len(batch)

    found, pairs_s = _timed(lambda: list(near_duplicates(rows(), Path(folder), _HALF_A_GIB, 0.75)))
    return {
        "mb": num_bytes / 1e6,
        "documents": sum(map(len, batches)),
        "refused": sum(map(len, found)),
        "cpu_s": {"signatures": signatures_s, "bands and pairs": pairs_s},
    }


def exact(folder: str, rows: str) -> dict[str, Any]:
    """Half of them duplicates, in no order."""

    def batches() -> Iterator[pa.RecordBatch]:
        for begin in range(0, int(rows), 1 << 17):
            numbers = np.arange(begin, min(begin + (1 << 17), int(rows)))
            keys = mixed(numbers.astype(np.uint64)) % np.uint64(int(rows) // 2)
            columns = {
                "number": numbers,
                "priority": np.ones(len(numbers), np.int8),
                "high": mixed(keys),
                "low": mixed(keys + np.uint64(1)),
            }
            yield pa.record_batch({name: pa.array(values) for name, values in columns.items()})

    found, cpu_s = _timed(lambda: sum(map(len, exact_duplicates(batches(), Path(folder), _HALF_A_GIB))))
    return {"rows": int(rows), "refused": found, "cpu_s": cpu_s}


def loader(data: str) -> dict[str, Any]:
    from bessemer.data.loader import Batches  # torch takes a second, which the others need not wait for
    from bessemer.data.prepared import Prepared, open_prepared

    prepared = open_prepared(Path(data))
    assert isinstance(prepared, Prepared)
    context = 1024
    rows = prepared.rows("train", context)
    batches = Batches(rows, seed=1, batch_rows=64, micro_batch=16)
    batches.batch(0)
    steps = 200
    rounds = [_timed(lambda: [batches.batch(64 * step) for step in range(steps)])[1] for _ in range(3)]
    cpu_s = min(rounds)
    return {"tokens": steps * 64 * context, "cpu_s": cpu_s, "rounds_s": rounds, "rows": len(rows)}


def order(num_samples: str) -> dict[str, Any]:
    begin_s = time.perf_counter()
    each = int(num_samples) // 2
    # Rows of ten tokens of a stream that nobody reads: an order asks no more than how many there are.
    stream = SimpleNamespace(tokens=range(10 * each), num_documents=1, borders=np.array([0, 10 * each]))
    sources: Any = [StreamRows(stream, 10, 0), StreamRows(stream, 10, 0)]  # type: ignore[arg-type]
    rows = MixedRows(sources, ["one", "two"], in_order=False)
    stages = [MixtureStage(begin, (1.0, 1.0 + begin / each), (None, None)) for begin in (0, each)]
    first = rows.samples(Mixture(stages), 1, np.arange(1024))
    return {"rows": len(rows), "first": first[:3].tolist(), "open_s": time.perf_counter() - begin_s}


def _texts(corpus: Path) -> Iterator[str]:
    """Manuals and sources in turns, as long as there are both: neither is all of the first 20 M tokens."""
    with open(corpus / "man.jsonl", encoding="utf-8") as lines:
        manuals = (str(json.loads(line)["text"]) for line in lines)
        sources = (
            path.read_text(encoding="utf-8", errors="replace") for path in sorted((corpus / "code").iterdir())
        )
        for number, text in enumerate(manuals):
            yield text
            if number % 4 == 0:
                yield from [next(sources, "")]


def _batches(texts: Iterator[str], size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    length = 0
    for text in texts:
        batch.append(text)
        length += len(text)
        if length >= size:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    begin_s = time.process_time()
    result = function()
    return result, time.process_time() - begin_s


PARTS = {"tokenize": tokenize, "minhash": minhash, "exact": exact, "loader": loader, "order": order}

if __name__ == "__main__":
    part: Callable[..., dict[str, Any]] = PARTS[sys.argv[1]]  # type: ignore[assignment]
    print(json.dumps(part(*sys.argv[2:])))
