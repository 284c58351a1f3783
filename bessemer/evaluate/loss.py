"""Validation loss: the mean negative log-likelihood of held-out target tokens.

The loop calls this while training, `evaluate` after it. Every row weighs by its target tokens, so the
result does not depend on the micro-batch but for rounding; sums are kept in fp64 in a fixed order, so
the same weights give the same number again. One device-host sync, at the end.
Dims: B rows, T tokens, N = B*T, D hidden.
"""

import numpy as np
import torch

from bessemer.data.store import Rows
from bessemer.model.decoder import Decoder
from bessemer.model.loss import IGNORED, next_token_loss


@torch.inference_mode()
def validation_loss(
    model: Decoder, rows: Rows, *, micro_batch: int, max_rows: int | None = None
) -> tuple[float, int]:
    """(mean loss per target token [nat], target tokens) over the first `max_rows` rows, or all."""
    num_rows = len(rows) if max_rows is None else min(len(rows), max_rows)
    device = model.head_weight.device
    total = torch.zeros((), dtype=torch.float64, device=device)
    targets = 0
    for begin in range(0, num_rows, micro_batch):
        tokens_BT, targets_BT, starts_BT = _batch(rows, begin, min(begin + micro_batch, num_rows))
        targets += int((targets_BT != IGNORED).sum())
        hidden_BTD = model(tokens_BT.to(device), starts_BT.to(device))
        total += next_token_loss(
            hidden_BTD.flatten(0, 1), model.head_weight, targets_BT.flatten().to(device)
        ).double()
    assert targets > 0, f"{num_rows} validation rows hold no target token"
    return float(total) / targets, targets


def _batch(rows: Rows, begin: int, end: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows begin..end as int64 tensors [B, T]: tokens, targets, document starts."""
    picked = [rows.row(index) for index in range(begin, end)]
    columns = (
        [row.tokens_T for row in picked],
        [row.targets_T for row in picked],
        [row.starts_T for row in picked],
    )
    tokens_BT, targets_BT, starts_BT = (torch.from_numpy(np.stack(c).astype(np.int64)) for c in columns)
    return tokens_BT, targets_BT, starts_BT
