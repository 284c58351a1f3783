"""The losses of distillation and of sampled answers, of one micro-batch on one rank: what the engine runs.

Both are sums over tokens with a target, each rank of its own tokens. What a token's loss needs are columns of
its row, at the place that predicts it: `teacher_ids` and `teacher_log_probs` [T, K] of the teacher's
likeliest words; or `advantage`, `old_log_probs` and, where beta is not 0, `reference_log_probs` [T].
Dims: B rows, L this rank's tokens of a row, K words, N = B*L, D hidden.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bessemer.data.loader import MicroBatch
from bessemer.formulas.objective import Objective
from bessemer.model.decoder import Decoder
from bessemer.model.distillation import taught_words, teacher_divergence
from bessemer.model.loss import IGNORED
from bessemer.model.policy import policy_losses
from bessemer.model.token_log_probs import token_log_probs
from bessemer.parallel.documents import Neighbours, hidden_states


@dataclass(frozen=True)
class TeacherLoss:
    """Summed divergence from the teacher."""

    neighbours: Neighbours
    vocab: int  # of the whole head

    def __call__(self, model: nn.Module, part: MicroBatch, hidden_BTD: Tensor | None = None) -> Tensor:
        assert isinstance(model, Decoder), model
        ids_NK, teacher_NK = (_own(model, part.columns[f"teacher_{name}"]) for name in ("ids", "log_probs"))
        targets_N = _own(model, part.targets_BT)
        words_NK = taught_words(ids_NK, targets_N)
        out_ND = hidden_states(model, part, hidden_BTD).flatten(0, 1)
        student_NK = token_log_probs(out_ND, model.head_weight, words_NK, self.neighbours.vocabulary)
        # Before the formula and not after it: where there is no teacher its gradient would not be finite.
        counted_N1, nothing = (targets_N != IGNORED).unsqueeze(-1), -math.log(2.0 * ids_NK.shape[-1])
        student_NK, teacher_NK = (
            torch.where(counted_N1, log_probs_NK, nothing) for log_probs_NK in (student_NK, teacher_NK)
        )
        losses_N = teacher_divergence(student_NK, teacher_NK, has_rest=ids_NK.shape[-1] < self.vocab)
        return self.neighbours.share_of(losses_N.sum(), documents=False)


@dataclass(frozen=True)
class PolicyLoss:
    """Summed over the tokens of sampled answers."""

    objective: Objective
    neighbours: Neighbours

    def __call__(self, model: nn.Module, part: MicroBatch, hidden_BTD: Tensor | None = None) -> Tensor:
        assert isinstance(model, Decoder), model
        objective, columns = self.objective, part.columns
        targets_N = _own(model, part.targets_BT)
        out_ND = hidden_states(model, part, hidden_BTD).flatten(0, 1)
        out_ND = out_ND if objective.temperature == 1.0 else out_ND / objective.temperature
        log_probs_N = token_log_probs(out_ND, model.head_weight, targets_N, self.neighbours.vocabulary)
        reference_N = _own(model, columns["reference_log_probs"]) if objective.beta else None
        losses_N = policy_losses(
            log_probs_N,
            _own(model, columns["old_log_probs"]),
            _own(model, columns["advantage"]),
            objective.clip,
            reference_N,
            objective.beta,
        )
        loss = torch.where(targets_N == IGNORED, 0.0, losses_N).sum()
        return self.neighbours.share_of(loss, documents=False)


def _own(model: Decoder, values_BT: Tensor) -> Tensor:
    """This rank's tokens of whole rows, one after the other."""
    return model.model.rows.local(values_BT).flatten(0, 1)
