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

from bessemer.data.order import samples
from bessemer.data.rows import NO_LOSS, Rows


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward pass, int64 [B, T] each."""

    tokens_BT: Tensor
    targets_BT: Tensor  # NO_LOSS: none
    starts_BT: Tensor  # where in the row the document of each token begins

    def to(self, device: torch.device) -> "MicroBatch":
        if device.type == "cpu":
            return self
        tensors = (self.tokens_BT, self.targets_BT, self.starts_BT)
        if device.type != "cuda":  # pinned memory is CUDA's way of copying while the device computes
            return MicroBatch(*(tensor.to(device) for tensor in tensors))
        return MicroBatch(*(tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors))


@dataclass(frozen=True)
class Batch:
    """What one optimizer step reads."""

    micro_batches: list[MicroBatch]
    num_targets: int


@dataclass(frozen=True)
class Batches:
    """All batches of a stage, by number."""

    rows: Rows
    seed: int
    batch_rows: int
    micro_batch: int

    def batch(self, position: int) -> Batch:
        """The rows from `position` on."""
        positions = np.arange(position, position + self.batch_rows, dtype=np.int64)
        indices = samples(self.seed, positions, len(self.rows)).tolist()
        cuts = range(0, self.batch_rows, self.micro_batch)
        parts = [
            micro_batch(self.rows, indices[cut : cut + self.micro_batch], self.micro_batch) for cut in cuts
        ]
        return Batch(parts, sum(int((part.targets_BT != NO_LOSS).sum()) for part in parts))


def micro_batch(rows: Rows, indices: Sequence[int], size: int | None = None) -> MicroBatch:
    """These rows, and empty ones up to `size`."""
    picked = [rows.row(index) for index in indices]
    columns = (
        [row.tokens_T for row in picked],
        [row.targets_T for row in picked],
        [row.starts_T for row in picked],
    )
    tensors = []
    for column, filler in zip(columns, (0, NO_LOSS, 0), strict=True):
        stacked = np.stack(column).astype(np.int64)
        missing = (size or len(picked)) - len(picked)
        if missing:
            empty = np.full((missing, stacked.shape[1]), filler, dtype=np.int64)
            stacked = np.concatenate([stacked, empty])
        tensors.append(torch.from_numpy(stacked))
    return MicroBatch(*tensors)
