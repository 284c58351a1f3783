"""A job: everything that the loop needs, built and ready."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bessemer.checkpoint.saver import Saver
from bessemer.data.loader import Batch
from bessemer.data.rows import Rows
from bessemer.parallel.engine import Engine
from bessemer.planner.plan import StagePlan
from bessemer.train.pause import Pause
from bessemer.train.record import Recorder
from bessemer.train.silence import Silence
from bessemer.train.stop import Stop
from bessemer.train.tune import Tune


class Feed(Protocol):
    """Where the batches come from: data that is there (data/loader.Batches), or that is made on the way."""

    def is_made(self, position: int) -> bool:
        """Whether the rows of the step at `position` are there; the same on all ranks."""

    def make(self, position: int) -> None:
        """Make them; all ranks at the same time."""

    def batch(self, position: int) -> Batch:
        """This rank's share of the rows of a step from `position` on; all ranks ask at the same time."""


@dataclass(frozen=True)
class Job:
    """SFT, pre-training and your own model differ in what stands here; the loop is the same."""

    plan: StagePlan
    engine: Engine  # model and loss, and how ranks share the work
    optimizer: torch.optim.Optimizer
    batches: Feed  # this rank's share
    validation: Rows | None  # None: nothing is held out
    folder: Path  # of the stage
    saver: Saver
    record: Recorder | Silence  # the first rank's; the others say nothing
    stop: Stop
    validation_rows: int | None = None  # measured during training: the first so many; None: all
    sample: Callable[[], list[dict[str, Any]]] | None = None  # texts to show at each validation
    pause: Pause | None = None  # while the grid is dirty
    tune: Tune | None = None  # what of the machine is set for this rank; None: nothing

    @property
    def model(self) -> nn.Module:
        return self.engine.model

    @property
    def device(self) -> torch.device:
        return self.engine.device

    @property
    def parameters(self) -> list[Tensor]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @property
    def stops_alone(self) -> bool:
        """Whether this process was asked to stop, and need not ask others."""
        return self.engine.world == 1 and self.stop.asked

    def is_due(self, every: int, step: int) -> bool:
        """Every n-th step, and the last."""
        return step % every == 0 or step == self.plan.steps

    def close(self) -> None:
        """The save in flight is whole, and the files are closed."""
        try:
            self.saver.close()
            self.record.saved(self.saver.finished(), self.plan.steps)
        finally:
            self._let_go()
            self.record.close()

    def abandon(self) -> None:
        """Close the files, and wait for no other rank. No thread writes afterwards."""
        self.saver.abandon()
        self._let_go()
        self.record.close()

    def _let_go(self) -> None:
        if self.tune is not None:
            self.tune.close()
        if self.pause is not None:
            self.pause.close()
