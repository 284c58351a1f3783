"""What turns a step's time into figures: of the model, of the devices, of the machine."""

import ctypes
import resource
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bessemer.hardware import usable_cores
from bessemer.train.expect import Expected


@dataclass(frozen=True)
class Gauge:
    device: torch.device
    flops_per_token: float | None = None  # None: a model that nobody counted
    peak_flops: float | None = None  # of all ranks together; None: unknown device, no MFU
    cores: int = field(default_factory=usable_cores)
    accelerators: tuple[str, ...] | None = None  # of this machine's ranks; None: this process has its own
    device_name: str | None = None  # of the accelerators, as the catalogue or torch has it
    power_command: tuple[str, ...] = ()  # the recipe's energy.command, where --allow-code lets it run
    hosts: int = 1  # machines, each of which has a meter
    fellows: tuple[int, ...] | None = None  # other ranks of this machine; None: all
    expected: Expected | None = None  # of a step, by the planner

    def peak_memory_bytes(self) -> float:
        """Of this rank."""
        if self.device.type != "cpu":
            return float(torch.accelerator.max_memory_allocated(self.device))
        unit = 1 if sys.platform == "darwin" else 1024
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def forget_peak(device: torch.device) -> None:
    """From now on the peak of memory is that of this stage: what came before in the process, such as the
    measuring of a new machine, the making of data and other stages, is given back and no longer counts.

    On a CPU by Linux alone (proc(5), clear_refs); elsewhere a peak is that of the process.
    """
    if device.type != "cpu":
        torch.accelerator.reset_peak_memory_stats(device)
        return
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)  # training keeps what is freed (launch/environment.py)
    with suppress(OSError):  # another system, or a /proc that may not be written
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
