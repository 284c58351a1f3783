"""The losses of pairs and of classes, of one micro-batch on one rank: what the engine runs for them.

Rows hold both documents of a pair, the chosen one first; column `partner` says, at the place where a chosen
one begins, where its rejected one does, and `reference` what the reference model's log-probabilities of each
document sum to (data/rows.py). Sums of documents come from parallel/documents.py, so that every layout
computes the same.
Dims: B rows, T tokens, L this rank's tokens of a row, D hidden.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bessemer.data.loader import MicroBatch
from bessemer.data.rows import NO_LOSS
from bessemer.formulas.objective import WITH_REFERENCE, Objective
from bessemer.model.decoder import Decoder
from bessemer.model.preference import Answers, pair_losses, pair_margins
from bessemer.parallel.documents import (
    Neighbours,
    document_sums,
    document_targets,
    final_scores,
    target_log_probs,
)


@dataclass(frozen=True)
class PairLoss:
    """Summed over the pairs of a micro-batch."""

    objective: Objective
    neighbours: Neighbours

    def __call__(self, model: nn.Module, part: MicroBatch, hidden_BTD: Tensor | None = None) -> Tensor:
        assert isinstance(model, Decoder), model
        chosen, rejected, is_pair_BT = self._answers(model, part, hidden_BTD)
        losses_BT = pair_losses(self.objective, chosen, rejected)
        loss = torch.where(is_pair_BT, losses_BT, 0.0).sum()
        return self.neighbours.share_of(loss, documents=True)

    def margins(self, model: Decoder, part: MicroBatch) -> tuple[Tensor, Tensor]:
        """Of each pair the margin and the loss, fp32."""
        chosen, rejected, is_pair_BT = self._answers(model, part, None)
        both = pair_margins(self.objective, chosen, rejected), pair_losses(self.objective, chosen, rejected)
        return both[0][is_pair_BT], both[1][is_pair_BT]

    def _answers(
        self, model: Decoder, part: MicroBatch, hidden_BTD: Tensor | None
    ) -> tuple[Answers, Answers, Tensor]:
        """[B, T] each; what they say counts only where a pair begins, which the last one tells."""
        partner_BT = part.columns["partner"]
        is_pair_BT = partner_BT > 0
        sums_BT = document_scores(self.objective, self.neighbours, model, part, hidden_BTD)
        counts_BT = document_targets(part)
        reference_BT = part.columns["reference"] if self.objective.kind in WITH_REFERENCE else None
        # Elsewhere any number that every formula can take: a gradient that is masked must not be NaN.
        chosen_BT = torch.where(is_pair_BT, sums_BT, -1.0)
        rejected_BT = torch.where(is_pair_BT, sums_BT.gather(1, partner_BT), -1.0)
        chosen = Answers(chosen_BT, counts_BT, reference_BT)
        other_BT = None if reference_BT is None else reference_BT.gather(1, partner_BT)
        return chosen, Answers(rejected_BT, counts_BT.gather(1, partner_BT), other_BT), is_pair_BT


def document_scores(
    objective: Objective,
    neighbours: Neighbours,
    model: Decoder,
    part: MicroBatch,
    hidden_BTD: Tensor | None = None,
) -> Tensor:
    """[B, T]: where each document begins, its summed log-probability, or its reward; alike on all ranks."""
    if objective.kind == "reward":
        return document_sums(model, part, final_scores(model, part, hidden_BTD), neighbours)
    return document_sums(model, part, target_log_probs(model, part, neighbours, hidden_BTD), neighbours)


@dataclass(frozen=True)
class ClassLoss:
    """Summed over the texts of a micro-batch, each by the weight of its class. The target at a text's last
    token is the number of its label."""

    objective: Objective
    neighbours: Neighbours

    def __call__(self, model: nn.Module, part: MicroBatch, hidden_BTD: Tensor | None = None) -> Tensor:
        assert isinstance(model, Decoder), model
        log_probs_BL = target_log_probs(model, part, self.neighbours, hidden_BTD)
        if self.objective.class_weights:
            weights = torch.tensor(self.objective.class_weights, device=log_probs_BL.device)
            targets_BL = model.model.rows.local(part.targets_BT)
            log_probs_BL = log_probs_BL * weights[targets_BL.clamp_min(0)]
        return self.neighbours.share_of(-log_probs_BL.sum(), documents=False)


def text_logits(model: Decoder, part: MicroBatch) -> tuple[Tensor, Tensor]:
    """Of each text: logits of the classes, fp32, and the number of its label. One process."""
    part = part.to(model.head_weight.device)
    is_last_BT = part.targets_BT != NO_LOSS
    out_ND = model(part.tokens_BT, part.starts_BT)[is_last_BT]
    return model.logits(out_ND).float(), part.targets_BT[is_last_BT]
