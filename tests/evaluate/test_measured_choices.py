"""Measures of classifiers and of preferences, against counts by hand and the losses they are made of."""

import math
from dataclasses import replace

import pytest
import torch
from making_layouts import SHAPES
from making_preferences import PairRows, TextRows, trl_loss
from making_runs import tiny_model

from bessemer.data.loader import micro_batch
from bessemer.evaluate.classify import calibration_error, classify, scores
from bessemer.evaluate.preference import preferences
from bessemer.formulas.objective import Objective
from bessemer.parallel.documents import Neighbours
from bessemer.parallel.objectives import ClassLoss


def test_scores_of_labels_are_the_counts_by_hand() -> None:
    said, labels = torch.tensor([0, 0, 0, 1, 1, 3]), torch.tensor([0, 0, 1, 1, 0, 2])
    found = scores(said, labels, ("a", "b", "c", "d"))
    assert found["a"] == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "examples": 3})
    assert found["b"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "examples": 2}
    assert found["c"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "examples": 1}
    assert found["d"]["f1"] == 0.0 and found["d"]["examples"] == 0


def test_calibration_error_is_the_distance_of_what_is_promised_to_what_is_right() -> None:
    # Two bins of 15: four texts said with 0.7, of which one is right; one with 1.0, right.
    confidence = torch.tensor([0.7, 0.7, 0.7, 0.7, 1.0], dtype=torch.float64)
    right = torch.tensor([True, False, False, False, True])
    assert calibration_error(confidence, right) == pytest.approx(4 / 5 * (0.7 - 0.25))
    # The share of those that are right is as promised, in each bin: no error.
    believable = torch.tensor([0.5, 0.5, 1.0], dtype=torch.float64)
    assert calibration_error(believable, torch.tensor([True, False, True])) == 0.0


def test_a_classifier_is_measured_on_every_held_out_text() -> None:
    shape, objective = SHAPES["classes"], Objective("classify", labels=("a", "b", "c"))
    objective = replace(objective, class_weights=(0.5, 2.0, 1.5))
    rows, model = TextRows(7, shape), tiny_model(shape)
    found = classify(model, rows, objective, batch=2)
    texts = [text for row in rows.texts for text in row]
    part = micro_batch(rows, range(7))
    with torch.no_grad():
        loss = ClassLoss(objective, Neighbours())(model, part) / len(texts)
        said = [int(model.logits(model(torch.tensor([text]))[0, -1]).argmax()) for text, _ in texts]
    right = [guess == label for guess, (_, label) in zip(said, texts, strict=True)]
    assert found["examples"] == len(texts)
    assert found["accuracy"] == pytest.approx(sum(right) / len(right))
    assert found["text_loss"] == pytest.approx(float(loss), rel=1e-5)
    assert found["macro_f1"] == pytest.approx(sum(each["f1"] for each in found["by_label"].values()) / 3)


@pytest.mark.parametrize("kind", ["dpo", "ipo", "orpo", "simpo", "reward"])
def test_preferences_are_measured_on_every_held_out_pair(kind: str) -> None:
    shape = SHAPES["reward" if kind == "reward" else "dense"]
    rows, model, objective = PairRows(7, shape), tiny_model(shape), Objective(kind, margin=0.0)
    found = preferences(model, rows, objective, batch=2)
    pairs = [pair for row in rows.pairs for pair in row]
    assert found["pairs"] == len(pairs)
    losses = [trl_loss(objective, model, [pair]).item() for pair in pairs]
    assert found["pair_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    if kind in ("dpo", "simpo", "reward"):  # -log sigmoid: a pair is told apart where the loss is under log 2
        right = [loss < math.log(2.0) for loss in losses]
        assert found["pair_accuracy"] == pytest.approx(sum(right) / len(right))
        margins = [-math.log(math.expm1(loss)) for loss in losses]
        assert found["mean_margin"] == pytest.approx(sum(margins) / len(margins), rel=1e-3, abs=1e-6)
