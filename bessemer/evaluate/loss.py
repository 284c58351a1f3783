"""Validation loss: the mean negative log-likelihood of held-out target tokens.

The loop calls this while training, `evaluate` after it. Every row weighs by its target tokens, so the
result does not depend on the micro-batch but for rounding; sums are kept in fp64 in a fixed order, so
the same weights give the same number again. One device-host sync, at the end.
Dims: B rows, T tokens, N = B*T, D hidden.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bessemer.data.loader import MicroBatch
from bessemer.data.loader import micro_batch as stack_rows
from bessemer.data.store import Rows
from bessemer.model.loss import IGNORED, ChunkFunction, next_token_loss

# Summed loss [nat] over the targets of a micro-batch, a fp32 scalar: what training minimises.
Loss = Callable[[nn.Module, MicroBatch], Tensor]


def summed_loss(model: nn.Module, part: MicroBatch, chunk: ChunkFunction | None = None) -> Tensor:
    """The loss of next tokens that a `Decoder` is trained on. `chunk`: a compiled `loss_chunk`."""
    hidden_BTD = model(part.tokens_BT, part.starts_BT)
    weight_VD = model.head_weight
    assert isinstance(weight_VD, Tensor)
    return next_token_loss(hidden_BTD.flatten(0, 1), weight_VD, part.targets_BT.flatten(), chunk)


@torch.inference_mode()
def validation_loss(
    model: nn.Module,
    rows: Rows,
    *,
    micro_batch: int,
    max_rows: int | None = None,
    loss: Loss = summed_loss,
) -> tuple[float, int]:
    """(mean loss per target token [nat], target tokens) over the first `max_rows` rows, or all."""
    num_rows = len(rows) if max_rows is None else min(len(rows), max_rows)
    device = next(model.parameters()).device
    total = torch.zeros((), dtype=torch.float64, device=device)
    targets = 0
    for begin in range(0, num_rows, micro_batch):
        part = stack_rows(rows, range(begin, min(begin + micro_batch, num_rows)), micro_batch)
        targets += int((part.targets_BT != IGNORED).sum())
        total += loss(model, part.to(device)).double()
    assert targets > 0, f"{num_rows} validation rows hold no target token"
    return float(total) / targets, targets
