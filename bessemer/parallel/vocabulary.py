"""The loss where each rank of the tensor axis has its own rows of the head.

No rank ever holds the logits of the whole vocabulary: maximum, sum of exponentials and the target's logit
are exchanged, three numbers a token. The gradient of the hidden states is partial, each rank's own share;
the gather before the loss sums it backwards (parallel/tensor.py).
Source: arXiv:1909.08053, section 3. Dims: C tokens of a chunk, D hidden, V this rank's rows.
"""

from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from bessemer.formulas.layout import split_evenly
from bessemer.model.loss import IGNORED, Head
from bessemer.model.token_log_probs import VocabularyPart
from bessemer.parallel.collectives import all_reduce
from bessemer.parallel.mesh import Group, Mesh


def split_head(mesh: Mesh, vocab: int) -> Head | None:
    """What `next_token_loss` needs on this rank; None where the head is whole."""
    group = mesh.group("tensor")
    if group is None:
        return None
    parts = split_evenly(vocab, group.size())
    first = parts[dist.get_rank(group)].start

    def chunk(
        hidden_CD: Tensor, weight_VD: Tensor, targets_C: Tensor, learns: bool = True
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        logits_CV = (hidden_CD @ weight_VD.T).float()
        loss, lse_C1, counts_C1 = _loss(logits_CV, targets_C, first, group)
        columns_V = torch.arange(first, first + weight_VD.shape[0], device=targets_C.device)
        onehot_CV = columns_V == targets_C.unsqueeze(-1)
        grad_CV = torch.where(counts_C1, (logits_CV - lse_C1).exp() - onehot_CV.float(), 0.0)
        grad_CV = grad_CV.to(hidden_CD.dtype)
        return loss, grad_CV @ weight_VD, grad_CV.T @ hidden_CD if learns else None

    def loss_only(hidden_CD: Tensor, weight_VD: Tensor, targets_C: Tensor) -> Tensor:
        return _loss((hidden_CD @ weight_VD.T).float(), targets_C, first, group)[0]

    # Chunks must be the same on every rank, so the largest share decides their size.
    return Head(chunk, loss_only, len(parts[0]))


def vocabulary_part(mesh: Mesh, vocab: int) -> VocabularyPart | None:
    """What `token_log_probs` needs on this rank; None where the head is whole."""
    group = mesh.group("tensor")
    if group is None:
        return None
    parts = split_evenly(vocab, group.size())
    first = parts[dist.get_rank(group)].start
    maximum, total = (partial(_reduced, operation=name, group=group) for name in ("max", "sum"))
    return VocabularyPart(first, len(parts[0]), maximum, total)


def _reduced(values: Tensor, operation: str, group: Group) -> Tensor:
    return all_reduce(values, operation, group)


def _loss(logits_CV: Tensor, targets_C: Tensor, first: int, group: Group) -> tuple[Tensor, Tensor, Tensor]:
    """Summed loss of the whole vocabulary; log-sum-exp [C, 1]; which tokens count [C, 1]."""
    top_C1 = all_reduce(logits_CV.amax(-1, keepdim=True), "max", group)
    own_C = targets_C - first
    is_own_C = (own_C >= 0) & (own_C < logits_CV.shape[1])
    picked_C1 = logits_CV.gather(-1, own_C.clamp(0, logits_CV.shape[1] - 1).unsqueeze(-1))
    picked_C1 = torch.where(is_own_C.unsqueeze(-1), picked_C1, 0.0)
    sums_C1 = (logits_CV - top_C1).exp().sum(-1, keepdim=True)
    sums_C1, picked_C1 = all_reduce(torch.stack([sums_C1, picked_C1]), "sum", group).unbind()
    lse_C1 = top_C1 + sums_C1.log()
    counts_C1 = (targets_C != IGNORED).unsqueeze(-1)
    return torch.where(counts_C1, lse_C1 - picked_C1, 0.0).sum(), lse_C1, counts_C1
