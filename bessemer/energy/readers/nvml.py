"""NVIDIA devices, through the optional package nvidia-ml-py: energy counter, else watts, else utilisation.

The counter (nvmlDeviceGetTotalEnergyConsumption: mJ, Volta and later) is preferred to watts because those are
sampled only a quarter of the time on A100 and H100 (arXiv:2312.02741). NVML documents an error of 5 %; for
watts, looked at now and then, 10 % is our band. A MIG slice has no counter of its own and is not read.
Devices are named by UUID: NVML's indices are not torch's where CUDA_VISIBLE_DEVICES is set.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from bessemer.energy.power import UTILISATION_ERROR, modelled_accelerator_board
from bessemer.energy.readers.assumed import assumed_board
from bessemer.energy.readers.sampled import Counter, Look, Sampled
from bessemer.energy.reading import ACCELERATOR, Reader
from bessemer.hardware import find

_COUNTER_ERROR, _WATTS_ERROR = 0.05, 0.10


def open_nvml(devices: Sequence[int | str]) -> dict[int | str, list[Reader]]:
    """The readers of each device that NVML knows, best first."""
    if not devices:
        return {}
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # no package, no driver, no rights: each has its own type
        return {}
    found: dict[int | str, list[Reader]] = {}
    for device in devices:
        by_index, by_uuid = nvml.nvmlDeviceGetHandleByIndex, nvml.nvmlDeviceGetHandleByUUID
        try:
            handle = by_index(device) if isinstance(device, int) else by_uuid(device)
        except nvml.NVMLError:
            continue
        readers = _readers(nvml, handle, device)
        if readers:
            found[device] = readers
    return found


def _readers(nvml: Any, handle: Any, device: int | str) -> list[Reader]:
    """Those that answer now."""
    ask = _asker(nvml, handle)
    counter = Counter(
        f"NVML device {device}", ACCELERATOR, ask("nvmlDeviceGetTotalEnergyConsumption", 1e-3), _COUNTER_ERROR
    )
    watts = Sampled(
        f"NVML power of {device}", ACCELERATOR, ask("nvmlDeviceGetPowerUsage", 1e-3), _WATTS_ERROR
    )
    measured: list[Counter | Sampled] = [counter, watts, *_by_utilisation(nvml, handle, device)]
    assumed = assumed_board(device, _kind(nvml, handle))
    readers: list[Reader] = [reader for reader in measured if reader.works]
    return readers if assumed is None else [*readers, assumed]


def _by_utilisation(nvml: Any, handle: Any, device: int | str) -> list[Sampled]:
    known = find(_kind(nvml, handle) or "")
    limit_w = _asker(nvml, handle)("nvmlDeviceGetEnforcedPowerLimit", 1e-3)() or (known and known.tdp_w)
    if not limit_w:
        return []
    limit = float(limit_w)

    def look() -> float | None:
        try:
            busy_share = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100.0
        except (nvml.NVMLError, AttributeError):
            return None
        return modelled_accelerator_board(limit, busy_share).value

    name = f"utilisation of {device} times its limit"
    return [Sampled(name, ACCELERATOR, look, UTILISATION_ERROR, "modelled")]


def _asker(nvml: Any, handle: Any) -> Callable[[str, float], Look]:
    def asking(function: str, unit: float) -> Look:
        def look() -> float | None:
            try:
                return float(getattr(nvml, function)(handle)) * unit
            except (nvml.NVMLError, AttributeError):  # AttributeError: a package from before this function
                return None

        return look

    return asking


def _kind(nvml: Any, handle: Any) -> str | None:
    try:
        name = nvml.nvmlDeviceGetName(handle)
    except (nvml.NVMLError, AttributeError):
        return None
    return name.decode() if isinstance(name, bytes) else str(name)
