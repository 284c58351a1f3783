"""Task loss against the number of examples: the points of the two starts, and what they say together.

A point is the mean over its seeds, with the lowest and the highest as its error bar: of two or three
trainings a deviation would be no better known than they are. How many times fewer examples the pre-trained
model needs is read off where its curve crosses the loss of the random start on all examples; between the
measured points in the logarithm of the examples, beyond them as "≥ 16×".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any


@dataclass(frozen=True)
class Point:
    """A number of examples, and the loss of the training of each seed."""

    examples: int
    losses: tuple[float, ...]

    @property
    def mean(self) -> float:
        return math.fsum(self.losses) / len(self.losses)

    @property
    def low(self) -> float:
        return min(self.losses)

    @property
    def high(self) -> float:
        return max(self.losses)

    def to_json(self) -> dict[str, Any]:
        spread = {"mean": self.mean, "low": self.low, "high": self.high}
        return {"examples": self.examples, **spread, "losses": list(self.losses)}


Curve = Sequence[tuple[int, float]]  # examples, loss


def means(points: Sequence[Point]) -> Curve:
    return [(point.examples, point.mean) for point in points]


def examples_ratio(curve: Curve, target: float) -> float | None:
    """How many times fewer examples reach `target`: all over that many. None: not even all reach it.

    Larger than measured when the fewest do: then it is the largest ratio that was tried.
    """
    total = curve[-1][0]
    if curve[0][1] <= target:
        return total / curve[0][0]
    for (fewer, loss), (more, next_loss) in pairwise(curve):
        if next_loss <= target:
            part = (loss - target) / (loss - next_loss)
            return total / math.exp(math.log(fewer) + part * math.log(more / fewer))
    return None


def ratio_band(points: Sequence[Point], scratch: Point) -> tuple[float | None, float | None]:
    """The ratio where every seed of the one goes worst and of the other best, and the other way round."""
    worst = examples_ratio([(point.examples, point.high) for point in points], scratch.low)
    best = examples_ratio([(point.examples, point.low) for point in points], scratch.high)
    return worst, best


def ratio_words(ratio: float | None, largest: float) -> str:
    if ratio is None:
        return "none"
    return f"≥ {largest:.0f}×" if ratio >= largest else f"{ratio:.1f}×"


def sentence(points: Sequence[Point], scratch: Point, unit: str) -> str:
    """unit: what the loss is per, e.g. "answer token"."""
    total, curve = points[-1].examples, means(points)
    ratio = examples_ratio(curve, scratch.mean)
    if ratio is None:
        told = (
            f"Pre-training did not help here: with all {total:,} examples it reaches {points[-1].mean:.3f}, "
            f"training from scratch {scratch.mean:.3f}."
        )
    else:
        at_most = "at most " if ratio >= total / points[0].examples else "about "
        told = (
            f"With {at_most}{round(total / ratio):,} examples the pre-trained model is as good as one "
            f"trained from scratch on all {total:,} (loss {scratch.mean:.3f} nat per {unit}; with all it "
            f"reaches {points[-1].mean:.3f})."
        )
    if len(scratch.losses) == 1:
        return told
    worst, best = (ratio_words(each, total / points[0].examples) for each in ratio_band(points, scratch))
    return f"{told} {len(scratch.losses)} seeds each: the ratio lies between {worst} and {best}."
