"""AMD devices, through the optional package amdsmi: energy counter, else watts of the socket.

torch names a device by the 16 letters of its serial number, written as bytes of a UUID; amdsmi by that
number.
The counter counts in steps of `counter_resolution` microjoules. Its error is not documented: 5 % is our band,
10 % for watts. Not run on a device of AMD's: tested against a stand-in of the package.
"""

import importlib
from collections.abc import Sequence
from typing import Any

from bessemer.energy.readers.assumed import assumed_board
from bessemer.energy.readers.sampled import Counter, Sampled
from bessemer.energy.reading import ACCELERATOR, Reader

_COUNTER_ERROR, _WATTS_ERROR = 0.05, 0.10
_WATTS = ("current_socket_power", "average_socket_power", "socket_power")


def open_amd(devices: Sequence[int | str]) -> dict[int | str, list[Reader]]:
    """The readers of each device that amdsmi knows, best first."""
    if not devices:
        return {}
    try:
        smi = importlib.import_module("amdsmi")
        smi.amdsmi_init()
        handles = list(smi.amdsmi_get_processor_handles())
        serials = [_serial(smi, handle) for handle in handles]
    except Exception:  # no package, no driver, no rights: each has its own type
        return {}
    found: dict[int | str, list[Reader]] = {}
    for device in devices:
        number = device if isinstance(device, int) else _place(serials, device)
        if number is not None and number < len(handles):
            found[device] = _readers(smi, handles[number], device)
    return {device: readers for device, readers in found.items() if readers}


def _readers(smi: Any, handle: Any, device: int | str) -> list[Reader]:
    def joules() -> float | None:
        try:
            told = smi.amdsmi_get_energy_count(handle)
        except smi.AmdSmiException:
            return None
        steps = told.get("energy_accumulator", told.get("power"))  # "power": until ROCm 6.1
        return None if steps is None else float(steps) * float(told["counter_resolution"]) * 1e-6

    def watts() -> float | None:
        try:
            told = smi.amdsmi_get_power_info(handle)
        except smi.AmdSmiException:
            return None
        return next((float(told[key]) for key in _WATTS if isinstance(told.get(key), int | float)), None)

    counter = Counter(f"amdsmi device {device}", ACCELERATOR, joules, _COUNTER_ERROR)
    sampled = Sampled(f"amdsmi power of {device}", ACCELERATOR, watts, _WATTS_ERROR)
    readers: list[Reader] = [reader for reader in (counter, sampled) if reader.works]
    try:
        assumed = assumed_board(device, smi.amdsmi_get_gpu_asic_info(handle)["market_name"])
    except smi.AmdSmiException:
        assumed = None
    return readers if assumed is None else [*readers, assumed]


def _serial(smi: Any, handle: Any) -> str:
    return str(smi.amdsmi_get_gpu_asic_info(handle)["asic_serial"]).lower().removeprefix("0x")


def _place(serials: list[str], device: str) -> int | None:
    """GPU-31323334-… is the serial number 1234…; None: no device of AMD's."""
    try:
        serial = bytes.fromhex(device.removeprefix("GPU-").replace("-", "")).decode("ascii").lower()
    except (ValueError, UnicodeDecodeError):
        return None
    return serials.index(serial) if serial in serials else None
