"""How probable it is that a document is good, learned from examples that someone labelled.

A linear classifier over hashed words and pairs of words, as fastText's without the hidden layer: a document
is the mean of its features, one weight each, logistic loss, both classes with the same total weight, ridge
penalty. The loss is convex and L-BFGS goes to its minimum: no learning rate, no order of examples, the same
file gives the same model (`quality_training`).
Only a document's first 20 kB are looked at. Cost: 70 MB/CPU-s of what is looked at.
Source: Joulin et al. 2016, arXiv:1607.01759 (features); Li et al. 2024, arXiv:2406.11794 (that such a
classifier is the best single filter for web text).
Not done: looking at punctuation or layout; the rules of `signals` do.
Dims: E examples, F features.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from bessemer.data.clean.word_hashes import grams, word_hashes
from bessemer.durable import write_bytes
from bessemer.errors import DataError

Floats = NDArray[np.float64]
FEATURE_BITS = 18  # 262,144 weights: 1 MB
_FIRST_BYTES = 20_000
_FORMAT = "bessemer quality 1"


@dataclass(frozen=True)
class QualityModel:
    weights: NDArray[np.float32]  # of the features, and behind them the constant
    report: dict[str, Any]  # what was measured on the examples held out

    @property
    def hash(self) -> str:
        return xxhash.xxh3_128_hexdigest(_FORMAT.encode() + self.weights.tobytes())

    def scores(self, texts: pa.Array) -> NDArray[np.float32]:
        """Probability of being good. A text without words has that of the average example, 0.5 or so."""
        features, starts = document_features(texts)
        logits = means(self.weights[features], starts) + self.weights[-1]
        return probability(logits).astype(np.float32)

    def save(self, path: Path) -> None:
        # One entry of metadata: the order of several is not the same from one process to the next.
        about = json.dumps({"format": _FORMAT, "report": self.report})
        write_bytes(path, save({"weights": self.weights}, {"bessemer": about}))

    @staticmethod
    def load(path: Path) -> "QualityModel":
        try:
            with safe_open(path, "numpy") as file:
                about = json.loads((file.metadata() or {}).get("bessemer", "{}"))
                if about.get("format") == _FORMAT:
                    return QualityModel(file.get_tensor("weights"), about["report"])
                found = f"format {about.get('format')!r}"
        except (OSError, SafetensorError) as error:
            found = str(error)
        raise DataError(
            f"cannot read the quality classifier {path}",
            found=found,
            wanted=f"a file of the format {_FORMAT!r}",
            fix="delete it, then run the same command again: it is trained anew",
        )


def document_features(texts: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(features of all documents, where each document's begin, and the end): words, then pairs."""
    words = word_hashes(_beginnings(texts))
    documents = np.repeat(np.arange(len(texts)), words.counts)
    found, owners = [_folded(words.hashes)], [documents]
    for hashes, owner, _ in grams(words, 2):
        found.append(_folded(hashes))
        owners.append(owner)
    features, owner = np.concatenate(found), np.concatenate(owners)
    order = np.argsort(owner, kind="stable")
    return features[order], np.searchsorted(owner[order], np.arange(len(texts) + 1))


def _beginnings(texts: pa.Array) -> pa.Array:
    """The first bytes, as many as are whole characters; longer ones are rare, so others are not touched."""
    long = np.flatnonzero(pc.greater(pc.binary_length(texts), _FIRST_BYTES).fill_null(False))
    if not len(long):
        return texts
    mask = np.zeros(len(texts), dtype=bool)
    mask[long] = True
    contents = [texts[row].as_buffer()[:_FIRST_BYTES].to_pybytes() for row in long.tolist()]
    cut = [content.decode("utf-8", errors="ignore") for content in contents]
    return pc.replace_with_mask(texts, pa.array(mask), pa.array(cut, texts.type))


def _folded(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    return (hashes >> np.uint64(64 - FEATURE_BITS)).astype(np.int64)


def means(values: NDArray[Any], starts: NDArray[np.int64]) -> Floats:
    """Of each document's values; each summed alone: a score does not depend on the batch."""
    lengths = np.diff(starts)
    found = np.zeros(len(lengths))
    some = np.flatnonzero(lengths)
    if len(some):
        found[some] = np.add.reduceat(values.astype(np.float64), starts[some]) / lengths[some]
    return found


def probability(logits: Floats) -> Floats:
    return 0.5 * (1 + np.tanh(0.5 * logits))
