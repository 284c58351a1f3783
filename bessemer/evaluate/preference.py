"""How often the better answer of a held-out pair is preferred, and by how much.

The margin is what the stage's loss is made of (model/preference.py): of DPO beta times the difference of the
log-ratios to the reference, of a reward model the difference of rewards. A tie counts half.
Cost: one forward pass over the held-out rows.
"""

from typing import Any

import torch

from bessemer.data.loader import micro_batch
from bessemer.data.rows import Rows
from bessemer.formulas.objective import Objective
from bessemer.model.decoder import Decoder
from bessemer.parallel.documents import Neighbours
from bessemer.parallel.objectives import PairLoss


@torch.inference_mode()
def preferences(model: Decoder, rows: Rows, objective: Objective, batch: int) -> dict[str, Any]:
    """batch: rows a forward; they hold the reference's log-probabilities, where the loss wants them."""
    loss = PairLoss(objective, Neighbours())
    device = model.head_weight.device
    found = [
        loss.margins(model, micro_batch(rows, range(begin, min(begin + batch, len(rows)))).to(device))
        for begin in range(0, len(rows), batch)
    ]
    margins_N, losses_N = (torch.cat(each).double().cpu() for each in zip(*found, strict=True))
    right_N = (margins_N > 0).double() + 0.5 * (margins_N == 0).double()
    return {
        "pair_loss": float(losses_N.mean()),
        "pair_accuracy": float(right_N.mean()),
        "mean_margin": float(margins_N.mean()),
        "pairs": len(margins_N),
    }
