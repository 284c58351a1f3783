"""A job: everything that the loop needs, built and ready."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bessemer.data.loader import Batches
from bessemer.data.store import Rows
from bessemer.evaluate.loss import Loss
from bessemer.planner.plan import StagePlan
from bessemer.train.record import Recorder
from bessemer.train.stop import Stop


@dataclass(frozen=True)
class Job:
    """SFT, pre-training and your own model differ in what stands here; the loop is the same."""

    plan: StagePlan
    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Loss
    batches: Batches
    validation: Rows | None  # None: nothing is held out
    folder: Path  # of the stage
    record: Recorder
    stop: Stop
    validation_rows: int | None = None  # measured during training: the first so many; None: all
    sample: Callable[[], list[dict[str, Any]]] | None = None  # texts to show at each validation

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def parameters(self) -> list[Tensor]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def is_due(self, every: int, step: int) -> bool:
        """Every n-th step, and the last."""
        return step % every == 0 or step == self.plan.steps
