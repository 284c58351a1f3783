"""Learning `quality`'s classifier from a file of labelled examples, and measuring it on a fifth that it did
not see.

What was measured is what is used: the model is not trained again on everything. An example that stands in the
file twice counts once, or it could be on both sides. The order of lines and of equal examples changes
nothing. Cost: 1 to 3 CPU-s for 3,000 examples (18 MB); 24 bytes of memory a word looked at.
Source of L-BFGS: Nocedal and Wright, Numerical Optimization, algorithm 7.4, with backtracking on a convex
loss. Dims: E examples, F features and the constant.
"""

import json
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from bessemer.data.clean.quality import (
    FEATURE_BITS,
    Floats,
    QualityModel,
    document_features,
    means,
    probability,
)
from bessemer.errors import DataError

_HELD_OUT = 0.2
_LEAST_EXAMPLES = 20  # a class
_RIDGE = 1e-6
_MOST_STEPS = 200
_ENOUGH = 1e-4  # of the gradient's first norm
_MEMORY = 8
_NAMED_ROWS = 10  # of bad ones, in an error


@dataclass(frozen=True)
class Examples:
    texts: list[str]
    good: NDArray[np.bool_]
    repeated: int  # rows that said again what another one had said


def train_quality(path: Path, seed: int) -> QualityModel:
    """`path`: JSONL with "text" and "label", good or bad. DataError names the rows that are neither."""
    examples = read_examples(path)
    held_out = _held_out(examples, seed)
    texts, good = pa.array(examples.texts, pa.large_string()), examples.good
    seen = np.flatnonzero(~held_out)
    features, starts = document_features(texts.take(pa.array(seen)))
    # A feature that no example has keeps weight zero: leaving it out makes the work a tenth.
    present, numbers = np.unique(features, return_inverse=True)
    weights = np.zeros((1 << FEATURE_BITS) + 1, dtype=np.float32)
    weights[[*present, -1]] = _fit(numbers, starts, good[seen], len(present) + 1)
    model = QualityModel(weights, {})
    scores = model.scores(texts.filter(pa.array(held_out)))
    unseen = good[held_out]
    accuracy = 0.5 * ((scores[unseen] >= 0.5).mean() + (scores[~unseen] < 0.5).mean())
    report = {
        "examples": {"good": int(good.sum()), "bad": int((~good).sum()), "repeated": examples.repeated},
        "held_out": {"good": int(unseen.sum()), "bad": int((~unseen).sum())},
        "accuracy": round(float(accuracy), 4),  # mean of both classes'
        "auc": round(area_under_curve(scores, unseen), 4),
        "seed": seed,
    }
    return QualityModel(model.weights, report)


def area_under_curve(scores: NDArray[Any], good: NDArray[np.bool_]) -> float:
    """Probability that a good example scores above a bad one, ties half (Mann and Whitney)."""
    order = np.sort(scores[~good])
    below = np.searchsorted(order, scores[good], side="left") + np.searchsorted(
        order, scores[good], side="right"
    )
    return float(below.mean() / (2 * len(order)))


def read_examples(path: Path) -> Examples:
    """In the order of their hashes. Empty lines are skipped."""
    labels: dict[str, tuple[bool, int]] = {}
    bad_rows: list[str] = []
    repeated = 0
    for number, line in _lines(path):
        example = _example(line)
        if isinstance(example, str):
            bad_rows.append(f"row {number}: {example}")
            continue
        text, is_good = example
        known, first_row = labels.setdefault(text, (is_good, number))
        if known != is_good:
            bad_rows.append(f"row {number}: the text of row {first_row} with the other label")
        repeated += first_row != number
    if bad_rows:
        more = f"; and {len(bad_rows) - _NAMED_ROWS} more" if len(bad_rows) > _NAMED_ROWS else ""
        raise _bad_examples(path, "; ".join(bad_rows[:_NAMED_ROWS]) + more, "mend or remove these rows")
    good = sum(is_good for is_good, _ in labels.values())
    if min(good, len(labels) - good) < _LEAST_EXAMPLES:
        raise _bad_examples(path, f"{good} good and {len(labels) - good} bad ones", "label more examples")
    texts = sorted(labels, key=lambda text: xxhash.xxh3_128_digest(text.encode()))
    return Examples(texts, np.array([labels[text][0] for text in texts]), repeated)


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        found = f"{path}: {getattr(error, 'strerror', None) or error}"
        raise _bad_examples(path, found, "check data.clean.quality") from error
    lines = content.split("\n")  # not splitlines: JSON may hold U+2028
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _example(line: str) -> tuple[str, bool] | str:
    """(text, whether it is good), or what is wrong."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return "no JSON"
    if not isinstance(row, dict):
        return "no object"
    text, label = row.get("text"), row.get("label")
    if not isinstance(text, str) or not text.strip():
        return "no text"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "text that is no Unicode"
    if label not in ("good", "bad"):
        return f"label {label!r}"[:60]
    return text, label == "good"


def _bad_examples(path: Path, found: str, fix: str) -> DataError:
    return DataError(
        f"cannot learn quality from {path.name}",
        found=found,
        wanted=f'{_LEAST_EXAMPLES} or more good and bad lines each, as {{"text": "...", "label": "good"}}',
        fix=fix,
    )


def _held_out(examples: Examples, seed: int) -> NDArray[np.bool_]:
    """A fifth of either class."""
    order = np.argsort(
        [xxhash.xxh3_64_intdigest(text.encode(), seed) for text in examples.texts], kind="stable"
    )
    held_out = np.zeros(len(order), dtype=bool)
    for is_good in (True, False):
        members = order[examples.good[order] == is_good]
        held_out[members[: round(_HELD_OUT * len(members))]] = True
    return held_out


def loss_and_gradient(
    weights: Floats, features: NDArray[np.int64], starts: NDArray[np.int64], good: NDArray[np.bool_]
) -> tuple[float, Floats]:
    """Mean logistic loss with both classes at the same weight, and the ridge (not on the constant)."""
    share_E = np.where(good, 0.5 / good.sum(), 0.5 / (~good).sum())
    margins_E = np.where(good, 1.0, -1.0) * (means(weights[features], starts) + weights[-1])
    loss = float(share_E @ np.logaddexp(0.0, -margins_E) + 0.5 * _RIDGE * weights[:-1] @ weights[:-1])
    slopes_E = np.where(good, -1.0, 1.0) * share_E * probability(-margins_E)
    lengths = np.diff(starts)
    spread = np.repeat(slopes_E / np.maximum(lengths, 1), lengths)
    gradient: Floats = np.bincount(features, spread, minlength=len(weights)).astype(np.float64)
    gradient[:-1] += _RIDGE * weights[:-1]
    gradient[-1] = slopes_E.sum()
    return loss, gradient


def _fit(
    features: NDArray[np.int64], starts: NDArray[np.int64], good: NDArray[np.bool_], num_weights: int
) -> Floats:
    """The weights of least loss."""
    weights = np.zeros(num_weights)
    loss, gradient = loss_and_gradient(weights, features, starts, good)
    first_norm = np.linalg.norm(gradient)
    pairs: deque[tuple[Floats, Floats]] = deque(maxlen=_MEMORY)
    for _ in range(_MOST_STEPS):
        if np.linalg.norm(gradient) <= _ENOUGH * first_norm:
            break
        direction = _direction(gradient, pairs)
        slope, step = float(direction @ gradient), 1.0
        moved = weights + direction
        new_loss, new_gradient = loss_and_gradient(moved, features, starts, good)
        while new_loss > loss + 1e-4 * step * slope:
            step *= 0.5
            if step < 1e-9:  # as low as rounding lets it go
                return weights
            moved = weights + step * direction
            new_loss, new_gradient = loss_and_gradient(moved, features, starts, good)
        pairs.append((moved - weights, new_gradient - gradient))
        weights, loss, gradient = moved, new_loss, new_gradient
    return weights


def _direction(gradient: Floats, pairs: deque[tuple[Floats, Floats]]) -> Floats:
    """Downhill, with the curvature that the last moves met: two loops, no matrix."""
    direction = -gradient
    if not pairs:
        return direction / np.linalg.norm(gradient)
    coefficients = []
    for move, change in reversed(pairs):
        coefficients.append(move @ direction / (move @ change))
        direction -= coefficients[-1] * change
    move, change = pairs[-1]
    direction *= (move @ change) / (change @ change)
    for (move, change), coefficient in zip(pairs, reversed(coefficients), strict=True):
        direction += (coefficient - change @ direction / (move @ change)) * move
    return direction
