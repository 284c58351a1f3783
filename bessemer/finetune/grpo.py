"""GRPO: what is kept of sampled answers, and their rewards (model/policy.py has the loss).

Beside each token of an answer go its log-probability when it was drawn, at the temperature it was drawn
at, and the answer's advantage over the others to its prompt; with beta, also the reference's log-
probability, which is the model that the stage began from.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from bessemer.errors import RecipeError
from bessemer.finetune.answer_rows import Answer, Array, said_of
from bessemer.finetune.models import check_asked, origin_model
from bessemer.finetune.rewards import Reward, reward_of
from bessemer.finetune.rollouts import Judge
from bessemer.finetune.rounds import Columns, Drawn
from bessemer.log import Console
from bessemer.model.decoder import Decoder
from bessemer.model.policy import advantages
from bessemer.model.token_log_probs import token_log_probs
from bessemer.train.first_weights import check_merged
from bessemer.train.stage import Stage


def check_reference(stage: Stage) -> None:
    """RecipeError where the model that the stage began from cannot be asked about what it writes."""
    objective, origin = stage.plan.objective, stage.origin
    if not objective.asks_origin or origin is None:
        return
    check_merged(origin, "the reference of finetune.beta")
    if stage.new_tokens:
        raise RecipeError(
            "the reference of finetune.beta has no rows for the tokens that are added",
            found=f"finetune.beta = {objective.beta:g} and finetune.add_tokens: {len(stage.new_tokens)} new",
            wanted="a reference that knows every token which the model can write",
            fix="set finetune.beta=0, or add the tokens in a stage that learns answers and begin from that",
        )


def grpo_judge(stage: Stage, console: Console) -> Judge:
    objective, rollouts = stage.plan.objective, stage.plan.objective.rollouts
    assert rollouts is not None
    reward = reward_of(stage.folder, rollouts.reward)
    reference: list[Decoder] = []  # read when it is asked for the first time

    def columns(model: Decoder, answers: Sequence[Answer]) -> Columns:
        found = {"old_log_probs": _log_probs(model, answers, stage.plan.context, objective.temperature)}
        if objective.asks_origin:
            if not reference:
                assert stage.origin is not None, "random weights are no reference"
                reference.append(origin_model(stage.origin, stage.plan.dtype, console.line))
            found["reference_log_probs"] = _log_probs(
                reference[0], answers, stage.plan.context, objective.temperature
            )
        return found

    def rewards(drawn: Sequence[Drawn]) -> tuple[Columns, list[float], dict[str, Any]]:
        return rewarded(drawn, reward, rollouts.group_size)

    def check() -> None:
        if objective.asks_origin and stage.origin is not None:
            check_asked(stage.folder, stage.origin)

    return Judge(columns, rewards, check)


def rewarded(
    drawn: Sequence[Drawn], reward: Reward, group_size: int
) -> tuple[dict[str, Array], list[float], dict[str, Any]]:
    """(advantage of each trained token, reward of each answer, figures)."""
    values = [reward(each.prompt.text, each.text, each.prompt.expected) for each in drawn]
    grouped_PG = np.array(values, dtype=np.float64).reshape(-1, group_size)
    repeats = [each.answer.trained for each in drawn]
    advantage = np.repeat(advantages(grouped_PG).ravel(), repeats).astype(np.float32)
    figures = {
        "reward": float(grouped_PG.mean()),
        "reward_std": float(grouped_PG.std(axis=1, ddof=1).mean()),
        "groups_alike": float((grouped_PG.std(axis=1) == 0.0).mean()),  # they teach nothing
    }
    return {"advantage": advantage}, values, figures


def _log_probs(model: Decoder, answers: Sequence[Answer], context: int, temperature: float) -> Array:
    def ask(hidden_ND: Tensor, targets_N: Tensor) -> list[Tensor]:
        return [token_log_probs(hidden_ND / temperature, model.head_weight, targets_N)]

    (found,) = said_of(model, answers, context, ask)
    return found
