"""Layouts as columns: what is tried, one array per word, so that thousands are costed at once.

One code path for one layout and for a hundred thousand: a published run, a recipe's own layout and a
search all go through the same formulas.
"""

from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np

from bessemer.formulas.layout import SCHEDULES, Layout

Ints = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]

RECOMPUTE = ("none", "selective", "full")
PRECISIONS = ("fp32", "bf16", "fp16", "fp8", "mxfp8", "nvfp4")  # of matmuls; the rest is bf16 or fp16


@dataclass(frozen=True)
class Candidates:
    """All of one length. Words are numbers of their tuple: SCHEDULES, RECOMPUTE, PRECISIONS."""

    replicate: Ints
    shard: Ints
    tensor: Ints
    pipeline: Ints
    context: Ints
    expert: Ints
    interleave: Ints  # stages on a rank
    schedule: Ints
    micro_batch: Ints  # rows
    micro_batches: Ints  # of a step, on each rank
    recompute: Ints
    precision: Ints
    zero: Ints  # what `shard` divides: 0 nothing, 1 optimizer, 2 and gradients, 3 and weights

    def __len__(self) -> int:
        return len(self.tensor)

    @property
    def data(self) -> Ints:
        """Ranks that read different rows."""
        return self.replicate * self.shard

    @property
    def world(self) -> Ints:
        return self.data * self.tensor * self.pipeline * self.context

    def take(self, which: Any) -> Self:
        """Those of an index array or mask."""
        return type(self)(**{field.name: getattr(self, field.name)[which] for field in fields(self)})

    @classmethod
    def of(cls, rows: list[dict[str, int]]) -> Self:
        """From rows with every field's number."""
        return cls(
            **{field.name: np.array([row[field.name] for row in rows], np.int64) for field in fields(cls)}
        )

    @classmethod
    def of_layout(
        cls, layout: Layout, micro_batch: int, micro_batches: int, recompute: str, precision: str
    ) -> Self:
        """The one layout of a recipe."""
        zero = 0 if layout.repeats_weights or layout.shard * layout.context == 1 else 2 + layout.reshard
        row = {axis: getattr(layout, axis) for axis in ("replicate", "shard", "tensor", "pipeline")}
        row |= {"context": layout.context, "expert": layout.expert, "interleave": layout.stages_per_rank}
        row |= {"schedule": SCHEDULES.index(layout.schedule), "micro_batch": micro_batch}
        row |= {"micro_batches": micro_batches, "recompute": RECOMPUTE.index(recompute)}
        return cls.of([{**row, "precision": PRECISIONS.index(precision), "zero": zero}])
