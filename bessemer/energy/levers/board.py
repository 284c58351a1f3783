"""The power limit of an NVIDIA board, through the optional package nvidia-ml-py. A lever.

The driver lowers clocks until the board stays below its limit. Power grows faster than speed, so for most
work joules per token fall with the limit for a while (arXiv:2208.06102). Boards are named by UUID, as in
energy/readers/nvml.py. A limit is the board's, not a process's: it holds for everybody until it is put back,
the driver is loaded anew, or the machine boots. Only root may set it.
Source: NVML's reference, nvmlDeviceGetPowerManagementLimitConstraints, nvmlDeviceSetPowerManagementLimit.
"""

import importlib
from typing import Any

from bessemer.errors import RefusedError

_OFF = 'set energy.power_limit="off"'


class Board:
    kind = "power_limit"

    def __init__(self, uuid: str) -> None:
        """RefusedError: no driver, no such board, or one whose limit cannot be asked for."""
        self.name = uuid
        self._nvml = _opened()
        self._handle = None
        self._handle = self._call("nvmlDeviceGetHandleByUUID", uuid)
        lowest, highest = self._call("nvmlDeviceGetPowerManagementLimitConstraints")
        self.lowest_w, self.highest_w = lowest / 1e3, highest / 1e3
        device = self._call("nvmlDeviceGetName")
        self.device = device.decode() if isinstance(device, bytes) else str(device)

    @property
    def limit_w(self) -> float:
        return float(self._call("nvmlDeviceGetPowerManagementLimit")) / 1e3

    def limit(self, watts: float) -> None:
        """RefusedError: outside of what the board allows, or no rights."""
        self.check(watts)
        self._set(watts)

    def read(self) -> dict[str, Any]:
        return {"watts": self.limit_w}

    def put(self, values: dict[str, Any]) -> None:
        self._set(float(values["watts"]))

    def _set(self, watts: float) -> None:
        self._call("nvmlDeviceSetPowerManagementLimit", round(watts * 1e3))

    def check(self, watts: float) -> None:
        """RefusedError: outside of what the board allows."""
        if not self.lowest_w <= watts <= self.highest_w:
            raise RefusedError(
                f"{self.device} does not take this power limit",
                found=f"energy.power_limit = {watts:g}",
                wanted=f"{self.lowest_w:g} to {self.highest_w:g} W",
                fix=f"set energy.power_limit={min(max(watts, self.lowest_w), self.highest_w):g}",
            )

    def _call(self, function: str, *arguments: object) -> Any:
        first = () if self._handle is None else (self._handle,)
        try:
            return getattr(self._nvml, function)(*first, *arguments)
        except (self._nvml.NVMLError, AttributeError) as error:  # AttributeError: an old nvidia-ml-py
            if getattr(error, "value", None) == self._nvml.NVML_ERROR_NO_PERMISSION:
                raise _no_rights(self.name) from error
            raise RefusedError(
                f"the power limit of {self.name} cannot be moved",
                found=f"{function}: {error}",
                wanted="a whole NVIDIA device, whose driver has power limits",
                fix=_OFF,
            ) from error


def _no_rights(uuid: str) -> RefusedError:
    return RefusedError(
        "no rights to set a power limit",
        found=f"the driver refuses it to this user for {uuid}",
        wanted="root, who alone may set power limits (in a container: one with the rights of root outside)",
        fix=f"start as root, or have an administrator run `nvidia-smi -i {uuid} -pl WATTS`, and {_OFF}",
    )


def _opened() -> Any:
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError as error:
        raise _no_driver("nvidia-ml-py is not installed", "pip install nvidia-ml-py") from error
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise _no_driver(f"nvmlInit: {error}", _OFF) from error
    return nvml


def _no_driver(found: str, fix: str) -> RefusedError:
    return RefusedError(
        "power limits need NVIDIA's driver", found=found, wanted="NVML, and nvidia-ml-py to call it", fix=fix
    )
