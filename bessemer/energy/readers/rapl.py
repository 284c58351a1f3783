"""CPU packages and their memory, by RAPL through the kernel's powercap interface.

Counted: each `package-*` zone and each `dram` zone, once. Left out: `psys` (the platform, packages included),
`core` and `uncore` (inside the package), zones of `intel-rapl-mmio` (the same counter by another way), and a
zone whose name was seen already in the same place.
Counters wrap at max_energy_range_uj: 262 kJ on many, a quarter of an hour at 300 W, so they are looked at
at least once a minute. One that would have had to draw more than any package does in order to wrap was
reset instead, and what it had counted before is unknown: a gap.
Root only since CVE-2020-8694: then no zone counts, and the hint says how to allow it.
Source: Documentation/power/powercap of the kernel. RAPL states no error; 5 % is our band.
"""

import time
from pathlib import Path

from bessemer.energy.power import Band
from bessemer.energy.readers.sampled import STILL_S
from bessemer.energy.reading import CPU, MEMORY, Drawn

POWERCAP = Path("/sys/class/powercap")
_ERROR = 0.05
_MOST_W = 2000.0  # of one zone: four times the largest package of 2025
CLOSED = (
    "the CPU has energy counters (RAPL) that only root may read: "
    "`sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj` (until the next boot) opens them"
)


class Rapl:
    """All packages and memories of this machine."""

    component = CPU
    basis = "measured"

    def __init__(self, zones: "list[Zone]") -> None:
        self._zones = zones
        self.name = "RAPL " + ", ".join(zone.name for zone in zones)

    def keep_up(self) -> None:
        for zone in self._zones:
            zone.keep_up()

    def advance(self, seconds: float) -> list[Drawn] | None:
        """None when one zone did not answer: a part would pass for the whole."""
        joules = [zone.advance() for zone in self._zones]
        drawn: list[Drawn] = []
        for zone, used in zip(self._zones, joules, strict=True):
            if used is None:
                return None
            component = MEMORY if zone.is_memory else CPU
            drawn.append(Drawn(component, Band.around(used, _ERROR), self.basis))
        return drawn

    def close(self) -> None:
        pass


class Zone:
    """One counter."""

    def __init__(self, folder: Path) -> None:
        """OSError, ValueError: closed to us, or no counter."""
        self.name = _name(folder)
        self.is_memory = self.name == "dram"
        self._file = folder / "energy_uj"
        self._range = int((folder / "max_energy_range_uj").read_text())
        self._last: int | None = int(self._file.read_text())
        self._at_s = self._moved_s = time.monotonic()
        self._since: float | None = 0.0  # joules after the last `advance`; None: not all of them are known

    def keep_up(self) -> None:
        before, self._last = self._last, self._look()
        begin_s, self._at_s = self._at_s, time.monotonic()
        joules = self._moved(before, self._at_s - begin_s)
        self._since = None if joules is None or self._since is None else self._since + joules

    def advance(self) -> float | None:
        self.keep_up()
        joules, self._since = self._since, 0.0
        return joules

    def _moved(self, before: int | None, seconds: float) -> float | None:
        if before is None or self._last is None:
            return None
        steps = self._last - before
        if steps < 0:
            steps += self._range + 1
            if steps / 1e6 > _MOST_W * max(seconds, STILL_S):
                return None
        if steps:
            self._moved_s = self._at_s
        # A package that is switched on draws something; of a memory that is not fitted there may be a zone.
        stuck = not self.is_memory and self._at_s - self._moved_s > STILL_S
        return None if stuck else steps / 1e6

    def _look(self) -> int | None:
        try:
            return int(self._file.read_text())
        except (OSError, ValueError):
            return None


def open_rapl(powercap: Path = POWERCAP) -> tuple[Rapl | None, str | None]:
    """The reader, or why there is none although the machine has counters."""
    zones: dict[str, Zone] = {}
    try:
        for folder in sorted(powercap.glob("intel-rapl:*")):
            name = _name(folder)
            if name.startswith("package-"):
                zones.setdefault(name, Zone(folder))
            elif name == "dram":
                zones.setdefault(f"{_package_of(powercap, folder)} dram", Zone(folder))
    except PermissionError:
        return None, CLOSED
    except (OSError, ValueError):
        return None, None  # a file of another form: not RAPL as we know it
    return (Rapl(list(zones.values())), None) if zones else (None, None)


def _name(folder: Path) -> str:
    return (folder / "name").read_text().strip()


def _package_of(powercap: Path, folder: Path) -> str:
    """intel-rapl:1:0 is a zone of intel-rapl:1."""
    return _name(powercap / folder.name.rpartition(":")[0])
