"""NVIDIA boards that are rows of a file: tests/energy/fake_nvml.c under the real nvidia-ml-py.

A process loads NVML once and for all, so scripts run in processes of their own.
"""

import ctypes
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ONE, TWO = "GPU-11111111-aaaa", "GPU-22222222-bbbb"
STEP_S = 0.01
SOURCE = Path(__file__).parent / "energy" / "fake_nvml.c"


def build_library(folder: Path) -> Path:
    """The folder, with the shared object that stands in for the driver."""
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-Wl,-soname,libnvidia-ml.so.1"]
    subprocess.run(["cc", *flags, "-o", str(folder / "libnvidia-ml.so.1"), str(SOURCE)], check=True)
    return folder


class Boards:
    """Of 100 to 700 W, each with a limit of 700 W and work that draws as much."""

    def __init__(self, folder: Path, library: Path, *uuids: str, allowed: bool = True) -> None:
        self._limits = folder / "limits"
        devices = folder / "devices"
        devices.write_text("".join(f"{uuid},NVIDIA H100 80GB HBM3,0,400000,100,700000\n" for uuid in uuids))
        rows = (
            f"{uuid},100000,700000,700000,{int(allowed)},700000,5000000,{time.monotonic_ns()}\n"
            for uuid in uuids
        )
        self._limits.write_text("".join(rows))
        self.environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(library),
            "FAKE_NVML": str(devices),
            "FAKE_NVML_LIMITS": str(self._limits),
            "XDG_STATE_HOME": str(folder / "state"),
            "PYTHONPATH": str(ROOT),
        }

    def limit_w(self, uuid: str = ONE) -> float:
        rows = [line.split(",") for line in self._limits.read_text().splitlines()]
        return next(float(row[3]) / 1e3 for row in rows if row[0] == uuid)

    def forbid(self, uuid: str) -> None:
        """From now on nobody may set this board's limit."""
        rows = [line.split(",") for line in self._limits.read_text().splitlines()]
        self._limits.write_text(
            "".join(",".join([*row[:4], "0" if row[0] == uuid else row[4], *row[5:]]) + "\n" for row in rows)
        )

    def start(self, script: str) -> "subprocess.Popen[str]":
        """In a process group of its own."""
        return subprocess.Popen(
            [sys.executable, "-c", script],
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, script: str) -> Any:
        """What the script prints, which is JSON."""
        words = [sys.executable, "-c", f"import json\n{script}"]
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


class _StepClock:
    """To a search all steps take as long, whatever this machine does; the joules of its board go along."""

    def __init__(self) -> None:
        self._now_s = time.monotonic()
        self._nvml = ctypes.CDLL("libnvidia-ml.so.1")

    def monotonic(self) -> float:
        """Asked once a step."""
        self._now_s += STEP_S
        self._nvml.fakeClock(ctypes.c_longlong(round(self._now_s * 1e9)))
        return self._now_s


def _as_rank() -> int:
    """A rank of a run on CPUs, as bessemer/train/run.py is one, that holds a board and has short windows."""
    from functools import partial

    from bessemer.train import levers, run, tune

    levers.meter_name = lambda device: (ONE, TWO)[int(os.environ["RANK"])]
    tune.time = _StepClock()  # type: ignore[attr-defined]
    levers.Rules = partial(levers.Rules, window_s=0.02, window_steps=3)  # type: ignore[misc,assignment]
    return run.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(_as_rank())
