"""What a device really reaches: one large matrix product and one large copy, best of several.

The planner and MFU on a CPU stand on these, as no catalogue knows a CPU's clocks. Best of several,
because other work on the machine only ever makes a measurement slower. About 2 s on a CPU; stored in
the user's cache with date, torch version and number of threads, and measured anew when torch changed. A
measurement on cores that others were using is repeated the next time, and the better of both is kept.
The matrices grow until one product takes 30 ms, so that a phone and an H200 are both measured well.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch

from bessemer.errors import WriteError
from bessemer.hardware import Ceilings, machine, store_ceilings, stored_ceilings

_ENOUGH_S = 0.03  # long enough for a timer, short enough for several
_SIZES = (1024, 2048, 4096, 8192, 16384)
_MATMUL_S = 0.6  # time for the repetitions of one type
_COPY_BYTES = {"cpu": 2**28}
_COPY_BYTES_ACCELERATOR = 2**31
_SPEEDS = ("matmul_bf16_tflops", "matmul_fp32_tflops", "copy_gb_per_s")
_QUIET_SHARE, _LISTEN_S = 0.1, 0.2


def ceilings(device: torch.device, *, fresh: bool = False) -> Ceilings:
    """The stored measurement of this device, or a new one. `fresh`: measure in any case; on busy cores that
    does not lower what is stored."""
    name, threads = device_name(device), torch.get_num_threads() if device.type == "cpu" else 1
    stored = stored_ceilings(name, threads)
    same = stored if stored is not None and stored.torch == torch.__version__ else None
    if same is not None and same.busy_share <= _QUIET_SHARE and not fresh:
        return same
    found = _measure(device, name, threads)
    if same is not None and (not fresh or found.busy_share > _QUIET_SHARE):
        better = {key: max(getattr(found, key), getattr(same, key)) for key in _SPEEDS}
        found = replace(found, busy_share=min(found.busy_share, same.busy_share), **better)
    with suppress(WriteError):  # no home to write to, as in containers: then each command measures anew
        store_ceilings(found)
    return found


def _measure(device: torch.device, name: str, threads: int) -> Ceilings:
    return Ceilings(
        device=name,
        busy_share=_busy_share() if device.type == "cpu" else 0.0,
        matmul_bf16_tflops=_matmul_tflops(device, torch.bfloat16),
        matmul_fp32_tflops=_matmul_tflops(device, torch.float32),
        copy_gb_per_s=_copy_gb_per_s(device),
        threads=threads,
        torch=torch.__version__,
        date=date.today().isoformat(),
    )


def _busy_share() -> float:
    """How much of the machine's cores is used while this process sleeps; 0 where nobody tells."""
    before = core_ticks()
    time.sleep(_LISTEN_S)
    after = core_ticks()
    if before is None or after is None or after[1] == before[1]:
        return 0.0
    return 1.0 - (after[0] - before[0]) / (after[1] - before[1])


def core_ticks() -> tuple[int, int] | None:
    """(idle, all) ticks of all cores so far."""
    try:
        ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    return ticks[3] + ticks[4], sum(ticks)


def device_name(device: torch.device) -> str:
    """The name under which the catalogue may know it."""
    if device.type == "cpu":
        return machine().cpu
    if device.type in ("cuda", "xpu"):
        return str(getattr(torch, device.type).get_device_name(device))
    return device.type


def _matmul_tflops(device: torch.device, dtype: torch.dtype) -> float:
    for size in _SIZES:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty(size, size, device=device, dtype=dtype)
        multiply = _Multiply(a, b, out)
        multiply()  # first use: code is compiled, memory is touched
        once_s = _seconds(multiply, device)
        # The next size takes eight times as long; stop where that would be too long for this device.
        if once_s >= _ENOUGH_S:
            break
    return 2.0 * size**3 / _best_s(multiply, device, once_s) / 1e12


class _Multiply:
    def __init__(self, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
        self._a, self._b, self._out = a, b, out

    def __call__(self) -> None:
        torch.mm(self._a, self._b, out=self._out)


def _copy_gb_per_s(device: torch.device) -> float:
    size = _COPY_BYTES.get(device.type, _COPY_BYTES_ACCELERATOR)
    source = torch.zeros(size // 4, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)

    copy()
    return 2.0 * size / _best_s(copy, device, _seconds(copy, device)) / 1e9


def _best_s(work: Callable[[], None], device: torch.device, once_s: float) -> float:
    """The quickest of at least three, as many as fit in the time."""
    times = max(3, min(50, round(_MATMUL_S / max(once_s, 1e-6))))
    return min([once_s, *(_seconds(work, device) for _ in range(times))])


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    begin_s = time.perf_counter()
    work()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - begin_s
