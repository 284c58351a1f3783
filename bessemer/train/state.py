"""What moves while a run goes on, besides tensors."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class TrainState:
    """Carried from step to step; what a checkpoint's manifest keeps."""

    step: int = 0  # updates made
    tokens: int = 0  # of the rows read so far, padding in them included
    samples: int = 0  # positions of the data order that are used up
    loss: float | None = None  # of the last step
    validation_loss: float | None = None  # newest

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> "TrainState":
        return TrainState(**values)


@dataclass(frozen=True)
class StepStats:
    """What one update tells of itself."""

    loss: float  # mean over the step's target tokens [nat]
    grad_norm: float  # global L2 norm before clipping
    lr: float
    tokens: int  # of its rows over all ranks, padding in them included; rows that are empty are not computed
    stop: bool = False  # a rank was asked to stop
