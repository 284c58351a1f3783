"""Log-probabilities of single tokens, with gradients, that never need the full logits.

What preferences, distillation and sampled answers are learned by: the log-softmax of chosen tokens, one or
several at each place. As in model/loss.py the places are taken in chunks, so memory is chunk x vocabulary
instead of places x vocabulary. There the gradient is made in the forward pass, since a summed loss scales
all of it alike; here each token's gradient is known only afterwards, so the forward pass keeps the
log-sum-exp alone, one number a place, and the backward pass makes a chunk's logits again: four matmuls of
the head instead of three. Temperature: divide the hidden states by it.
Cost: 2,048 places, 32,000 words, width 256, fp32 on one core, forward and backward: 1.16 s and 32 MB of
logits at a time, where whole logits take 1.03 s and several times 262 MB, and the summed loss 1.26 s.
Dims: N places, C places of a chunk, K tokens at each place, D hidden, V this rank's rows of the head.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bessemer.model.loss import IGNORED, chunks

_LEAST_REST = 1e-7  # of a probability; fp32 knows no smaller one beside 1


def _same(values: Tensor) -> Tensor:
    return values


@dataclass(frozen=True)
class VocabularyPart:
    """Which rows of the head a rank has, and how numbers are reduced over the ranks that have the others."""

    first: int
    longest: int  # rows that any rank has: chunks must be the same on all
    maximum: Callable[[Tensor], Tensor] = _same
    total: Callable[[Tensor], Tensor] = _same


def token_log_probs(
    hidden_ND: Tensor, weight_VD: Tensor, targets: Tensor, part: VocabularyPart | None = None
) -> Tensor:
    """Log-probability of each target in the whole vocabulary, fp32, of the shape of `targets`: [N] or [N, K].

    0, without gradient, where a target is IGNORED. hidden_ND in the compute type; weight_VD fp32 or compute
    type. part: of a rank that has a part of the head; then the gradient of hidden states is its share of it.
    """
    part = part or VocabularyPart(0, weight_VD.shape[0])
    targets_NK = targets if targets.dim() == 2 else targets.unsqueeze(-1)
    found: Tensor = _TokenLogProbs.apply(hidden_ND, weight_VD, targets_NK, part)
    return found.view(targets.shape)


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_NK: Tensor, part: VocabularyPart
    ) -> Tensor:
        weight = weight_VD.to(hidden_ND.dtype)
        log_probs_NK = hidden_ND.new_empty(targets_NK.shape, dtype=torch.float32)
        lse_N1 = hidden_ND.new_empty((hidden_ND.shape[0], 1), dtype=torch.float32)
        for rows in chunks(hidden_ND.shape[0], part.longest):
            logits_CV = (hidden_ND[rows] @ weight.T).float()
            log_probs_NK[rows], lse_N1[rows] = _chunk(logits_CV, targets_NK[rows], part)
        ctx.save_for_backward(hidden_ND, weight_VD, targets_NK, lse_N1)
        ctx.part = part
        return log_probs_NK

    @staticmethod
    def backward(ctx: Any, grad_NK: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        hidden_ND, weight_VD, targets_NK, lse_N1 = ctx.saved_tensors
        part, weight = ctx.part, weight_VD.to(hidden_ND.dtype)
        grad_hidden = torch.empty_like(hidden_ND)
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        counted_NK = torch.where(targets_NK == IGNORED, 0.0, grad_NK)
        for rows in chunks(hidden_ND.shape[0], part.longest):
            logits_CV = (hidden_ND[rows] @ weight.T).float()
            grad_CV = (logits_CV - lse_N1[rows]).exp_().mul_(-counted_NK[rows].sum(-1, keepdim=True))
            own_CK, is_own_CK = _own(targets_NK[rows], grad_CV.shape[1], part)
            grad_CV.scatter_add_(1, own_CK, torch.where(is_own_CK, counted_NK[rows], 0.0))
            grad_CV = grad_CV.to(hidden_ND.dtype)
            grad_hidden[rows] = grad_CV @ weight
            if grad_weight is not None:
                grad_weight += grad_CV.T @ hidden_ND[rows]
        return grad_hidden, grad_weight, None, None


def _chunk(logits_CV: Tensor, targets_CK: Tensor, part: VocabularyPart) -> tuple[Tensor, Tensor]:
    """Log-probabilities [C, K]; log-sum-exp of the whole vocabulary [C, 1]."""
    top_C1 = part.maximum(logits_CV.amax(-1, keepdim=True))
    own_CK, is_own_CK = _own(targets_CK, logits_CV.shape[1], part)
    picked_CK = torch.where(is_own_CK, logits_CV.gather(1, own_CK), 0.0)
    sums_C1 = (logits_CV - top_C1).exp().sum(-1, keepdim=True)
    both = part.total(torch.cat([sums_C1, picked_CK], dim=1))  # one exchange for both
    lse_C1 = top_C1 + both[:, :1].log()
    return torch.where(targets_CK == IGNORED, 0.0, both[:, 1:] - lse_C1), lse_C1


def _own(targets_CK: Tensor, num_rows: int, part: VocabularyPart) -> tuple[Tensor, Tensor]:
    """Targets as rows of this rank's part (any row for others'), and which of them are."""
    own_CK = targets_CK - part.first
    is_own_CK = (own_CK >= 0) & (own_CK < num_rows)
    return own_CK.clamp(0, num_rows - 1), is_own_CK


def log_rest(log_prob: Tensor) -> Tensor:
    """log(1 - exp(x)) of log-probabilities x, exact at both ends.

    Of what is as good as certain a rest stays that has a logarithm, and no gradient.
    """
    x = log_prob.clamp(max=-_LEAST_REST)
    return torch.where(x > -0.693, (-torch.expm1(x)).log(), torch.log1p(-x.exp()))
