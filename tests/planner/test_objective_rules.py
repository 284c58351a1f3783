"""What [finetune] asks to learn: settings, weights of labels, heads and rates that follow from it."""

from typing import Any

import pytest
from making_layouts import SHAPES

from bessemer.errors import DataError, RecipeError
from bessemer.formulas.objective import NEXT_TOKEN, Objective
from bessemer.formulas.parameters import total_params
from bessemer.formulas.tensors import count_params
from bessemer.planner.rules.objective import check_method, objective_of, preference_lr, with_head
from bessemer.recipe.schema import Finetune


def manifest(*counts: int) -> dict[str, Any]:
    names = ["ill", "well", "worse"][: len(counts)]
    return {"labels": names, "label_counts": {"train": list(counts)}}


def weights(given: Any, *counts: int) -> tuple[float, ...]:
    return objective_of(Finetune(method="classify", class_weights=given), manifest(*counts)).class_weights


def test_answers_are_learned_as_ever_and_preferences_have_their_usual_beta() -> None:
    assert objective_of(Finetune(), {}) == objective_of(Finetune(method="lora"), {}) == NEXT_TOKEN
    found = {kind: objective_of(Finetune(method=kind), {}) for kind in ("dpo", "ipo", "orpo", "simpo")}
    assert [each.beta for each in found.values()] == [0.1, 0.1, 0.1, 2.0]
    assert objective_of(Finetune(method="dpo", beta=0.5, smoothing=0.1), {}) == Objective(
        "dpo", beta=0.5, smoothing=0.1
    )


def test_balanced_weights_make_every_label_weigh_the_same_and_the_mean_text_one() -> None:
    found = weights("balanced", 10, 30, 60)
    assert found == pytest.approx((100 / 30, 100 / 90, 100 / 180))
    assert [weight * count for weight, count in zip(found, (10, 30, 60), strict=True)] == pytest.approx(
        [100 / 3] * 3
    )


def test_given_weights_keep_their_ratios_and_are_scaled_to_a_mean_of_one() -> None:
    ill, well = weights({"ill": 3.0}, 20, 80)
    assert ill / well == pytest.approx(3.0) and (20 * ill + 80 * well) / 100 == pytest.approx(1.0)
    assert weights("none", 20, 80) == ()


def test_an_unknown_label_one_label_and_one_without_rows_are_refused() -> None:
    with pytest.raises(RecipeError, match="'sick'"):
        weights({"sick": 2.0}, 3, 4)
    with pytest.raises(DataError, match="nothing to tell apart"):
        weights("none", 3)
    with pytest.raises(DataError, match="no training row of 'worse'"):
        weights("none", 3, 4, 0)


@pytest.mark.parametrize(
    ("method", "key", "value"),
    [
        ("full", "beta", 0.1),
        ("reward", "beta", 0.1),
        ("dpo", "margin", 1.0),
        ("ipo", "smoothing", 0.1),
        ("reward", "class_weights", "balanced"),
        ("dpo", "teacher", "x"),
        ("classify", "group_size", 4),
    ],
)
def test_a_key_that_would_have_no_effect_is_refused(method: Any, key: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=f"finetune.{key} would have no effect"):
        check_method(Finetune(method=method, **{key: value}))


def test_a_head_of_labels_takes_the_place_of_that_of_words_and_is_never_tied() -> None:
    tied = SHAPES["tied"]
    assert with_head(tied, Objective("dpo")) == tied
    reward = with_head(tied, Objective("reward"))
    assert reward.labels == 1 and not reward.tie_embeddings
    assert total_params(reward) == count_params(reward) == count_params(tied) + tied.hidden
    assert with_head(tied, Objective("classify", labels=("a", "b", "c"))).labels == 3
    with pytest.raises(RecipeError, match="cannot learn to write"):
        with_head(reward, Objective("dpo"))


def test_preferences_move_a_model_less_than_a_task_does() -> None:
    assert preference_lr("full", 3e-4) is None and preference_lr("reward", 3e-4) is None
    alone, known = preference_lr("dpo", None), preference_lr("simpo", 3e-4)
    assert alone is not None and alone[0] == 1e-6
    assert known is not None and known[0] == pytest.approx(3e-6)
