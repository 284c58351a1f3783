"""Rows to tensors: the micro-batches of a step, made from a position in the data order alone.

There is no state: a step reads the next batch_rows positions of the endless order (data/order.py), so a
run resumes at any step, and a step's rows are the same however they are cut into micro-batches. A last
short micro-batch is filled up with rows that have no target: all micro-batches have one shape, which
compiled code needs, and such rows weigh nothing.
Cost: about 20 µs a row, under 0.1 % of a step, so rows are made when they are needed.
Dims: B rows, T tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

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
    columns: Mapping[str, Tensor] = field(default_factory=dict)  # what else the loss needs: Row.columns
    counted_B: Tensor | None = None  # what the loss is divided by, of each row; None: its targets

    @property
    def units_B(self) -> Tensor:
        """What the loss of each row counts for: targets, or pairs, or answers."""
        return (self.targets_BT != NO_LOSS).sum(1) if self.counted_B is None else self.counted_B

    def to(self, device: torch.device) -> "MicroBatch":
        if device.type == "cpu":
            return self
        return replace(
            self,
            tokens_BT=_moved(self.tokens_BT, device),
            targets_BT=_moved(self.targets_BT, device),
            starts_BT=_moved(self.starts_BT, device),
            columns={name: _moved(column, device) for name, column in self.columns.items()},
            counted_B=None if self.counted_B is None else _moved(self.counted_B, device),
        )


@dataclass(frozen=True)
class Batch:
    """What one optimizer step reads on one rank."""

    micro_batches: list[MicroBatch]
    num_targets: int  # in these rows, or of pairs or answers: what their loss is divided by
    rows: int | None = None  # of the step over all ranks, empty ones left out; None: as many as are planned


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

    def is_made(self, position: int) -> bool:
        """Prepared data is there before training."""
        return True

    def make(self, position: int) -> None:
        raise AssertionError(f"the rows at {position} are there")

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
        return Batch(parts, sum(int(part.units_B.sum()) for part in parts))

    def _rows_at(self, positions: Places) -> Places:
        if self.mixture is None:
            return samples(self.seed, positions, len(self.rows))
        assert isinstance(self.rows, MixedRows), "a mixture is of sources"
        return self.rows.samples(self.mixture, self.seed, positions)


def micro_batch(rows: Rows, indices: Sequence[int], size: int | None = None) -> MicroBatch:
    """These rows, and empty ones up to `size`; which may be all."""
    picked = [rows.row(index) for index in indices] or [rows.row(0)]
    tokens_BT, targets_BT, starts_BT = (
        _stacked([getattr(row, name) for row in picked], len(indices), size, filler)
        for name, filler in (("tokens_T", 0), ("targets_T", NO_LOSS), ("starts_T", 0))
    )
    others = {
        name: _stacked([row.columns[name] for row in picked], len(indices), size)
        for name in picked[0].columns
    }
    counted_B = None
    if picked[0].units is not None:
        counted_B = _stacked([np.asarray(row.units) for row in picked], len(indices), size)
    return MicroBatch(tokens_BT, targets_BT, starts_BT, columns=others, counted_B=counted_B)


def _stacked(rows: Sequence[np.ndarray[Any, Any]], count: int, size: int | None, filler: int = 0) -> Tensor:
    """The first `count` rows, and `filler` up to `size`: int64, or fp32 what is no whole number."""
    stacked = np.stack(rows)[:count]
    stacked = stacked.astype(np.float32 if stacked.dtype.kind == "f" else np.int64)
    missing = (size or count) - count
    if missing:
        empty = np.full((missing, *stacked.shape[1:]), filler, dtype=stacked.dtype)
        stacked = np.concatenate([stacked, empty])
    return torch.from_numpy(stacked)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type != "cuda":  # pinned memory is CUDA's way of copying while the device computes
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
