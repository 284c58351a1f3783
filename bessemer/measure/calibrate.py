"""`bessemer doctor --calibrate`: how fast this machine does each part of a training step, in half a minute.

A CPU is measured in three ways, as layouts use it: one process with all threads, one with one thread, and
two processes at the same time that share the cores, between which the exchanges (gloo) are timed too. An
accelerator is measured by itself, and where there are several, the exchanges between two of them. Both
compute types, each part at a few sizes (measure/probes.py). Stored beside the ceilings
(planner/calibrated/tables.py); the planner reads it without torch.
Other work on the machine makes a calibration slower than the machine is: how busy others kept it meanwhile is
stored with it and told, and of a disturbed one and the one before the better times are kept.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import date
from pathlib import Path

import torch

from bessemer.energy.metering.meter import busy_seconds
from bessemer.errors import WriteError
from bessemer.hardware import machine, usable_cores
from bessemer.launch.local import run_workers
from bessemer.measure.ceiling import core_ticks, device_name
from bessemer.measure.probes import COMPUTE, Probes
from bessemer.measure.threads import using_threads
from bessemer.planner.calibrated.tables import (
    Calibration,
    Speeds,
    Table,
    better_of,
    installed_torch,
    speeds_of_json,
    store_calibration,
    stored_calibration,
    table_of_json,
)
from bessemer.processes import worker_command

_QUIET_SHARE = 0.05


def calibrate(device: torch.device) -> Calibration:
    """Measure, store where the cache can be written, and return it."""
    begin_s, others = time.monotonic(), _Others()
    speeds = list(_alone(device))
    exchanges: dict[str, Table] = {}
    if device.type == "cpu" or torch.accelerator.device_count() > 1:
        together, exchanges = _together(device)
        speeds += together
    found = Calibration(
        device=device_name(device),
        kind="cpu" if device.type == "cpu" else "gpu",
        # As the planner reads it without torch: a wheel's own version may leave out what `+` begins.
        torch=installed_torch() or torch.__version__,
        date=date.today().isoformat(),
        cores=machine().cores,
        speeds=tuple(speeds),
        exchanges=exchanges,
        busy_share=round(others.share(), 3) if device.type == "cpu" else 0.0,
        took_s=round(time.monotonic() - begin_s, 1),
    )
    before = stored_calibration(found.device)
    if found.busy_share > _QUIET_SHARE and before is not None and before.cores == found.cores:
        found = better_of(found, before)
    with suppress(WriteError):  # no home to write to, as in containers: then it serves this command alone
        store_calibration(found)
    return found


def _alone(device: torch.device) -> Iterator[Speeds]:
    """One process, with all its threads and with one."""
    all_threads = torch.get_num_threads() if device.type == "cpu" else 1
    for threads in sorted({all_threads, 1}, reverse=True):
        with using_threads(threads if device.type == "cpu" else None):
            for dtype in COMPUTE:
                yield Probes(device, dtype).speeds(1, threads)


def _together(device: torch.device) -> tuple[list[Speeds], dict[str, Table]]:
    """Two processes: (their speeds on a CPU, the exchanges between them). Of two ranks the slower counts."""
    threads = max(1, usable_cores() // 2) if device.type == "cpu" else None
    with tempfile.TemporaryDirectory(prefix="bessemer-calibrate-") as name:
        command = [*worker_command("bessemer.measure.calibrate_pair"), name]
        run_workers(command, 2, logs=None, threads=threads)
        answer = json.loads((Path(name) / "answer.json").read_text())
    speeds = [speeds_of_json(row) for row in answer["speeds"]]
    return speeds, {kind: table_of_json(row) for kind, row in answer["exchanges"].items()}


class _Others:
    """What of the machine's cores other processes use, from now on. 0 where nobody tells."""

    def __init__(self) -> None:
        self._ticks, self._own_s, self._begin_s = core_ticks(), busy_seconds(), time.monotonic()

    def share(self) -> float:
        now = core_ticks()
        if now is None or self._ticks is None or now[1] == self._ticks[1]:
            return 0.0
        all_ticks = now[1] - self._ticks[1]
        busy = 1.0 - (now[0] - self._ticks[0]) / all_ticks
        seconds = time.monotonic() - self._begin_s
        # Ticks of all cores together: their number times the time.
        cores = max(1.0, round(all_ticks / seconds / _ticks_per_s()))
        return max(0.0, busy - (busy_seconds() - self._own_s) / seconds / cores)


def _ticks_per_s() -> int:
    import os

    return os.sysconf("SC_CLK_TCK")
