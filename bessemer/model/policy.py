"""GRPO: answers that were rewarded more than others to the same prompt become likelier (arXiv:2402.03300).

    loss of a token = -min(r A, clip(r, 1 - c, 1 + c) A) + beta KL
    r  = p / p when the token was drawn
    A  = (reward - mean of its group) / (standard deviation of its group + 1e-4)
    KL = p_ref / p - log(p_ref / p) - 1, to the reference model

Defaults are those of TRL 1.16: the mean is over all tokens of a step (DAPO, arXiv:2503.14476: a mean per
answer would make each token of a long answer count less), A is divided by the standard deviation with n - 1
(Dr. GRPO, arXiv:2503.20783, does not divide), beta is 0. Clipping matters from a round's second step on: in
its first, r is 1.
Dims: N tokens.
"""

import numpy as np
import torch
from torch import Tensor

Rewards = np.ndarray[tuple[int, int], np.dtype[np.float64]]
_EPSILON = 1e-4


def policy_losses(
    log_probs_N: Tensor,
    old_N: Tensor,
    advantage_N: Tensor,
    clip: float,
    reference_N: Tensor | None = None,
    beta: float = 0.0,
) -> Tensor:
    """[N] fp32. Log-probabilities at the temperature at which the answers were drawn."""
    ratio_N = (log_probs_N - old_N).exp()
    clipped_N = ratio_N.clamp(1.0 - clip, 1.0 + clip)
    losses_N = -torch.minimum(ratio_N * advantage_N, clipped_N * advantage_N)
    if reference_N is None or beta == 0.0:
        return losses_N
    behind_N = reference_N - log_probs_N
    return losses_N + beta * (behind_N.exp() - behind_N - 1.0)


def advantages(rewards_PG: Rewards) -> Rewards:
    """Of each answer among those to its prompt. P prompts, G answers to each."""
    spread_P1 = rewards_PG.std(axis=1, ddof=1, keepdims=True)
    return (rewards_PG - rewards_PG.mean(axis=1, keepdims=True)) / (spread_P1 + _EPSILON)  # type: ignore[no-any-return]
