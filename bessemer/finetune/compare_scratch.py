"""What pre-training buys, measured: the same task from pre-trained and from random weights.

The pre-trained model learns from 1/16, 1/4 and all of the examples. The random start gets all of them,
twice as many epochs, and the better of two learning rates. Of every run the best validation on the
way counts (early stopping), on the same held-out examples. The answer is how many times fewer examples
the pre-trained model needs to be as good; between the measured points in the logarithm of the
examples, beyond them as "≥ 16×".
"""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from bessemer.durable import write_json
from bessemer.errors import RecipeError
from bessemer.finetune.run import Task, train_on
from bessemer.recipe.schema import Recipe
from bessemer.rundir import counting_rows, read_rows

SHARES = (16, 4)
_SCRATCH_EPOCHS = 2
_SCRATCH_RATES = (1.0, 3.0)  # times a third of pre-training's peak: that peak, and a third of it
_RATE_ALONE = 1e-3  # where nothing is known of pre-training


@dataclass(frozen=True)
class Point:
    examples: int
    loss: float


def compare_scratch(task: Task) -> dict[str, Any]:
    """Trains what is missing, writes finetune-comparison.json. The `finetune` stage is trained already."""
    total = task.data.num_examples("train")
    run = task.place.run
    points = []
    for share in SHARES:
        if total // share >= 1:
            train_on(_for_share(task), f"finetune-1of{share}", examples=total // share)
            points.append(Point(total // share, best_loss(run / f"finetune-1of{share}")))
    points.append(Point(total, best_loss(run / "finetune")))
    tried = [_scratch(task, number, rate) for number, rate in enumerate(_rates(task), start=1)]
    best = min(tried, key=lambda row: row["loss"])
    ratio = examples_ratio(points, best["loss"])
    document = {
        "examples": [point.examples for point in points],
        "pretrained": [point.loss for point in points],
        "scratch": {"examples": total, "loss": best["loss"], "lr": best["lr"], "tried": tried},
        "ratio": ratio_words(ratio, total / points[0].examples),
        "sentence": _sentence(points, best["loss"], ratio, total),
    }
    write_json(run / "finetune-comparison.json", document)
    return document


def check_comparable(task: Task) -> None:
    if task.data.num_examples("validation") == 0:
        raise RecipeError(
            "there is nothing to compare on",
            found="no held-out example of the task",
            wanted="some, to measure both starts on",
            fix="set data.validation=0.05, or leave compare_scratch out",
        )


def best_loss(stage: Path) -> float:
    """The lowest validation loss on the way."""
    rows = counting_rows(read_rows(stage / "metrics.jsonl"))
    losses = [row["validation_loss"] for row in rows if row.get("validation_loss") is not None]
    assert losses, f"{stage} was never validated"
    return float(min(losses))


def examples_ratio(points: list[Point], target: float) -> float | None:
    """How many times fewer examples reach `target`: all over that many. None: not even all reach it.

    Larger than measured when the fewest do: then it is the largest ratio that was tried.
    """
    total = points[-1].examples
    if points[0].loss <= target:
        return total / points[0].examples
    for fewer, more in pairwise(points):
        if more.loss <= target:
            part = (fewer.loss - target) / (fewer.loss - more.loss)
            log_examples = math.log(fewer.examples) + part * math.log(more.examples / fewer.examples)
            return total / math.exp(log_examples)
    return None


def ratio_words(ratio: float | None, largest: float) -> str:
    if ratio is None:
        return "none"
    return f"≥ {largest:.0f}×" if ratio >= largest else f"{ratio:.1f}×"


def _for_share(task: Task) -> Task:
    """Batch and warm-up follow from the number of examples: those given for all may not fit a few."""
    assert task.recipe.finetune is not None
    section = task.recipe.finetune.model_copy(update={"micro_batch": "auto", "warmup": "auto"})
    return replace(task, recipe=task.recipe.model_copy(update={"finetune": section}))


def _rates(task: Task) -> list[float]:
    peak = task.origin.plan.lr if task.origin.plan is not None else _RATE_ALONE
    return [float(f"{peak * share / 3.0:.1e}") for share in _SCRATCH_RATES]


def _scratch(task: Task, number: int, lr: float) -> dict[str, Any]:
    name = f"finetune-scratch-{number}"
    train_on(replace(task, recipe=_scratch_recipe(task.recipe, lr)), name, from_scratch=True)
    return {"lr": lr, "loss": best_loss(task.place.run / name), "stage": name}


def _scratch_recipe(recipe: Recipe, lr: float) -> Recipe:
    assert recipe.finetune is not None
    section = recipe.finetune.model_copy(
        update={"lr": lr, "epochs": _SCRATCH_EPOCHS * recipe.finetune.epochs}
    )
    return recipe.model_copy(update={"finetune": section})


def _sentence(points: list[Point], scratch: float, ratio: float | None, total: int) -> str:
    if ratio is None:
        return (
            f"Pre-training did not help here: with all {total:,} examples it reaches {points[-1].loss:.3f}, "
            f"training from scratch {scratch:.3f}."
        )
    needed = round(total / ratio)
    at_most = "at most " if ratio >= total / points[0].examples else "about "
    return (
        f"With {at_most}{needed:,} examples the pre-trained model is as good as one trained from scratch on "
        f"all {total:,} (loss {scratch:.3f} nat per answer token; with all it reaches {points[-1].loss:.3f})."
    )
