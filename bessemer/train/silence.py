"""What stands for the recorder (train/record.py) on every rank but the first."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from bessemer.energy.metering.phases import Phase
from bessemer.errors import StoppedError
from bessemer.parallel.engine import Engine
from bessemer.rundir import Row
from bessemer.train.evidence import Evidence
from bessemer.train.gauge import Gauge
from bessemer.train.metering import Metering
from bessemer.train.state import StepStats, TrainState


class Silence:
    """Writes nothing: it only gives its figures to the first rank's rows."""

    attempt = 0

    def __init__(self, gauge: Gauge, engine: Engine, metering: Metering | None = None) -> None:
        """metering: begun before; it has the meter of this rank's machine, where that is not the first's."""
        self._gauge, self._engine = gauge, engine
        self._metering = metering or Metering(gauge, has_meter=False)
        self.evidence = Evidence()

    def event(self, kind: str, step: int, **details: Any) -> None:
        pass

    def begin(self, kind: str, step: int, **details: Any) -> None:
        self._metering.started()

    def phase(self, name: str) -> AbstractContextManager[Phase]:
        return self._metering.phase(name)

    def ended(self, kind: str, step: int, **details: Any) -> None:
        self._metering.row(self._engine)

    def keep_up(self) -> None:
        self._metering.keep_up()

    def waiting(self, step: int) -> None:
        pass

    def resume(self, seconds: float) -> None:
        pass

    def samples(self, step: int, texts: list[dict[str, Any]]) -> None:
        pass

    def saved(self, folders: list[Path], step: int) -> None:
        pass

    def limited(self, watts: float | None, how: str) -> None:
        pass

    def governed(self, governor: str) -> None:
        pass

    def end_of_step(self, state: TrainState, stats: StepStats) -> None:
        self._metering.keep_up()

    def write(self, state: TrainState, stats: StepStats, more: Row) -> None:
        own = [self._gauge.peak_memory_bytes(), self._metering.cpu_s]
        figures = self._engine.each_rank([*own, *self.evidence.totals()])
        self._metering.fellows_told([row[1] for row in figures])
        self._metering.row(self._engine)

    def out_of_budget(self, step: int) -> StoppedError | None:
        return None

    def sync(self) -> None:
        pass

    def close(self) -> None:
        self._metering.close()
