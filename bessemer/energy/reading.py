"""Joules as they are told: with a band, how they were come by, and what could not be read.

measured: by a counter or by a meter's watts; modelled: by what a device does, times its watts; assumed: by a
band that fits its kind. A sum has the basis of its weakest part. Unknown is None, never 0.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from bessemer.energy.power import Band

BASES = ("measured", "modelled", "assumed")  # from best to worst
ACCELERATOR, CPU, MEMORY, NODE, OTHER = "accelerator", "cpu", "memory", "node", "other"
STARTING, STEPS, SAVING, PAUSED = "starting", "steps", "saving", "paused"
PHASES = (STARTING, STEPS, "validation", SAVING, "sampling", PAUSED)  # metering/phases.py
BESIDE_STEPS = (STARTING, PAUSED)  # whose power is not that of training


@dataclass(frozen=True)
class EnergyReading:
    """Energy since the run began. joules None: unknown."""

    joules: float | None
    low: float | None
    high: float | None
    basis: str

    def plus(self, more: "Drawn | None") -> "EnergyReading":
        """What is unknown once stays so: a sum of what is left would look like the whole."""
        if more is None or self.joules is None or self.low is None or self.high is None:
            return EnergyReading(None, None, None, "assumed")
        band, basis = more.joules, worst(self.basis, more.basis)
        return EnergyReading(self.joules + band.value, self.low + band.low, self.high + band.high, basis)


ZERO = EnergyReading(0.0, 0.0, 0.0, "measured")


@dataclass(frozen=True)
class PowerReading:
    power_w: float | None  # mean since the reading before
    energy: EnergyReading
    drawn_j: float | None = None  # since the reading before
    seconds: float = 0.0


@dataclass(frozen=True)
class Drawn:
    """What one component drew in an interval."""

    component: str
    joules: Band
    basis: str


class Reader(Protocol):
    """Tells what a part of the machine has drawn since it was last asked."""

    name: str
    component: str
    basis: str

    def advance(self, seconds: float) -> list[Drawn] | None:
        """Of the last `seconds`; None: it could not be read, and the next call begins anew."""

    def keep_up(self) -> None:
        """Between readings: counters wrap, and watts are looked at."""

    def close(self) -> None:
        """No child process is left."""


def worst(*bases: str) -> str:
    return max(bases, key=BASES.index)


def total(drawn: Iterable[Drawn], component: str) -> Drawn:
    """Their sum, off by the most at once: what is assumed is off in one direction everywhere."""
    parts = list(drawn)
    bands = [part.joules for part in parts]
    joules = Band(*(sum(getattr(band, name) for band in bands) for name in ("value", "low", "high")))
    return Drawn(component, joules, worst("measured", *(part.basis for part in parts)))


class Tally:
    """Joules so far by component, and of each the share by how it was come by."""

    def __init__(self, earlier: Mapping[str, Any] | None = None) -> None:
        """earlier: what `to_json` gave in an attempt before."""
        self._bands: dict[str, dict[str, Band]] = {}
        self._unknown: set[str] = set()
        for component, told in (earlier or {}).items():
            if told["value"] is None:
                self._unknown.add(component)
            self._bands[component] = {basis: Band(*band) for basis, band in told["by_basis"].items()}

    def add(self, drawn: Drawn) -> None:
        by_basis = self._bands.setdefault(drawn.component, {})
        before = by_basis.get(drawn.basis, Band(0.0, 0.0, 0.0))
        by_basis[drawn.basis] = before.plus(drawn.joules)

    def lose(self, component: str) -> None:
        """Some of it could not be read, and nothing stands in for that."""
        self._unknown.add(component)

    def to_json(self) -> dict[str, Any]:
        """{component: {value, low, high [J], basis, by_basis {basis: [value, low, high]}}}."""
        return {component: self._told(component) for component in sorted({*self._bands, *self._unknown})}

    def _told(self, component: str) -> dict[str, Any]:
        by_basis = self._bands.get(component, {})
        band = Band(0.0, 0.0, 0.0)
        for part in by_basis.values():
            band = band.plus(part)
        known = component not in self._unknown
        return {
            **(vars(band) if known else {"value": None, "low": None, "high": None}),
            "basis": worst("measured", *by_basis) if by_basis else "assumed",
            "by_basis": {basis: [part.value, part.low, part.high] for basis, part in by_basis.items()},
        }
