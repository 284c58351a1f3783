"""What a fine-tuning learns: from [finetune] and the labels of its data to an `Objective`.

A key that has no effect under the method that was chosen is refused here: someone who sets `beta` expects
it to do something. Class weights: "balanced" is texts / (labels x texts of this label), as scikit-learn has
it, so that every label weighs the same in all. Weights are scaled so that the mean text of the training rows
weighs 1: then the loss of a batch is divided by its texts, and over all texts it is torch's weighted
cross-entropy, which would divide each batch by another number.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bessemer.errors import DataError, RecipeError
from bessemer.formulas.objective import NEXT_TOKEN, Objective
from bessemer.formulas.shape import ModelShape
from bessemer.recipe.schema import Finetune

ANSWERS = ("full", "lora", "qlora")  # methods that learn the answers
_FROM_PAIRS = ("dpo", "ipo", "orpo", "simpo")
_SAMPLED = ("distill", "grpo")
_HAS_EFFECT = {
    "beta": (*_FROM_PAIRS, "grpo"),
    "margin": ("simpo",),
    "smoothing": ("dpo",),
    "class_weights": ("classify",),
    "teacher": ("distill",),
    "top_k": ("distill",),
    "on_policy": ("distill",),
    "temperature": _SAMPLED,
    "rounds": _SAMPLED,
    "answer_tokens": _SAMPLED,
    "group_size": ("grpo",),
    "reward_function": ("grpo",),
    "clip": ("grpo",),
}
_PREFERENCE_LR_SHARE = 0.01
_PREFERENCE_LR_ALONE = 1e-6


def check_method(section: Finetune) -> None:
    """RecipeError for a key that the method makes nothing of."""
    for key in sorted(section.model_fields_set & _HAS_EFFECT.keys()):
        methods = _HAS_EFFECT[key]
        if section.method not in methods:
            raise RecipeError(
                f"finetune.{key} would have no effect",
                found=f'finetune.{key} with method = "{section.method}"',
                wanted="method " + " or ".join(f'"{method}"' for method in methods),
                fix=f"remove finetune.{key}, or choose one of these methods",
            )
    sampled = sorted(section.model_fields_set & {"temperature", "rounds", "answer_tokens"})
    if sampled and section.method == "distill" and not section.on_policy:
        raise RecipeError(
            f"finetune.{sampled[0]} would have no effect",
            found=f"finetune.{sampled[0]} and on_policy = false: the answers are those of the data",
            wanted="answers of the model's own, or no setting of them",
            fix=f"remove finetune.{sampled[0]}, or set finetune.on_policy=true",
        )


def objective_of(section: Finetune, manifest: Mapping[str, Any]) -> Objective:
    """manifest: of the prepared task."""
    check_method(section)
    if section.method in ANSWERS:
        return NEXT_TOKEN
    beta = section.beta
    if beta == "auto":
        beta = {"simpo": 2.0, "grpo": 0.0}.get(section.method, 0.1)
    objective = Objective(
        section.method, beta=beta, margin=section.margin, smoothing=section.smoothing, clip=section.clip
    )
    if section.method != "classify":
        return objective
    labels, counts = list(manifest["labels"]), list(manifest["label_counts"]["train"])
    _check_labels(labels, counts)
    return replace(objective, labels=tuple(labels), class_weights=_weights(section, labels, counts))


def with_head(shape: ModelShape, objective: Objective) -> ModelShape:
    """The shape with the head that the objective is learned by. A head of classes is never tied.

    RecipeError where the origin has one and the objective wants words.
    """
    labels = len(objective.labels) if objective.kind == "classify" else int(objective.kind == "reward")
    if shape.labels and not labels:
        raise RecipeError(
            "a model that tells classes apart cannot learn to write",
            found=f"a head of {shape.labels} labels, finetune.method for one of words",
            wanted="a model with a head for its vocabulary",
            fix="give with --from the model that this one was made from, or set finetune.method",
        )
    return replace(shape, labels=labels, tie_embeddings=False) if labels else shape


def preference_lr(method: str, pretrain_lr: float | None) -> tuple[float, str] | None:
    """Rate and rule of the methods that weigh two answers; None: as for any other."""
    if method not in (*_FROM_PAIRS, "grpo"):
        return None
    if pretrain_lr is None:
        return _PREFERENCE_LR_ALONE, "usual for preferences and rewards on a model that was made elsewhere"
    return float(f"{_PREFERENCE_LR_SHARE * pretrain_lr:.1e}"), (
        "a hundredth of the peak in pre-training: what the model prefers is moved, not what it knows"
    )


def _check_labels(labels: list[str], counts: list[int]) -> None:
    if len(labels) < 2:
        raise DataError(
            "finetune.data: there is nothing to tell apart",
            found=f"one label, {labels[0]!r}" if labels else "no label",
            wanted="two labels or more",
            fix="add rows of other labels, or name the right column in finetune.data.label",
        )
    unseen = [label for label, count in zip(labels, counts, strict=True) if not count]
    if unseen:
        raise DataError(
            "finetune.data: a label is never seen in training",
            found=f"no training row of {', '.join(map(repr, unseen))}",
            wanted="at least one training row of each label",
            fix="add rows of it, hold out less with data.validation, or correct finetune.data.labels",
        )


def _weights(section: Finetune, labels: list[str], counts: list[int]) -> tuple[float, ...]:
    if section.class_weights == "none":
        return ()
    if section.class_weights == "balanced":
        return tuple(sum(counts) / (len(labels) * count) for count in counts)
    unknown = sorted(set(section.class_weights) - set(labels))
    if unknown:
        raise RecipeError(
            "finetune.class_weights names a label that does not exist",
            found=", ".join(map(repr, unknown)),
            wanted="labels of the data: " + ", ".join(map(repr, labels)),
            fix="correct the name in finetune.class_weights",
        )
    weights = [section.class_weights.get(label, 1.0) for label in labels]
    mean = sum(weight * count for weight, count in zip(weights, counts, strict=True)) / sum(counts)
    return tuple(weight / mean for weight in weights)
