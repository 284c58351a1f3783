"""What a run draws, for its rows: a meter on each machine, what it reads by phase, and the sum of all.

The first rank of each machine has its meter (metering/meter.py); the first rank's also carries what earlier
attempts drew, on whichever machines. The others tell their CPU time with each row, from which energy is
assumed where no counter is. Between rows they are taken to have been as busy as this process: they do the
same work, and the next row puts right what was off.
Cost: a reading a row and at each border of a phase, 0.15 ms of CPU time a step with a row each, 0.25 ms with
RAPL of two packages (benchmarks/energy_overhead.py); with several machines one exchange a row more.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bessemer.energy.metering.machines import summed, to_numbers
from bessemer.energy.metering.meter import ZERO, EnergyReading, NodeSources, PowerMeter, busy_seconds
from bessemer.energy.metering.phases import Phase, PhasedMeter
from bessemer.measure.facts import meter_name
from bessemer.parallel.engine import Engine
from bessemer.rundir import Row
from bessemer.train.gauge import Gauge

LOG = "logs/rank-00000.log"
_KEEP_UP_S = 20.0  # counters of energy may wrap within minutes, so they are looked at at least so often


class Metering:
    """Of this rank. Begin it as early as can be: what was drawn before is in no sum."""

    def __init__(
        self,
        gauge: Gauge,
        earlier: Row | None = None,
        *,
        has_meter: bool = True,
        unrecorded_s: float | None = None,
    ) -> None:
        """earlier: the newest row of the attempts before; only the first rank has any. unrecorded_s: for how
        long the attempt before lived on after that (`seconds_after_last_row`)."""
        self.unrecorded_s = unrecorded_s
        self._gauge = gauge
        self._begin_s = self._own_s = busy_seconds()  # CPU time of imports is no step's
        self._fellows_s, self._num_fellows = 0.0, len(gauge.fellows or ())
        self._looked_s = time.monotonic()
        before = earlier or {}
        self._phased = PhasedMeter(self._meter(before), before) if has_meter else None

    @property
    def cpu_s(self) -> float:
        """CPU time of this process since this began."""
        return busy_seconds() - self._begin_s

    @property
    def fellows_s(self) -> float:
        """CPU time of the machine's other ranks since they began."""
        return self._fellows_s + self._num_fellows * (busy_seconds() - self._own_s)

    @property
    def missing(self) -> list[str]:
        """What trains on this machine and cannot be read."""
        return [] if self._phased is None else self._phased.meter.missing

    def fellows_told(self, cpu_s: list[float]) -> None:
        """cpu_s: of every rank, as it has just told."""
        fellows = range(1, len(cpu_s)) if self._gauge.fellows is None else self._gauge.fellows
        self._fellows_s, self._num_fellows = sum(cpu_s[rank] for rank in fellows), len(fellows)
        self._own_s = busy_seconds()

    def started(self) -> None:
        """The first step begins."""
        if self._phased is not None:
            self._phased.started()

    @contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        """name: one of energy/phases.PHASES. Gives what this machine drew, when the block has ended."""
        if self._phased is None:
            yield Phase(name, None)
            return
        with self._phased.phase(name) as phase:
            yield phase

    def keep_up(self) -> None:
        """Between rows, as often as one likes."""
        now_s = time.monotonic()
        if self._phased is not None and now_s - self._looked_s > _KEEP_UP_S:
            self._phased.meter.keep_up()
            self._looked_s = now_s

    def row(self, engine: Engine) -> Row:
        """The energy of a row. Every rank asks at the same time, after `fellows_told`."""
        own = None if self._phased is None else self._read(self._phased)
        if self._gauge.hosts == 1:
            return own or {}
        with_node = self._phased is not None and self._phased.meter.reads_node
        told = engine.each_rank(to_numbers(own, with_node=with_node))
        return {} if own is None else summed(told, own, self._gauge.hosts)

    def close(self) -> None:
        """No process of a reader is left."""
        if self._phased is not None:
            self._phased.meter.close()

    def _read(self, phased: PhasedMeter) -> Row:
        reading, self._looked_s = phased.read(), time.monotonic()
        energy = reading.energy
        return {
            "power_w": reading.power_w,
            "energy_j": energy.joules,
            "energy_low_j": energy.low,
            "energy_high_j": energy.high,
            "energy_basis": energy.basis,
            **phased.meter.columns,
            **phased.columns,
        }

    def _meter(self, before: Row) -> PowerMeter:
        gauge = self._gauge
        accelerators = gauge.accelerators or ()
        if gauge.device.type != "cpu" and gauge.accelerators is None:
            accelerators = (meter_name(gauge.device),)
        return PowerMeter(
            _energy_of(before),
            cores=gauge.cores,
            accelerators=accelerators,
            others_s=lambda: self.fellows_s,
            node=NodeSources(command=gauge.power_command),
            device_name=gauge.device_name,
            earlier=before,
        )


def seconds_after_last_row(stage: Path) -> float | None:
    """How long an attempt was seen alive after its last row: by its log, which a step has told in at least
    every ten seconds. Before this attempt writes in it. None: there is no row, or no log."""
    try:
        return max(0.0, (stage / LOG).stat().st_mtime - (stage / "metrics.jsonl").stat().st_mtime)
    except OSError:
        return None


def _energy_of(row: Row) -> EnergyReading:
    if "energy_basis" not in row:
        return ZERO
    values = (row["energy_j"], row["energy_low_j"], row["energy_high_j"])
    return EnergyReading(*values, row["energy_basis"])
