"""Rows to tensors: the micro-batches of a step, made from a position in the data order alone.

There is no state: a step reads the next batch_rows positions of the endless order (data/order.py), so a
run resumes at any step, and a step's rows are the same however they are cut into micro-batches. A last
short micro-batch is filled up with rows that have no target: all micro-batches have one shape, which
compiled code needs, and such rows weigh nothing.
Cost: about 20 µs a row, under 0.1 % of a step, so rows are made when they are needed.
Dims: B rows, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bessemer.data.mixed_rows import MixedRows
from bessemer.data.mixture import Mixture, Places
from bessemer.data.order import samples
from bessemer.data.rows import NO_LOSS, Rows
from bessemer.formulas.layout import split_evenly


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward pass, int64 [B, T] each."""

    tokens_BT: Tensor
    targets_BT: Tensor  # NO_LOSS: none
    starts_BT: Tensor  # where in the row the document of each token begins
    balance_B: Tensor | None = None  # weight of each row in the balance of experts; set where there are any

    def to(self, device: torch.device) -> "MicroBatch":
        if device.type == "cpu":
            return self
        tensors = (self.tokens_BT, self.targets_BT, self.starts_BT)
        if device.type != "cuda":  # pinned memory is CUDA's way of copying while the device computes
            return MicroBatch(*(tensor.to(device) for tensor in tensors))
        return MicroBatch(*(tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors))


@dataclass(frozen=True)
class Batch:
    """What one optimizer step reads on one rank."""

    micro_batches: list[MicroBatch]
    num_targets: int  # in these rows


@dataclass(frozen=True)
class Batches:
    """All batches of a stage, by number, or one rank's share of them."""

    rows: Rows
    seed: int
    batch_rows: int  # over all ranks
    micro_batch: int
    rank: int = 0  # of those that read different rows
    ranks: int = 1
    mixture: Mixture | None = None  # of several sources; None: one permutation of all rows an epoch

    def batch(self, position: int) -> Batch:
        """This rank's share of the batch_rows rows from `position` on.

        Every rank gets as many micro-batches as the one with most rows: all must take part in exchanges.
        """
        share = split_evenly(self.batch_rows, self.ranks)[self.rank]
        positions = position + np.arange(share.start, share.stop, dtype=np.int64)
        indices = self._rows_at(positions).tolist()
        cuts = range(0, -(-self.batch_rows // self.ranks), self.micro_batch)
        parts = [
            micro_batch(self.rows, indices[cut : cut + self.micro_batch], self.micro_batch) for cut in cuts
        ]
        return Batch(parts, sum(int((part.targets_BT != NO_LOSS).sum()) for part in parts))

    def _rows_at(self, positions: Places) -> Places:
        if self.mixture is None:
            return samples(self.seed, positions, len(self.rows))
        assert isinstance(self.rows, MixedRows), "a mixture is of sources"
        return self.rows.samples(self.mixture, self.seed, positions)


def micro_batch(rows: Rows, indices: Sequence[int], size: int | None = None) -> MicroBatch:
    """These rows, and empty ones up to `size`; which may be all."""
    picked = [rows.row(index) for index in indices] or [rows.row(0)]
    columns = (
        [row.tokens_T for row in picked],
        [row.targets_T for row in picked],
        [row.starts_T for row in picked],
    )
    tensors = []
    for column, filler in zip(columns, (0, NO_LOSS, 0), strict=True):
        stacked = np.stack(column).astype(np.int64)
        missing = (size or len(indices)) - len(indices)
        stacked = stacked[: len(indices)]
        if missing:
            empty = np.full((missing, stacked.shape[1]), filler, dtype=np.int64)
            stacked = np.concatenate([stacked, empty])
        tensors.append(torch.from_numpy(stacked))
    return MicroBatch(*tensors)
