"""What pre-training buys, measured: the same task from pre-trained and from random weights.

With one seed the pre-trained model learns from 1/16, 1/4 and all of the examples, and the random start from
all of them. With more (`compare_seeds`) both learn from 1/64, 1/16, 1/4 and all, each as often as there are
seeds: another order of samples, and other random weights. The random start gets twice as many epochs and, at
each number of examples, the better of two learning rates. Of every training the best validation on the way
counts (early stopping), on the same held-out examples.
Cost, in epochs of all examples over those of the recipe (which are in it): 5.3 with one seed, 14.6 with
three.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bessemer.durable import write_json
from bessemer.errors import RecipeError
from bessemer.finetune.curve import Point, examples_ratio, means, ratio_band, ratio_words, sentence
from bessemer.finetune.run import train_on
from bessemer.finetune.task import Task
from bessemer.planner.sizing.budget import COMPARED_PARTS
from bessemer.recipe.schema import Finetune
from bessemer.rundir import counting_rows, read_rows

_SHARES, _CURVE_SHARES = COMPARED_PARTS[1:], COMPARED_PARTS
_FEWEST = 4  # examples that a point is worth
_SCRATCH_EPOCHS = 2
_SCRATCH_RATES = (1.0, 3.0)  # times a third of pre-training's peak: that peak, and a third of it
_RATE_ALONE = 1e-3  # where nothing is known of pre-training
_UNITS = {"classify": "text", "orpo": "pair", "simpo": "pair", "reward": "pair"}  # else answer token
_OF_ONE_START = ("dpo", "ipo", "grpo")  # measured against the very weights that they begin from


@dataclass(frozen=True)
class _Scratch:
    """The random start at one number of examples. `tried`: each rate, with the first seed."""

    point: Point
    lr: float
    tried: list[dict[str, Any]]


def compare_scratch(task: Task) -> dict[str, Any]:
    """Trains what is missing, writes finetune-comparison.json. The `finetune` stage is trained already."""
    seeds = _section(task).compare_seeds
    total = task.data.num_examples("train")
    shares = [share for share in (_SHARES if seeds == 1 else _CURVE_SHARES) if total // share >= _FEWEST]
    shares = shares or [1]
    at_random = shares if seeds > 1 else [1]
    trainings = len(shares) * seeds + len(at_random) * (len(_SCRATCH_RATES) + seeds - 1)
    counts = ", ".join(f"{_count(task, share):,}" for share in shares)
    console = task.place.console
    console.line(f"comparison with random weights: {trainings} trainings, on {counts} examples")
    points = [_pretrained(task, share, seeds) for share in shares]
    scratch = [_scratch(task, share, seeds) for share in at_random]
    document = _document(points, scratch, _UNITS.get(_section(task).method, "answer token"))
    write_json(task.place.run / "finetune-comparison.json", document)
    return document


def check_comparable(task: Task) -> None:
    if task.data.num_examples("validation") == 0:
        raise RecipeError(
            "there is nothing to compare on",
            found="no held-out example of the task",
            wanted="some, to measure both starts on",
            fix="set data.validation=0.05, or leave compare_scratch out",
        )
    method, on_policy = _section(task).method, _section(task).on_policy
    if on_policy:  # each point would learn from the prompts of all examples
        raise RecipeError(
            "answers of the model's own cannot be compared with training from scratch",
            found="compare_scratch beside finetune.on_policy = true: random weights answer with noise",
            wanted="the same answers for both starts, and for each point those of its examples",
            fix="set finetune.on_policy=false, or leave compare_scratch out",
        )
    if method in _OF_ONE_START:
        raise RecipeError(
            f'method = "{method}" cannot be compared with training from scratch',
            found=f'compare_scratch beside method = "{method}"',
            wanted="a loss that does not depend on the weights that the training begins from",
            fix="compare the stage before it, which learns the answers; or leave compare_scratch out",
        )


def best_loss(stage: Path) -> float:
    """The lowest validation loss on the way."""
    rows = counting_rows(read_rows(stage / "metrics.jsonl"))
    losses = [row["validation_loss"] for row in rows if row.get("validation_loss") is not None]
    assert losses, f"{stage} was never validated"
    return float(min(losses))


def _pretrained(task: Task, share: int, seeds: int) -> Point:
    """The recipe's own training is the one on all examples with the first seed."""
    count, part = _count(task, share), "" if share == 1 else f"-1of{share}"
    losses = [best_loss(task.place.run / "finetune")] if share == 1 else []
    for seed in range(len(losses), seeds):
        losses.append(_trained(_for_share(task, share), f"finetune{part}", seed, share))
    return Point(count, tuple(losses))


def _scratch(task: Task, share: int, seeds: int) -> _Scratch:
    part = "" if share == 1 else f"-1of{share}"
    tried: list[dict[str, Any]] = []
    for number, lr in enumerate(_rates(task), start=1):
        name = f"finetune-scratch{part}-{number}"
        loss = _trained(_at_random(_for_share(task, share), lr), name, 0, share, from_scratch=True)
        tried.append({"lr": lr, "loss": loss, "stage": name})
    best = min(tried, key=lambda row: row["loss"])
    chosen = _at_random(_for_share(task, share), best["lr"])
    others = [_trained(chosen, best["stage"], seed, share, from_scratch=True) for seed in range(1, seeds)]
    return _Scratch(Point(_count(task, share), (best["loss"], *others)), best["lr"], tried)


def _trained(task: Task, name: str, seed: int, share: int, *, from_scratch: bool = False) -> float:
    """One training of the comparison, where it has not been done yet: its best loss."""
    name = name if seed == 0 else f"{name}-seed{seed + 1}"
    recipe = task.recipe.model_copy(update={"seed": task.recipe.seed + seed})
    examples = None if share == 1 else _count(task, share)
    train_on(replace(task, recipe=recipe), name, examples=examples, from_scratch=from_scratch)
    return best_loss(task.place.run / name)


def _count(task: Task, share: int) -> int:
    return task.data.num_examples("train") // share


def _section(task: Task) -> Finetune:
    assert task.recipe.finetune is not None
    return task.recipe.finetune


def _with(task: Task, **changes: Any) -> Task:
    section = _section(task).model_copy(update=changes)
    return replace(task, recipe=task.recipe.model_copy(update={"finetune": section}))


def _for_share(task: Task, share: int) -> Task:
    """Batch and warm-up follow from the number of examples: those given for all may not fit a few. Of what
    is only measured, one checkpoint is enough."""
    if share == 1:
        return _with(task, keep=1)
    return _with(task, keep=1, micro_batch="auto", warmup="auto")


def _at_random(task: Task, lr: float) -> Task:
    """All weights are trained: adapters of random ones that stay would learn next to nothing."""
    section = _section(task)
    method = "full" if section.method in ("lora", "qlora") else section.method
    epochs = _SCRATCH_EPOCHS * section.epochs
    task = _with(task, lr=lr, epochs=epochs, method=method, adapter="none")
    return replace(task, shape=replace(task.shape, adapter=None))


def _rates(task: Task) -> list[float]:
    peak = task.origin.plan.lr if task.origin.plan is not None else _RATE_ALONE
    return [float(f"{peak * share / 3.0:.1e}") for share in _SCRATCH_RATES]


def _document(points: Sequence[Point], scratch: Sequence[_Scratch], unit: str) -> dict[str, Any]:
    """finetune-comparison.json. `curve` has the spread of each point; the rest are means."""
    last = scratch[-1]
    largest = points[-1].examples / points[0].examples
    worst, best = ratio_band(points, last.point)
    return {
        "examples": [point.examples for point in points],
        "pretrained": [point.mean for point in points],
        "scratch": {
            "examples": last.point.examples,
            "loss": last.point.mean,
            "lr": last.lr,
            "tried": last.tried,
        },
        "seeds": len(last.point.losses),
        "curve": {
            "pretrained": [point.to_json() for point in points],
            "scratch": [{**each.point.to_json(), "lr": each.lr} for each in scratch],
        },
        "ratio": ratio_words(examples_ratio(means(points), last.point.mean), largest),
        "ratio_band": [ratio_words(worst, largest), ratio_words(best, largest)],
        "unit": unit,
        "sentence": sentence(points, last.point, unit),
    }
