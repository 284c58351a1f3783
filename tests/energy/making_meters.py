"""Trees of sysfs in the kernel's form, a clock that stands still, and programs that print watts."""

import time
from pathlib import Path

import pytest


class Clock:
    """time.monotonic, moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now_s)

    def passes(self, seconds: float) -> None:
        self.now_s += seconds


class Powercap:
    """As the kernel lays it out: zones nested under devices, and a flat folder of links to them."""

    def __init__(self, folder: Path) -> None:
        self._devices, self.links = folder / "devices/virtual/powercap", folder / "class/powercap"
        self.links.mkdir(parents=True)
        for control in ("intel-rapl", "intel-rapl-mmio"):
            (self._devices / control).mkdir(parents=True)
            (self._devices / control / "enabled").write_text("1\n")
            (self.links / control).symlink_to(self._devices / control)

    def zone(self, place: str, name: str, microjoules: int = 0, wrap: int = 262_143_328_850) -> Path:
        """place: "intel-rapl:0:1". Returns the counter's file."""
        control, *numbers = place.split(":")
        nested = [f"{control}:{':'.join(numbers[:depth])}" for depth in range(1, len(numbers) + 1)]
        folder = self._devices.joinpath(control, *nested)
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "max_energy_range_uj").write_text(f"{wrap}\n")
        (folder / "energy_uj").write_text(f"{microjoules}\n")
        (self.links / place).symlink_to(folder)
        return folder / "energy_uj"


def add(counter: Path, joules: float, wrap: int = 262_143_328_850) -> None:
    """What the hardware does: count on, and begin anew after the last number."""
    counter.write_text(f"{(int(counter.read_text()) + round(joules * 1e6)) % (wrap + 1)}\n")


def chip(hwmon: Path, number: int, name: str, **files: str) -> Path:
    folder = hwmon / f"hwmon{number}"
    folder.mkdir(parents=True)
    for file, text in {"name": name, **files}.items():
        (folder / file).write_text(f"{text}\n")
    return folder


def program(folder: Path, name: str, body: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path
