"""Validation loss: the mean negative log-likelihood of held-out target tokens.

The loop calls this while training, `evaluate` after it. Every row weighs by its target tokens, so the
result does not depend on the micro-batch but for rounding; sums are kept in fp64 in a fixed order, so
the same weights give the same number again. One device-host sync, at the end.
Dims: B rows, T tokens, N = B*T, D hidden.
"""

import torch

from bessemer.data.loader import micro_batch as stack_rows
from bessemer.data.rows import Rows
from bessemer.parallel.engine import Engine


@torch.no_grad()  # not inference mode: weights gathered in it could not be trained afterwards
def validation_loss(
    engine: Engine, rows: Rows, *, micro_batch: int, max_rows: int | None = None
) -> tuple[float, int]:
    """(mean loss per target token [nat], target tokens) over the first `max_rows` rows, or all."""
    num_rows = len(rows) if max_rows is None else min(len(rows), max_rows)
    total = torch.zeros((), dtype=torch.float64, device=engine.device)
    targets = 0
    # Each rank takes every n-th micro-batch. All take part in each turn, some with empty rows.
    begins = range(engine.data_rank * micro_batch, num_rows + engine.data_rank * micro_batch,
                   micro_batch * engine.data_ranks)  # fmt: skip
    for first in range(0, len(begins), engine.in_turn):
        parts = [
            stack_rows(rows, range(begin, min(begin + micro_batch, num_rows)), micro_batch)
            for begin in begins[first : first + engine.in_turn]
        ]
        targets += sum(int(part.units_B.sum()) for part in parts)
        total += engine.forward(parts)
    summed, count = torch.stack([engine.summed(total), engine.total(targets)]).tolist()
    assert count > 0, f"{num_rows} validation rows hold no target token"
    return summed / count, round(count)
