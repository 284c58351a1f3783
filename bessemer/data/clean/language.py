"""The language of each document, and how probable it is: py3langid on the first kilobyte.

py3langid (naive Bayes over byte n-grams, its model inside the package, BSD-3) was the most accurate of five
identifiers tried. It walks an automaton byte by byte in Python; here the same automaton takes one step in all
documents of a batch at once, and each document's sum has the terms and the order that it has there: the same
language, the same probability.
Cost: 65 µs a document (py3langid: 280), which is 120 MB/CPU-s of manuals; 0.7 s to load.
A text of fewer than 20 letters is "und" with score 0: on a handful of words any answer would be a guess.
The score is py3langid's probability, made comparable between lengths there: 1 is certain, 0.01 knows nothing.
Source: github.com/adbar/py3langid 0.4, `LanguageIdentifier.classify` with `norm_probs`.
Dims: D documents, P positions in bytes, L languages.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from py3langid.langid import MODEL_FILE, LanguageIdentifier

UNKNOWN = "und"
FIRST_BYTES = 1000
_LEAST_LETTERS = 20
_LANES = 512  # documents walked at once; fewer than 2**10, see _found
_POSITION_BITS, _FEATURE_BITS = 12, 20  # composing characters can make FIRST_BYTES three times as long
_NOT_LETTERS = bytes(byte for byte in range(256) if not (byte < 128 and chr(byte).isalpha()))


def languages(texts: pa.Array) -> pa.RecordBatch:
    """`language` (ISO 639-1 where there is one, or "und") and `score` (0 to 1). Of a null both are null.

    The dictionary of `language` is the same for every batch: a file of Arrow takes one only.
    """
    model = _model()
    codes, scores = np.zeros(len(texts), np.int16), np.zeros(len(texts), np.float32)
    beginnings = [_beginning(text) for text in texts]
    rows = np.array([row for row, text in enumerate(beginnings) if _has_letters(text)], dtype=np.int64)
    for first in range(0, len(rows), _LANES):
        chunk = rows[first : first + _LANES]
        codes[chunk], scores[chunk] = model.classify([beginnings[row] for row in chunk.tolist()])
    absent = texts.is_null().to_numpy(zero_copy_only=False)
    named = pa.DictionaryArray.from_arrays(pa.array(codes, mask=absent), pa.array(model.names))
    return pa.record_batch([named, pa.array(scores, mask=absent)], names=["language", "score"])


def _beginning(text: pa.Scalar) -> str:
    """The first bytes, as many as are whole characters."""
    content = text.as_buffer()
    if content is None:
        return ""
    return content[:FIRST_BYTES].to_pybytes().decode("utf-8", errors="ignore")


def _has_letters(text: str) -> bool:
    if len(text.encode("ascii", errors="ignore").translate(None, _NOT_LETTERS)) >= _LEAST_LETTERS:
        return True
    return sum(map(str.isalpha, text)) >= _LEAST_LETTERS


@functools.cache
def _model() -> "_Model":
    """0.5 s and 100 MB, once a process."""
    return _Model(LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True))


class _Model:
    """py3langid's tables as arrays: its automaton over bytes, and what each feature says of each language."""

    def __init__(self, identifier: Any) -> None:
        self._encode = identifier._encode  # upper case text becomes lower case; NFC; UTF-8
        self._next = np.asarray(identifier.tk_nextmove)
        self._row = np.asarray(identifier.tk_row, dtype=np.uint32) << np.uint32(8)
        self._feature = np.asarray(identifier.tk_output, dtype=np.int32)  # -1: none
        # float16 in the file, and widened there for each document anew: half of its time.
        self._weights_FL = np.asarray(identifier.nb_ptc, dtype=np.float32)
        self._prior_L = np.asarray(identifier.nb_pc)
        self._aliases = identifier._alias_pairs  # a language in two scripts is two columns
        labels = identifier.nb_classes
        self.names = [UNKNOWN, *sorted(set(labels))]
        self._code_L = np.array([self.names.index(label) for label in labels], dtype=np.int16)

    def classify(self, texts: Sequence[str]) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
        """(index into `names`, probability) of each of at most _LANES texts."""
        encoded = [self._encode(text) for text in texts]
        scores_DL = self._scores(len(texts), *self._found(self._walk(encoded)))
        lengths = np.array([len(content) or 1 for content in encoded])
        scores_DL *= (1.0 / np.sqrt(lengths)).astype(np.float32)[:, None]
        np.exp(scores_DL - scores_DL.max(axis=1, keepdims=True), out=scores_DL)
        scores_DL /= scores_DL.sum(axis=1, keepdims=True)
        for first, second in self._aliases:
            scores_DL[:, first] += scores_DL[:, second]
            scores_DL[:, second] = 0
        best = scores_DL.argmax(axis=1)
        return self._code_L[best], scores_DL[np.arange(len(texts)), best]

    def _walk(self, encoded: Sequence[bytes]) -> NDArray[np.int32]:
        """The feature that ends at each byte of each document, or -1: an array DP."""
        lengths = np.array([len(content) for content in encoded])
        longest_first = np.argsort(-lengths, kind="stable")
        bytes_PD = np.zeros((lengths.max(initial=0), len(encoded)), np.uint8)
        for lane, document in enumerate(longest_first.tolist()):
            bytes_PD[: lengths[document], lane] = np.frombuffer(encoded[document], np.uint8)
        # How many documents are at least so long: the others have come to their end.
        active = np.searchsorted(-lengths[longest_first], -np.arange(len(bytes_PD)), side="left").tolist()
        states_PD = np.zeros(bytes_PD.shape, np.uint32)  # 0, the state at the start, has no feature
        states = np.zeros(len(encoded), np.uint32)
        for position, count in enumerate(active):
            places = self._row[states[:count]]
            places += bytes_PD[position, :count]
            states = self._next[places]
            states_PD[position, :count] = states
        features_DP = np.empty((len(encoded), len(bytes_PD)), np.int32)
        features_DP[longest_first] = self._feature[states_PD.T]
        return features_DP

    def _found(
        self, features_DP: NDArray[np.int32]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """(document, feature, how often) of each feature of each document, in the order of first occurrence.

        Two sorts of whole numbers that hold all of it in their bits: five times as fast as `np.unique` with
        first places. The order is that of a Counter, so that the sums round as py3langid's do.
        """
        documents, positions = np.nonzero(features_DP >= 0)
        features = features_DP[documents, positions].astype(np.int64)
        keys = ((documents << _FEATURE_BITS | features) << _POSITION_BITS) | positions
        keys.sort()
        pairs = keys >> _POSITION_BITS
        firsts = np.flatnonzero(np.diff(pairs, prepend=-1))
        counts = np.diff(firsts, append=len(keys))
        documents, features = pairs[firsts] >> _FEATURE_BITS, pairs[firsts] & ((1 << _FEATURE_BITS) - 1)
        positions = keys[firsts] & ((1 << _POSITION_BITS) - 1)
        keys = ((documents << _POSITION_BITS | positions) << _FEATURE_BITS | features) << _POSITION_BITS
        keys |= counts
        keys.sort()
        documents = keys >> (2 * _POSITION_BITS + _FEATURE_BITS)
        features = (keys >> _POSITION_BITS) & ((1 << _FEATURE_BITS) - 1)
        return documents, features, keys & ((1 << _POSITION_BITS) - 1)

    def _scores(
        self,
        number: int,
        documents: NDArray[np.int64],
        features: NDArray[np.int64],
        counts: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """Log probability of each language, but for a constant: an array DL."""
        weights = np.log1p(counts.astype(np.float32))
        ends = np.searchsorted(documents, np.arange(number + 1)).tolist()
        scores_DL = np.zeros((number, len(self._prior_L)), np.float32)
        for document in range(number):
            own = slice(ends[document], ends[document + 1])
            if own.start < own.stop:  # no feature at all: all languages alike
                table_FL = np.take(self._weights_FL, features[own], axis=0, mode="clip")
                scores_DL[document] = weights[own] @ table_FL + self._prior_L
        return scores_DL
