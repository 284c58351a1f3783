"""Losses of pairs and classes against TRL's and torch's own formulas, in one process and on many ranks."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from making_layouts import SHAPES
from making_preferences import PairRows, TextRows, trl_loss
from making_runs import tiny_model
from making_steps import CLOSE, far
from torch import Tensor

from bessemer.data.loader import micro_batch
from bessemer.formulas.objective import Objective
from bessemer.formulas.shape import ModelShape
from bessemer.model.decoder import Decoder
from bessemer.parallel.documents import Neighbours
from bessemer.parallel.objectives import ClassLoss, PairLoss
from bessemer.planner.rules.objective import objective_of
from bessemer.recipe.schema import Finetune

SHAPE = SHAPES["dense"]
REWARD = replace(SHAPE, labels=1)
CLASSES = replace(SHAPE, labels=3)
PAIRS = [
    Objective("dpo"),
    Objective("dpo", beta=0.3, smoothing=0.2),
    Objective("ipo"),
    Objective("orpo", beta=0.4),
    Objective("simpo", beta=2.0, margin=1.0),
    Objective("reward"),
]


def shape_for(objective: Objective) -> ModelShape:
    return {"reward": REWARD, "classify": CLASSES}.get(objective.kind, SHAPE)


def gradients_of(loss: Tensor, model: Decoder) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: torch.zeros(()) if each is None else each for name, each in zip(named, found, strict=True)}


@pytest.mark.parametrize("objective", PAIRS, ids=lambda each: f"{each.kind} {each.beta}")
def test_loss_and_gradients_of_packed_pairs_are_those_of_trls_formulas(objective: Objective) -> None:
    shape = shape_for(objective)
    rows, model = PairRows(4, shape), tiny_model(shape)
    ours = PairLoss(objective, Neighbours())(model, micro_batch(rows, range(4), 5))
    theirs = trl_loss(objective, model, [pair for pairs in rows.pairs for pair in pairs])
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    found, wanted = gradients_of(ours, model), gradients_of(theirs, model)
    distances = {name: far(found[name], value) for name, value in wanted.items()}
    assert max(distances.values()) < CLOSE, distances


@pytest.mark.parametrize("given", ["none", "balanced", {"b": 5.0}], ids=["none", "balanced", "one label"])
def test_loss_of_classes_over_all_texts_is_torchs_cross_entropy_weighed_alike(given: Any) -> None:
    rows, model = TextRows(8, CLASSES), tiny_model(CLASSES)
    part = micro_batch(rows, range(8), 9)
    texts = [text for row in rows.texts for text in row]
    counts = [sum(label == each for _, label in texts) for each in range(3)]
    weights = None if given == "none" else torch.tensor([1.0, 5.0, 1.0])
    if given == "balanced":
        weights = torch.tensor([len(texts) / (3 * count) for count in counts])
    manifest = {"labels": ["a", "b", "c"], "label_counts": {"train": counts}}
    objective = objective_of(Finetune(method="classify", class_weights=given), manifest)
    ours = ClassLoss(objective, Neighbours())(model, part) / part.units_B.sum()
    logits = torch.stack([model.logits(model(torch.tensor([tokens]))[0, -1]) for tokens, _ in texts])
    labels = torch.tensor([label for _, label in texts])
    theirs = torch.nn.functional.cross_entropy(logits, labels, weight=weights)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients_of(ours, model), gradients_of(theirs, model), rtol=1e-5, atol=1e-6)


def test_rows_without_pairs_have_no_loss_and_no_gradient_that_is_not_a_number() -> None:
    model = tiny_model(SHAPE)
    for objective in PAIRS[:-1]:
        loss = PairLoss(objective, Neighbours())(model, micro_batch(PairRows(4, SHAPE), [3], 2))
        assert loss.item() == 0.0
        assert all(not each.any() for each in gradients_of(loss, model).values())
