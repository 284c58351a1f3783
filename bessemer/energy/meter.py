"""Joules and watts of a run, each with its band and how it was come by.

The ladder, part by part: the energy counter of each accelerator (NVML) and of each CPU package (RAPL)
is *measured*; a CPU that shows no counter, as in most virtual machines, is *assumed*: watts per core
times the time that this process kept cores busy. A sum is only as good as its weakest part. What
cannot even be assumed is None, never 0.
One meter per machine: it reads whole packages, so a second one would count them twice.
Cost: under 1 ms a reading (a few files in /sys, one call per accelerator).
Not included: fans, disks, network, power supply and cooling; that is the energy account's work.
Source: kernel documentation of powercap (counters wrap at max_energy_range_uj); NVML's
nvmlDeviceGetTotalEnergyConsumption (mJ, Volta and later), preferred to sampled power because that is
sampled only a quarter of the time on A100 and H100 (arXiv:2312.02741).
"""

import importlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bessemer.energy.power import Band, assumed_cpu_power

POWERCAP = Path("/sys/class/powercap")
_BASES = ("measured", "modelled", "assumed")  # from best to worst


@dataclass(frozen=True)
class EnergyReading:
    """Energy since the run began. joules None: unknown."""

    joules: float | None
    low: float | None
    high: float | None
    basis: str


ZERO = EnergyReading(0.0, 0.0, 0.0, "measured")


@dataclass(frozen=True)
class PowerReading:
    power_w: float | None  # mean since the reading before
    energy: EnergyReading


class _Counter(Protocol):
    """Something that grows with the energy used."""

    name: str
    basis: str

    def advance(self, seconds: float) -> Band | None:
        """Joules since the last call, with a band; None when it could not be read."""


class PowerMeter:
    """Adds up what this machine uses, from where an earlier attempt stopped."""

    def __init__(
        self,
        start: EnergyReading = ZERO,
        *,
        cores: int = 1,
        accelerators: Sequence[int | str] = (),
        powercap: Path = POWERCAP,
        others_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """accelerators: those that this machine's ranks use, by NVML's UUID or index. torch's index is
        another one where CUDA_VISIBLE_DEVICES is set. others_s: CPU time of this machine's other ranks,
        from which energy is assumed where no counter is."""
        self._counters: list[_Counter] = [*_open_nvml(accelerators)]
        known = {counter.device for counter in self._nvml()}
        self.missing = [f"accelerator {device}" for device in accelerators if device not in known]
        packages = _open_rapl(powercap)
        self._counters += packages or [_AssumedCpu(cores, others_s)]
        self._total = start
        self._last_s = time.monotonic()

    @property
    def parts(self) -> list[dict[str, str]]:
        """What is read, for `doctor` and for receipts."""
        return [{"name": counter.name, "basis": counter.basis} for counter in self._counters]

    def read(self) -> PowerReading:
        """Energy so far and mean power since the last reading. Call this or `keep_up` at least once a minute.

        With `others_s` only where it has just been told: CPU time that comes late, all at once, is more than
        the cores can have spent since then.
        """
        now_s = time.monotonic()
        seconds, self._last_s = now_s - self._last_s, now_s
        moves = [counter.advance(seconds) for counter in self._counters]
        if self.missing or any(move is None for move in moves):
            self._total = EnergyReading(None, None, None, self._basis())
            return PowerReading(None, self._total)
        spent = [sum(getattr(move, name) for move in moves) for name in ("value", "low", "high")]
        if self._total.joules is None or self._total.low is None or self._total.high is None:
            return PowerReading(spent[0] / seconds if seconds > 0 else None, self._total)
        self._total = EnergyReading(
            self._total.joules + spent[0],
            self._total.low + spent[1],
            self._total.high + spent[2],
            self._basis(),
        )
        return PowerReading(spent[0] / seconds if seconds > 0 else None, self._total)

    def keep_up(self) -> None:
        """Between readings: a RAPL counter may wrap within minutes, and shows one wrap at most."""
        for counter in self._counters:
            if isinstance(counter, _Rapl):
                counter.keep_up()

    def _basis(self) -> str:
        """The weakest of the parts and of what was carried over."""
        named = [counter.basis for counter in self._counters] + [self._total.basis]
        return max(named, key=_BASES.index)

    def _nvml(self) -> "list[_Nvml]":
        return [counter for counter in self._counters if isinstance(counter, _Nvml)]


class _Rapl:
    """One package or DRAM counter of the kernel's powercap interface."""

    basis = "measured"

    def __init__(self, folder: Path) -> None:
        self.name = f"RAPL {(folder / 'name').read_text().strip()}"
        self._file = folder / "energy_uj"
        self._range = int((folder / "max_energy_range_uj").read_text())
        self._last = int(self._file.read_text())
        self._since: float | None = 0.0  # joules after the last `advance`; None: it could not be read

    def keep_up(self) -> None:
        try:
            now = int(self._file.read_text())
        except (OSError, ValueError):
            self._since = None
            return
        if self._since is not None:
            self._since += ((now - self._last) % (self._range + 1)) / 1e6
        self._last = now

    def advance(self, seconds: float) -> Band | None:
        self.keep_up()
        joules, self._since = self._since, 0.0
        if joules is None:
            return None
        return Band(joules, 0.95 * joules, 1.05 * joules)  # our band: RAPL states no error


class _Nvml:
    """Total energy counter of one NVIDIA device."""

    basis = "measured"

    def __init__(self, nvml: Any, device: int | str) -> None:
        self.name, self.device = f"NVML device {device}", device
        self._nvml = nvml
        by_index, by_uuid = nvml.nvmlDeviceGetHandleByIndex, nvml.nvmlDeviceGetHandleByUUID
        self._handle = by_index(device) if isinstance(device, int) else by_uuid(device)
        self._last = nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)

    def advance(self, seconds: float) -> Band | None:
        try:
            now = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except self._nvml.NVMLError:
            return None
        joules = (now - self._last) / 1e3
        self._last = now
        return Band(joules, 0.95 * joules, 1.05 * joules)  # NVML's documentation: within 5 %


class _AssumedCpu:
    """Band per core times the cores that this process, its children and its fellow ranks kept busy."""

    name = "CPU by watts per core"
    basis = "assumed"

    def __init__(self, cores: int, others_s: Callable[[], float]) -> None:
        self._cores, self._others_s = cores, others_s
        self._last_s = busy_seconds() + others_s()

    def advance(self, seconds: float) -> Band | None:
        now_s = busy_seconds() + self._others_s()
        busy = min(float(self._cores), (now_s - self._last_s) / seconds) if seconds > 0 else 0.0
        self._last_s = now_s
        return assumed_cpu_power(self._cores, busy).times(seconds)


def busy_seconds() -> float:
    """CPU time of this process and of those children that have ended."""
    return sum(os.times()[:4])


def _open_rapl(powercap: Path) -> list[_Counter]:
    """Packages and their DRAM. Not `psys` (it holds the packages), nor cores and graphics (inside them),
    nor the MMIO twin of a package (the same counter again)."""
    counters: list[_Counter] = []
    try:
        for folder in sorted(powercap.glob("intel-rapl:*")):
            name = (folder / "name").read_text().strip()
            if name.startswith("package-") or name == "dram":
                counters.append(_Rapl(folder))
    except (OSError, ValueError):
        return []  # closed to us (root only since CVE-2020-8694), so none of them counts
    return counters


def _open_nvml(devices: Sequence[int | str]) -> "list[_Nvml]":
    """The devices whose counters can be read through the optional package nvidia-ml-py."""
    if not devices:
        return []
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # no package, no driver, no rights: each has its own type
        return []
    found = []
    for device in devices:
        try:
            found.append(_Nvml(nvml, device))
        except nvml.NVMLError:
            continue
    return found
