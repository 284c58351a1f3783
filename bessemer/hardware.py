"""What is known of hardware without asking torch: the catalogue, this machine, stored measurements.

The catalogue (`hardware.toml`) has dense peaks, memory, links, power and prices with their sources. A
device that it does not know is an error or has no peak; it is never taken for another. What this
machine really reaches is measured (`measure/ceiling.py`) and stored in the user's cache folder, from
where the torch-free planner reads it.
"""

import difflib
import json
import os
import re
import shutil
import tomllib
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from bessemer.durable import write_json
from bessemer.errors import RecipeError

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """A row of the catalogue. None: not verified, so unknown."""

    name: str
    kind: str  # gpu, cpu, tpu, asic, soc
    vendor: str
    year: int
    confidence: str
    source: str
    aliases: tuple[str, ...] = ()
    bf16_dense_tflops: float | None = None
    fp8_dense_tflops: float | None = None
    fp4_dense_tflops: float | None = None
    tf32_dense_tflops: float | None = None
    fp32_tflops: float | None = None
    memory_gb_nominal: float | None = None
    memory_gib_usable: float | None = None
    memory_gb_per_s: float | None = None
    link_gb_per_s: float | None = None
    link_domain: int | None = None
    devices_per_node: int | None = None
    network_gb_per_s: float | None = None
    tdp_w: float | None = None
    node_max_w: float | None = None
    node_overhead_w: float | None = None
    usd_per_device_hour: float | None = None
    price_source: str | None = None
    notes: str | None = None

    def peak_tflops(self, dtype: str) -> float | None:
        """Dense peak of a compute type. fp32 matmuls are computed in fp32 here, not in tf32."""
        return self.bf16_dense_tflops if dtype == "bf16" else self.fp32_tflops


@dataclass(frozen=True)
class Ceilings:
    """What a device of this machine was measured to reach, and when."""

    device: str
    matmul_bf16_tflops: float
    matmul_fp32_tflops: float
    copy_gb_per_s: float  # bytes read plus bytes written
    threads: int
    torch: str
    date: str
    busy_share: float = 0.0  # of the cores, that others used when it was measured

    def matmul_tflops(self, dtype: str) -> float:
        return self.matmul_bf16_tflops if dtype == "bf16" else self.matmul_fp32_tflops


@dataclass(frozen=True)
class Machine:
    """This machine as the process sees it: cores and memory within its limits."""

    cpu: str
    cores: int
    flags: tuple[str, ...]  # of those that decide how fast training on the CPU is
    memory_bytes: int
    memory_available_bytes: int


@cache
def catalogue() -> dict[str, Device]:
    """All devices by their own names."""
    text = (resources.files("bessemer") / "hardware.toml").read_text(encoding="utf-8")
    rows = tomllib.loads(text)["device"]
    return {row["name"]: Device(**{**row, "aliases": tuple(row["aliases"])}) for row in rows}


def find(name: str) -> Device | None:
    """The device of that name or alias; case, spaces, dashes and underscores do not matter."""
    return _spellings().get(_plain(name))


def lookup(name: str) -> Device:
    """As `find`, for a name that a user wrote: RecipeError when there is no such device."""
    device = find(name)
    if device is not None:
        return device
    near = difflib.get_close_matches(_plain(name), list(_spellings()), n=1, cutoff=0.6)
    own = "describe it in a cluster file (docs/clusters.md)"
    raise RecipeError(
        f"unknown device {name!r}",
        found=name,
        wanted="a device of the catalogue: " + ", ".join(catalogue()),
        fix=f"did you mean `{_spellings()[near[0]].name}`? Else {own}" if near else f"choose one, or {own}",
    )


def machine() -> Machine:
    total, available = _memory()
    info = _cpu_info()
    wanted = ("amx_bf16", "amx_tile", "avx512_bf16", "avx512f", "avx2", "asimd", "bf16")
    flags = (info.get("flags") or info.get("Features") or "").split()
    return Machine(
        cpu=info.get("model name") or info.get("Model") or os.uname().machine,
        cores=usable_cores(),
        flags=tuple(flag for flag in wanted if flag in flags),
        memory_bytes=total,
        memory_available_bytes=available,
    )


def process_bytes() -> int:
    """Memory of this process that no file backs: what its end would give back. 0 where nobody tells."""
    pages = _read_text(Path("/proc/self/statm")).split()
    return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE") if len(pages) > 2 else 0


def usable_cores() -> int:
    """Cores of this process's affinity, cut by a container's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read_text(Path("/sys/fs/cgroup/cpu.max")).split()
    if len(quota) == 2 and quota[0].isdecimal():
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    return cores


def disk_free_bytes(folder: Path) -> int:
    """Free space where `folder` is, or will be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def cache_folder() -> Path:
    """Where measurements of this machine are kept between runs."""
    # A user without a home, as containers have them, gets the root's: not writable, so nothing is kept.
    home = os.path.expanduser("~")
    folder = os.environ.get("XDG_CACHE_HOME") or Path("/" if home == "~" else home) / ".cache"
    return Path(folder) / "bessemer"


def stored_ceilings(device: str, threads: int) -> Ceilings | None:
    """The stored measurement of this device with so many threads, or None."""
    text = _read_text(_ceilings_file(device, threads))
    try:
        values = json.loads(text) if text else {}
    except json.JSONDecodeError:
        return None  # another version's file, or a torn one: it is measured again
    known = {field.name for field in fields(Ceilings)}
    return Ceilings(**values) if isinstance(values, dict) and values.keys() == known else None


def store_ceilings(ceilings: Ceilings) -> Path:
    path = _ceilings_file(ceilings.device, ceilings.threads)
    write_json(path, asdict(ceilings))
    return path


def _ceilings_file(device: str, threads: int) -> Path:
    return cache_folder() / f"ceilings-{_plain(device) or 'cpu'}-{threads}.json"


def stored_document(kind: str, device: str) -> dict[str, Any] | None:
    """What else is kept of a device ("calibration", "steps"), or None: absent, torn, or no object."""
    try:
        values = json.loads(_read_text(_document_file(kind, device)) or "null")
    except json.JSONDecodeError:
        return None
    return values if isinstance(values, dict) else None


def write_document(kind: str, device: str, values: dict[str, Any]) -> Path:
    """Beside the ceilings. WriteError where the cache folder cannot be written."""
    path = _document_file(kind, device)
    write_json(path, values)
    return path


def _document_file(kind: str, device: str) -> Path:
    return cache_folder() / f"{kind}-{_plain(device) or 'cpu'}.json"


@cache
def _spellings() -> dict[str, Device]:
    return {
        _plain(word): device for device in catalogue().values() for word in (device.name, *device.aliases)
    }


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9+]", "", name.lower())


def _memory() -> tuple[int, int]:
    """Total and available bytes, within the limit of the container (cgroup version 2 or 1)."""
    rows = dict(line.split(":", 1) for line in _read_text(Path("/proc/meminfo")).splitlines() if ":" in line)
    if "MemTotal" not in rows:  # not Linux
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return total, total
    total, available = (int(rows[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    for limit, used in _cgroup_limits():
        if limit < total:
            total, available = limit, min(available, max(0, limit - used))
    return total, available


def _cgroup_limits() -> list[tuple[int, int]]:
    """(limit, used) of the memory cgroups that this process is in."""
    found = []
    for line in _read_text(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit, used = Path("/sys/fs/cgroup"), "memory.max", "memory.current"
        elif controllers == "memory":
            root, limit, used = (
                Path("/sys/fs/cgroup/memory"),
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
            )
        else:
            continue
        for folder in (root / path.lstrip("/"), root):
            values = [_read_text(folder / name).strip() for name in (limit, used)]
            if all(value.isdecimal() for value in values):
                found.append((int(values[0]), int(values[1])))
    return found


def _cpu_info() -> dict[str, str]:
    """The first processor's rows of /proc/cpuinfo; empty where there is none."""
    first = _read_text(Path("/proc/cpuinfo")).split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _read_text(path: Path) -> str:
    """A file that may be absent or closed to us: then it says nothing."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
