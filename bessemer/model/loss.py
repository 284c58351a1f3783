"""Next-token loss that never holds the full logits.

The rows are taken in chunks: logits, log-sum-exp and the gradient of a chunk are made and dropped
before the next one, in the forward pass already, so that the backward pass only scales them. Memory
is chunk x vocabulary instead of tokens x vocabulary (64 MiB instead of 2 GiB at 16K tokens, 128K
vocabulary, bf16), and the head costs three matmuls as it must, not four as with recomputation.
Same idea as Liger-Kernel's fused linear cross-entropy (arXiv:2410.10989), in plain torch.
Dims: N tokens, C tokens of a chunk, D hidden, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bessemer.formulas.memory.parts import loss_rows

IGNORED = -100  # target of a token that has no loss

# (hidden_CD, weight_VD, targets_C, whether the head learns): as `loss_chunk`.
ChunkFunction = Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor, Tensor | None]]


@dataclass(frozen=True)
class Head:
    """How a chunk's loss is computed where not every rank has the whole head (parallel/vocabulary.py)."""

    chunk: ChunkFunction
    loss_only: Callable[[Tensor, Tensor, Tensor], Tensor]  # summed; without gradients
    vocab: int  # rows of the head that decide the size of a chunk


def next_token_loss(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    chunk: ChunkFunction | None = None,
    head: Head | None = None,
) -> Tensor:
    """Summed negative log-likelihood [nat] of the targets that are not IGNORED, a fp32 scalar.

    hidden_ND in the compute type; weight_VD fp32 or compute type. `chunk` may be a compiled
    `loss_chunk`; `head`: of a rank that has a part of it. Divide by the global number of targets outside.
    """
    if not torch.is_grad_enabled():
        return _loss_only(hidden_ND, weight_VD.to(hidden_ND.dtype), targets_N, head)
    chunk = head.chunk if head else (chunk or loss_chunk)
    vocab = head.vocab if head else weight_VD.shape[0]
    return _ChunkedLoss.apply(hidden_ND, weight_VD, targets_N, chunk, vocab)


def loss_chunk(
    hidden_CD: Tensor, weight_VD: Tensor, targets_C: Tensor, learns: bool = True
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Summed loss of a chunk, and its gradients to hidden and, where the head learns, its weight."""
    logits_CV = (hidden_CD @ weight_VD.T).float()
    lse_C1 = logits_CV.logsumexp(-1, keepdim=True)
    counts_C1 = (targets_C != IGNORED).unsqueeze(-1)
    picked_C1 = logits_CV.gather(-1, targets_C.clamp_min(0).unsqueeze(-1))
    loss = torch.where(counts_C1, lse_C1 - picked_C1, 0.0).sum()
    columns_V = torch.arange(weight_VD.shape[0], device=targets_C.device)
    onehot_CV = columns_V == targets_C.unsqueeze(-1)
    grad_CV = torch.where(counts_C1, (logits_CV - lse_C1).exp() - onehot_CV.float(), 0.0)
    grad_CV = grad_CV.to(hidden_CD.dtype)
    return loss, grad_CV @ weight_VD, grad_CV.T @ hidden_CD if learns else None


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, targets_N, chunk, vocab):  # type: ignore[no-untyped-def]
        weight = weight_VD.to(hidden_ND.dtype)
        loss = hidden_ND.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden_ND)
        learns = ctx.needs_input_grad[1]
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if learns else None
        for rows in chunks(hidden_ND.shape[0], vocab):
            part, grad_rows, grad_part = chunk(hidden_ND[rows], weight, targets_N[rows], learns)
            loss += part
            grad_hidden[rows] = grad_rows
            if learns:
                grad_weight += grad_part
        ctx.save_for_backward(grad_hidden, grad_weight)
        return loss

    @staticmethod
    def backward(ctx, grad_loss):  # type: ignore[no-untyped-def]
        grad_hidden, grad_weight = ctx.saved_tensors
        # Scaled in place: this node owns both, and the head's gradient is the largest of the model.
        grad_weight = None if grad_weight is None else grad_weight.mul_(grad_loss)
        return grad_hidden.mul_(grad_loss), grad_weight, None, None, None


def _loss_only(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, head: Head | None) -> Tensor:
    loss = hidden_ND.new_zeros((), dtype=torch.float32)
    for rows in chunks(hidden_ND.shape[0], head.vocab if head else weight_VD.shape[0]):
        if head is not None:
            loss += head.loss_only(hidden_ND[rows], weight_VD, targets_N[rows])
            continue
        logits_CV = (hidden_ND[rows] @ weight_VD.T).float()
        loss += torch.nn.functional.cross_entropy(
            logits_CV, targets_N[rows], ignore_index=IGNORED, reduction="sum"
        )
    return loss


def chunks(num_tokens: int, vocab: int) -> list[slice]:
    """Chunks of one size (the last may be shorter), so that a compiled `loss_chunk` sees few shapes."""
    size = loss_rows(vocab)
    return [slice(begin, min(begin + size, num_tokens)) for begin in range(0, num_tokens, size)]
