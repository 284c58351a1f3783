"""`bessemer doctor`: what this machine can do, and how to get what it lacks."""

import argparse
from pathlib import Path
from typing import Any

from bessemer.cli.columns import text_table
from bessemer.units import format_bytes

HELP = "what this machine can do: devices, measured ceilings, meters, compiler, and what is missing"
COMPUTES = True

# Package, what it is for, how to get it.
_OPTIONAL = (
    ("nvidia-ml-py", "measured energy of NVIDIA devices", "pip install nvidia-ml-py"),
    ("transformers", "comparing exported models with the original code", "pip install 'bessemer[dev]'"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="measure, in half a minute, how fast this machine does each part of a training step",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    import platform

    import torch

    from bessemer.energy.levers.restore import restore_left
    from bessemer.energy.metering.meter import PowerMeter
    from bessemer.hardware import cache_folder, disk_free_bytes, machine
    from bessemer.measure.facts import meter_name

    put_back = restore_left(args.console.line)  # before anything is measured
    here, accelerators = machine(), _accelerators()
    devices = _devices([torch.device("cpu"), *accelerators], args.calibrate)
    calibrations = _calibrations([torch.device("cpu"), *accelerators], args.calibrate)
    meter = PowerMeter(cores=here.cores, accelerators=[meter_name(device) for device in accelerators])
    document: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": {"name": here.cpu, "cores": here.cores, "flags": list(here.flags)},
        "memory": {"bytes": here.memory_bytes, "available_bytes": here.memory_available_bytes},
        "disk_free_bytes": disk_free_bytes(Path.cwd()),
        "devices": devices,
        "calibrations": calibrations,
        "ceilings_stored_in": str(cache_folder()),
        "meters": meter.parts,
        "compiler": _compiler("gpu" if accelerators else "cpu"),
        "optional": _optional(),
        "put_back": put_back,
    }
    missing = _missing(document, meter.missing)
    missing += [{"what": "RAPL", "why": "measured energy of the CPU", "get": hint} for hint in meter.hints]
    meter.close()
    return {**document, "missing": missing, "advice": _advice(devices)}


def show(document: dict[str, Any]) -> str:
    cpu, memory = document["cpu"], document["memory"]
    compiler, flags = document["compiler"], " ".join(cpu["flags"]) or "none of those that matter"
    lines = [
        f"python {document['python']}, torch {document['torch']}",
        f"CPU       {cpu['name']}, {cpu['cores']} cores ({flags})",
        f"memory    {format_bytes(memory['available_bytes'])} of {format_bytes(memory['bytes'])} available",
        f"disk      {format_bytes(document['disk_free_bytes'])} free here",
        f"compiler  {compiler['path'] or 'none'} {compiler['version'] or ''}".rstrip(),
        "meters    " + ", ".join(f"{part['name']} ({part['basis']})" for part in document["meters"]),
        "optional  "
        + ", ".join(f"{part['name']} {part['version'] or 'absent'}" for part in document["optional"]),
    ]
    parts = ["\n".join(lines), _ceilings(document["devices"]), *_speeds(document["calibrations"])]
    if document["missing"]:
        rows = [[row["what"], row["why"], row["get"]] for row in document["missing"]]
        parts.append("\n".join(text_table(["Missing", "what it is for", "how to get it"], rows, left=3)))
    return "\n\n".join([*parts, *document["advice"]])


def _ceilings(devices: list[dict[str, Any]]) -> str:
    headings = ["Device", "bf16 TFLOP/s", "fp32 TFLOP/s", "copy GB/s", "memory", "catalogue peak", "measured"]
    rows = [
        [
            row["name"],
            f"{row['matmul_bf16_tflops']:.3g}",
            f"{row['matmul_fp32_tflops']:.3g}",
            f"{row['copy_gb_per_s']:.3g}",
            format_bytes(row["memory_bytes"]) if row["memory_bytes"] else "unknown",
            f"{row['peak_bf16_tflops']:.4g}" if row["peak_bf16_tflops"] else "unknown",
            row["measured"],
        ]
        for row in devices
    ]
    return "\n".join(text_table(headings, rows))


def _accelerators() -> list[Any]:
    import torch

    from bessemer.model.device import this_device

    here = this_device()
    if here.type == "cpu":
        return []
    return [torch.device(here.type, index) for index in range(torch.accelerator.device_count())]


def _devices(devices: list[Any], calibrate: bool) -> list[dict[str, Any]]:
    """A row of each; those of one name share one measurement."""
    from bessemer.hardware import find
    from bessemer.measure.ceiling import ceilings, device_name
    from bessemer.measure.facts import memory_available

    rows, measured = [], set()
    for device in devices:
        name = device_name(device)
        ceiling = ceilings(device, fresh=calibrate and name not in measured)
        measured.add(name)
        known = find(name)
        rows.append(
            {
                "name": name,
                "kind": "cpu" if device.type == "cpu" else (known.kind if known else "gpu"),
                "memory_bytes": memory_available(device),
                "matmul_bf16_tflops": ceiling.matmul_bf16_tflops,
                "matmul_fp32_tflops": ceiling.matmul_fp32_tflops,
                "copy_gb_per_s": ceiling.copy_gb_per_s,
                "peak_bf16_tflops": known.bf16_dense_tflops if known else None,
                "threads": ceiling.threads,
                "measured": ceiling.date,
            }
        )
    return rows


def _calibrations(devices: list[Any], calibrate: bool) -> list[dict[str, Any]]:
    """Of each name: measured now, or what is stored. As planner/calibrated/tables.py has them."""
    from bessemer.measure import calibrate as measure
    from bessemer.measure.ceiling import device_name
    from bessemer.planner.calibrated.tables import stored_calibration

    by_name = {device_name(device): device for device in reversed(devices)}
    found = [
        measure.calibrate(device) if calibrate else stored_calibration(name)
        for name, device in by_name.items()
    ]
    return [each.to_json() for each in reversed(found) if each is not None]


def _speeds(calibrations: list[dict[str, Any]]) -> list[str]:
    from bessemer.cli.doctor_speeds import calibration_text
    from bessemer.planner.calibrated.tables import Calibration

    if not calibrations:
        return [
            "Not calibrated: `bessemer doctor --calibrate` lets the planner predict this machine closely."
        ]
    return [calibration_text(Calibration.from_json(values)) for values in calibrations]


def _compiler(kind: str) -> dict[str, str | None]:
    """That of the device which training takes: the accelerator where there is one."""
    import subprocess

    from bessemer.measure.compiler import compiler
    from bessemer.planner.compiling import compiler_language

    path, language = compiler(kind), compiler_language(kind)
    if path is None:
        return {"path": None, "version": None, "language": language}
    answer = subprocess.run([path, "-dumpversion"], capture_output=True, text=True, timeout=10, check=False)
    return {"path": path, "version": answer.stdout.strip() or None, "language": language}


def _optional() -> list[dict[str, str | None]]:
    from importlib import metadata

    rows: list[dict[str, str | None]] = []
    for name, purpose, get in _OPTIONAL:
        try:
            version: str | None = metadata.version(name)
        except metadata.PackageNotFoundError:
            version = None
        rows.append({"name": name, "version": version, "for": purpose, "get": get})
    return rows


def _missing(document: dict[str, Any], unmetered: list[str]) -> list[dict[str, str]]:
    from bessemer.train.compiling import COMPILER_PACKAGE

    has_nvidia = any(row["kind"] == "gpu" for row in document["devices"])
    rows = [
        {"what": part["name"], "why": part["for"], "get": part["get"]}
        for part in document["optional"]
        if part["version"] is None and (part["name"] != "nvidia-ml-py" or has_nvidia)
    ]
    if document["compiler"]["path"] is None:
        what = f"a {document['compiler']['language']} compiler"
        why = "torch.compile: without it training is slower"
        rows.append({"what": what, "why": why, "get": COMPILER_PACKAGE})
    if all(part["basis"] == "assumed" for part in document["meters"]):
        why = "measured energy: without one it is assumed from watts per core"
        get = "a machine with RAPL, readable: chmod o+r /sys/class/powercap/intel-rapl:*/energy_uj"
        rows.append({"what": "a power meter", "why": why, "get": get})
    return rows + [
        {"what": f"meter of {name}", "why": "measured energy", "get": "pip install nvidia-ml-py"}
        for name in unmetered
    ]


def _advice(devices: list[dict[str, Any]]) -> list[str]:
    cpu = devices[0]
    if len(devices) == 1 and cpu["matmul_bf16_tflops"] < 1.2 * cpu["matmul_fp32_tflops"]:
        return [
            'This CPU multiplies fp32 as fast as bf16 or faster: dtype = "auto" trains in fp32 here. '
            "CPUs with AMX are several times faster in bf16."
        ]
    return []
