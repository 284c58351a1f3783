"""Rounds and steps of a fine-tuning on sampled answers: known before the first answer is given."""

from typing import Any

import numpy as np
import pytest

from bessemer.data.packed_rows import pack
from bessemer.errors import RecipeError
from bessemer.formulas.objective import Objective, Rollouts
from bessemer.planner.rules.rollout import is_sampled, rollouts_of
from bessemer.planner.stage import Rules
from bessemer.recipe.schema import Finetune


def decided(prompts: list[int], context: int = 64, method: str = "grpo", **keys: Any) -> tuple[Rollouts, int]:
    section = Finetune(method=method, **keys)
    return rollouts_of(section, prompts, context, Rules("finetune"))


def test_every_prompt_is_asked_so_many_times_over_all_rounds() -> None:
    found, _ = decided([10] * 90, epochs=2, rounds=4, group_size=8, answer_tokens=22)
    assert (found.prompts, found.answers) == (45, 360)
    assert found.rounds * found.prompts == 2 * 90


def test_a_round_is_four_steps_unless_the_batch_is_given() -> None:
    found, rows = decided([10] * 90, epochs=2, answer_tokens=22)
    assert found.steps == 4 and rows == 45  # two answers a row
    found, rows = decided([10] * 90, epochs=2, answer_tokens=22, batch_tokens=64 * 9)
    assert (rows, found.answers_per_step, found.steps) == (9, 18, 20)


@pytest.mark.parametrize("seed", range(20))
def test_a_steps_answers_always_fit_its_rows(seed: int) -> None:
    random = np.random.default_rng(seed)
    context, answer_tokens = int(random.integers(20, 100)), int(random.integers(1, 15))
    prompts = random.integers(1, 30, size=50).tolist()
    found, rows = decided(
        prompts, context, answer_tokens=answer_tokens, batch_tokens=context * int(random.integers(1, 9))
    )
    kept = [length for length in prompts if length <= found.prompt_tokens]
    for _ in range(20):
        lengths = random.choice(kept, found.answers_per_step) + random.integers(
            1, answer_tokens + 1, found.answers_per_step
        )
        assert len(pack(lengths.tolist(), context)) <= rows


def test_prompts_without_room_for_an_answer_are_left_out() -> None:
    found, _ = decided([10, 50, 60], context=64, answer_tokens=14, epochs=1, rounds=1)
    assert (found.prompts, found.prompt_tokens) == (2, 50)
    with pytest.raises(RecipeError, match="no prompt leaves room"):
        decided([60, 61], context=64, answer_tokens=14)


def test_a_group_of_one_is_refused_and_a_distillation_has_none() -> None:
    with pytest.raises(RecipeError, match="nothing to be better than"):
        decided([10], 128, group_size=1)
    found, _ = decided([10], 128, method="distill", on_policy=True, top_k=5)
    assert (found.group_size, found.reward) == (1, "")


def test_only_answers_of_the_models_own_are_sampled() -> None:
    assert is_sampled(Finetune(method="grpo")) and is_sampled(Finetune(method="distill", on_policy=True))
    assert not is_sampled(Finetune(method="distill")) and not is_sampled(Finetune())


def test_the_plan_keeps_the_rounds() -> None:
    found, _ = decided([10] * 8, 128)
    objective = Objective("grpo", rollouts=found)
    stored = {**objective.__dict__, "rollouts": found.__dict__}
    assert Objective.from_json(stored) == objective
