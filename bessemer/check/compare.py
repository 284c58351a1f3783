"""What a layout did, held against what one process did: two curves that differ by rounding only.

The order in which floating-point numbers are added differs between layouts, so that their last bits do. A
mistake in an exchange, a mask or a gradient shows as a difference that is orders of magnitude larger.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Tolerance:
    """The largest relative differences that pass."""

    first_loss: float  # of the first step, before any update
    loss: float  # of every step, and of held-out rows after the last
    first_grad_norm: float  # of the first step, before clipping
    grad_norm: float  # of every step


TOLERANCES = {
    "fp32": Tolerance(first_loss=1e-6, loss=1e-4, first_grad_norm=1e-4, grad_norm=1e-3),
    # bf16 keeps 8 bits: 4e-3 a number. Rounding alone moves later norms that far: one process with
    # micro-batches of 8 rows and of 1 differs by 2.7e-2 within 50 steps of 512 tokens (4 experts of 24).
    "bf16": Tolerance(first_loss=1e-3, loss=1e-3, first_grad_norm=2e-2, grad_norm=5e-2),
}


@dataclass(frozen=True)
class Trace:
    """What some steps of training gave; the same on every rank."""

    losses: list[float]  # mean over the target tokens of each step [nat]
    grad_norms: list[float]
    validation_loss: float | None  # after the last step; None: nothing is held out
    peak_memory_bytes: int  # of the tensors of the fullest rank
    bytes_sent: int  # in a step, by the rank that sends most
    time_s: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def every_loss(self) -> list[float]:
        return self.losses if self.validation_loss is None else [*self.losses, self.validation_loss]


def compared(trace: Trace, reference: Trace, tolerance: Tolerance) -> Row:
    """Differences, and whether all are within the tolerance."""
    losses = relative_differences(trace.every_loss, reference.every_loss)
    norms = relative_differences(trace.grad_norms, reference.grad_norms)
    passed = (
        losses[0] <= tolerance.first_loss
        and max(losses) <= tolerance.loss
        and norms[0] <= tolerance.first_grad_norm
        and max(norms) <= tolerance.grad_norm
    )
    return {
        "relative_loss_difference_at_first_step": losses[0],
        "max_relative_loss_difference": max(losses),
        "max_relative_grad_norm_difference": max(norms),
        "peak_memory_bytes": trace.peak_memory_bytes,
        "bytes_sent": trace.bytes_sent,
        "passed": passed,
        "error": None if passed else "the curves differ by more than the tolerance",
        "refused": None,
        "time_s": round(trace.time_s, 3),
    }


def not_compared(*, error: str | None = None, refused: str | None = None) -> Row:
    """Of a layout that failed (error), or that did not run (refused); with the reason."""
    assert (error is None) != (refused is None), (error, refused)
    return {
        "relative_loss_difference_at_first_step": None,
        "max_relative_loss_difference": None,
        "max_relative_grad_norm_difference": None,
        "peak_memory_bytes": None,
        "bytes_sent": None,
        "passed": None if error is None else False,
        "error": error,
        "refused": refused,
        "time_s": None,
    }


def relative_differences(values: Sequence[float], references: Sequence[float]) -> list[float]:
    """|value - reference| / |reference|; two zeros are equal."""
    assert len(values) == len(references), (values, references)
    return [
        abs(value - reference) / max(abs(reference), 1e-30)
        for value, reference in zip(values, references, strict=True)
    ]
