"""What the steps of earlier runs teach: measured over predicted, by layout and width, on one device.

Each run that has made enough steady steps leaves a row in the user's cache folder (`note_run`, which the
recorder calls at the end of an attempt). The next prediction of the very same step is what was measured; that
of another width in the same way of computing (axes of the layout, processes, threads, compute type, compiled
or not, dense or experts) is corrected by the ratio, in the logarithm of the width, and the less the further
it is away. Rows of another torch, another version of Bessemer, or other cores count for nothing.
Where nothing like it ran, the prediction stays as it is.
"""

import fcntl
import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import date
from statistics import median
from typing import Any, Self

from bessemer import __version__
from bessemer.durable import cannot_write
from bessemer.formulas.layout import AXES, Layout
from bessemer.formulas.shape import ModelShape
from bessemer.hardware import cache_folder, machine, stored_document, write_document
from bessemer.planner.calibrated.tables import installed_torch
from bessemer.planner.plan import Estimate, StagePlan

FORMAT = 2  # 1: ratios of accelerators were to another formula than the plan's
_MOST_ROWS = 400
_NEWEST = 3  # of the same step: their median
_EXACT_BAND, _NEAR_BAND = 0.05, 0.10
_REACH = math.log(4.0)  # widths a factor of four away teach 1/e of what they differ by
# What of a stage decides how long a step takes.
_STEP_KEYS = ("context", "batch_rows", "micro_batch", "dtype", "recompute", "recompute_layers", "optimizer")
# What of a shape does not: names, and numbers that only scale values.
_IDLE = {
    "norm_eps", "rope_theta", "rope_scaling", "local_rope_theta", "query_scalar", "bos_id", "eos_id",
    "max_positions", "router",
}  # fmt: skip


@dataclass(frozen=True)
class StepKey:
    """exact: the same for steps that do the same work in the same way; way: how they compute."""

    exact: str
    way: str
    hidden: int


@dataclass(frozen=True)
class Row:
    """One run. modelled_s: predicted without what runs have taught; measured_s: median of steady steps."""

    exact: str
    way: str
    hidden: int
    measured_s: float
    modelled_s: float | None
    basis: str  # of modelled_s: two calibrations' ratios do not mix
    steps: int
    date: str

    @property
    def ratio(self) -> float | None:
        return self.measured_s / self.modelled_s if self.modelled_s else None


@dataclass(frozen=True)
class Taught:
    """Rows of one device, oldest first."""

    device: str
    rows: tuple[Row, ...] = ()

    def knows(self, key: StepKey) -> bool:
        """Whether this very step was run."""
        return any(row.exact == key.exact for row in self.rows)

    def corrected(self, key: StepKey, modelled: Estimate, basis: str) -> Estimate:
        """The prediction, by what ran here. basis: which calibration `modelled` stands on."""
        same = [row.measured_s for row in self.rows if row.exact == key.exact][-_NEWEST:]
        if same:
            value = median(same)
            low, high = min(*same, value / (1 + _EXACT_BAND)), max(*same, value * (1 + _EXACT_BAND))
            return Estimate(value, low, high, "measured")
        if modelled.value is None:
            return modelled
        factor = self._factor(key, basis)
        if factor is None:
            return modelled
        value = modelled.value * factor
        return Estimate(value, value / (1 + _NEAR_BAND), value * (1 + _NEAR_BAND), "modelled")

    def _factor(self, key: StepKey, basis: str) -> float | None:
        """Of the nearest narrower and wider models that ran in the same way."""
        ratios: dict[int, list[float]] = {}
        for row in self.rows:
            if row.way == key.way and row.basis == basis and row.ratio:
                ratios.setdefault(row.hidden, []).append(row.ratio)
        if not ratios:
            return None
        newest = {hidden: median(values[-_NEWEST:]) for hidden, values in ratios.items()}
        below = max((hidden for hidden in newest if hidden <= key.hidden), default=None)
        above = min((hidden for hidden in newest if hidden >= key.hidden), default=None)
        if below is not None and above is not None and below != above:
            share = math.log(key.hidden / below) / math.log(above / below)
            return math.exp((1 - share) * math.log(newest[below]) + share * math.log(newest[above]))
        near = below if below is not None else above
        assert near is not None
        trust = math.exp(-abs(math.log(key.hidden / near)) / _REACH)
        return newest[near] ** trust

    def to_json(self) -> dict[str, Any]:
        return {"device": self.device, **_stack(), "rows": [asdict(row) for row in self.rows]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        return cls(values["device"], tuple(Row(**row) for row in values["rows"]))


def step_key(shape: ModelShape, stage: StagePlan, kind: str, threads: int) -> StepKey:
    """threads: of each process."""
    layout = stage.layout
    told = {key: getattr(stage, key) for key in _STEP_KEYS} | {"layout": str(layout)}
    model = {name: value for name, value in shape.to_json().items() if name not in _IDLE}
    compiled, processes = bool(stage.compile), layout.world
    way = "|".join(
        [kind, stage.dtype, "compiled" if compiled else "eager", f"{processes}x{threads}", axes_of(layout),
         "experts" if shape.experts else "dense"]
    )  # fmt: skip
    whole = json.dumps([model, told, way], sort_keys=True)
    return StepKey(hashlib.sha256(whole.encode()).hexdigest()[:16], way, shape.hidden)


def axes_of(layout: Layout) -> str:
    """Degrees and the way of context and schedule; how layers were split does not matter here."""
    words = [f"{axis}={getattr(layout, axis)}" for axis in AXES if getattr(layout, axis) > 1]
    words += [layout.schedule] * (layout.pipeline > 1) + [layout.context_kind] * (layout.context > 1)
    return ",".join(words + ["reshard=no"] * (not layout.reshard))


def stored_taught(device: str) -> Taught:
    """What is known of this device; nothing where the file is absent, damaged, or of another stack."""
    values = stored_document("steps", device)
    if values is None or {key: values.get(key) for key in _stack()} != _stack():
        return Taught(device)
    try:
        return Taught.from_json(values)
    except (AttributeError, KeyError, TypeError):
        return Taught(device)


def note_run(
    device: str, key: StepKey, measured_s: float, modelled_s: float | None, basis: str, steps: int
) -> None:
    """Add a run to what is stored. WriteError where the cache folder cannot be written."""
    row = Row(**asdict(key), measured_s=measured_s, modelled_s=modelled_s, basis=basis, steps=steps,
              date=date.today().isoformat())  # fmt: skip
    with _alone():
        rows = (*stored_taught(device).rows, row)[-_MOST_ROWS:]
        write_document("steps", device, Taught(device, rows).to_json())


@contextmanager
def _alone() -> Iterator[None]:
    """Between reading and writing: of two runs that end together both count. Waits for the other."""
    path = cache_folder() / "steps.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a")  # noqa: SIM115 (closed below; the open file is the lock)
    except OSError as error:
        raise cannot_write(path, error) from error
    with file:
        # A disk without locks (NFS without its service): at worst the row of one of two runs is lost.
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _stack() -> dict[str, Any]:
    """What must be the same for a ratio to hold."""
    return {"format": FORMAT, "torch": installed_torch(), "bessemer": __version__, "cores": machine().cores}
