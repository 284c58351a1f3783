"""Tables of published training runs, read into what the planner can predict.

Columns are those of columns.py, layouts those of layouts.py; what the sources mean by their figures is in
conventions.py, what their models look like in models.py.
A row is skipped only for an unknown device or model or a missing layout; else it has a layout, even where
nothing was measured of it.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bessemer.formulas.shape import ModelShape
from bessemer.hardware import Device
from bessemer.planner.cost.candidates import PRECISIONS, RECOMPUTE, Candidates
from bessemer.planner.cost.profile import peak_tflops
from bessemer.planner.machine.cluster import Cluster, catalogue_cluster
from bessemer.planner.published import conventions
from bessemer.planner.published.columns import read_cells
from bessemer.planner.published.layouts import misfit, read_layout, step_rows, with_script
from bessemer.planner.published.models import DIMS, FoundShape, ImpossibleShape, find_shape


@dataclass(frozen=True)
class PublishedRun:
    """One row. None: not published, or, where `skipped_because` says so, not known."""

    row: int  # of the data, from 1
    source: str
    model: str
    shape: ModelShape | None
    shape_assumed: bool  # only its size is known
    context: int  # tokens in a row
    device: Device | None
    devices: int
    candidates: Candidates | None  # of length 1
    cluster: Cluster | None
    recompute_published: bool
    stack: str
    precision: str  # of PRECISIONS
    release: str | None
    job: str  # pretrain, sft, lora
    batch_rows: int  # of a step; assumed where not published
    batch_published: bool
    out_of_memory: bool  # the row says that it did not fit
    stage: int | None  # pipeline rank of which the memory is; None: the fullest
    actual_step_time_s: float | None
    actual_tokens_per_s_per_device: float | None
    actual_allocated_gib: float | None
    actual_reserved_gib: float | None  # of the allocator
    actual_device_gib: float | None  # as nvidia-smi shows: with the driver's own
    gpu_hours: float | None
    notes: str
    skipped_because: str | None

    @property
    def group(self) -> tuple[str, str, str]:
        """Rows whose errors are averaged first: stack, device, precision."""
        stack = conventions.SOFTWARE.get(self.stack, self.stack)
        return stack, self.device.name if self.device else "unknown", self.precision


def read_runs(path: Path | str) -> list[PublishedRun]:
    """Every data row of a CSV file. RecipeError where it is no such table."""
    return [_run(number, cells) for number, cells in enumerate(read_cells(Path(path)), start=1)]


def _run(number: int, cells: dict[str, Any]) -> PublishedRun:
    source, model, notes = (cells.get(key, "") for key in ("source", "model", "notes"))
    device = conventions.device_of(cells.get("device", ""), f"{source} {notes}")
    cells = with_script(cells, device)
    context = int(cells.get("seq", 2048))
    found, unknown = _shape(cells, model, context)
    degrees = {axis: int(cells[axis]) for axis in ("tp", "pp", "cp", "dp", "ep") if cells.get(axis)}
    devices = int(cells.get("devices", 0)) or _product(degrees)
    stack = _stack(cells, device, degrees)
    layout, unread = _layout(cells, degrees, devices, device, stack)
    skipped = _unknown_device(cells, device) or unknown or unread
    shape = _with_mtp(found.shape, cells, model) if found else None
    release = conventions.release_of(notes)
    published = bool(cells.get("batch_rows") or cells.get("batch_tokens") or cells.get("micro_batches"))
    batch_rows = int(cells.get("batch_rows") or (step_rows(layout) if layout else 0))
    return PublishedRun(
        row=number,
        source=source,
        model=model,
        shape=shape,
        shape_assumed=found.assumed if found else False,
        context=context,
        device=device,
        devices=devices,
        candidates=None if skipped else layout,
        cluster=None if skipped or device is None else _cluster(device, devices, source, notes),
        recompute_published="recompute" in cells,
        stack=conventions.variant_of(
            stack, model, release, shape.experts if shape else 0, device.year if device else 0
        ),
        precision=PRECISIONS[conventions.precision_of(cells.get("precision", ""))],
        release=release,
        job=conventions.job_of(notes, model),
        batch_rows=batch_rows,
        batch_published=published,
        out_of_memory=conventions.out_of_memory(notes),
        stage=int(cells["stage"]) if "stage" in cells else None,
        **_speed(cells, shape, context, device, devices, batch_rows if published else 0),
        **_memory(cells),
        gpu_hours=cells.get("gpu_hours"),
        notes=notes,
        skipped_because=skipped,
    )


def _stack(cells: dict[str, Any], device: Device | None, degrees: dict[str, int]) -> str:
    """The software, as its layouts are read; its variants for a model come after."""
    source, sharding, notes = (cells.get(key, "") for key in ("source", "sharding", "notes"))
    parallel = degrees.get("tp", 1) * degrees.get("pp", 1) > 1
    stack = conventions.stack_of(source, sharding, notes, device, parallel)
    full = conventions.recompute_of(cells.get("recompute", ""), source) == RECOMPUTE.index("full")
    return conventions.sequence_parallel_of(stack, f"{source} | {sharding} | {notes}", full)


def _unknown_device(cells: dict[str, Any], device: Device | None) -> str | None:
    """Why nothing can be predicted of the row's device; None: it can."""
    if device is None:
        return f"unknown device {cells.get('device', '')!r}"
    if device.memory_gb_per_s is None or peak_tflops(device, "bf16") is None:
        return f"unknown device {device.name!r}: the catalogue has no peak of it"
    return None


def _shape(cells: dict[str, Any], model: str, context: int) -> tuple[FoundShape | None, str | None]:
    """The shape, or None and why there is none."""
    if not set(DIMS) & cells.get("impossible", {}).keys():
        try:
            found = find_shape(model, _dims(cells, cells.get("source", "")), _params(cells), context)
        except ImpossibleShape:
            pass
        else:
            return found, None if found is not None else f"unknown model {model!r}"
    return None, f"unknown model: impossible dimensions of {model!r}"


def _layout(
    cells: dict[str, Any], degrees: dict[str, int], devices: int, device: Device | None, stack: str
) -> tuple[Candidates | None, str | None]:
    """The layout, or None and why there is none."""
    unread = misfit(cells, degrees, devices)
    layout = None if unread else read_layout(cells, degrees, devices, device, stack)
    return layout, None if layout is not None else unread or "missing layout"


def _dims(cells: dict[str, Any], source: str) -> dict[str, int]:
    dims = {dim: int(cells[dim]) for dim in DIMS if cells.get(dim)}
    if "simumax" in source.lower() and "405b" in cells.get("model", "").lower():
        dims.setdefault("kv_heads", 16)  # its configuration of the 405B, unlike Meta's
    return dims


def _params(cells: dict[str, Any]) -> float | None:
    """A count below 1 is none."""
    params = cells.get("params") or 1e9 * cells.get("params_b", 0.0)
    return float(params) if params >= 1.0 else None


def _with_mtp(shape: ModelShape, cells: dict[str, Any], model: str) -> ModelShape:
    """MTP layers: by the name, else by published TFLOP/s over tokens/s where both are there."""
    per_token = None
    if cells.get("tflops") and cells.get("tokens_per_s_per_device"):
        per_token = 1e12 * cells["tflops"] / cells["tokens_per_s_per_device"]
    source, notes = cells.get("source", ""), cells.get("notes", "")
    return conventions.with_mtp(shape, model, per_token, source, notes)


def _cluster(device: Device, devices: int, source: str, notes: str) -> Cluster:
    cluster = catalogue_cluster(device, devices)
    network, chips = conventions.network_gb_per_s(source), conventions.slice_chips(notes)
    if network is not None:
        cluster = replace(cluster, network_gb_per_s=network)
    return replace(cluster, link_domain=chips) if device.kind == "tpu" and chips else cluster


def _speed(
    cells: dict[str, Any],
    shape: ModelShape | None,
    context: int,
    device: Device | None,
    devices: int,
    batch_rows: int,
) -> dict[str, float | None]:
    """Actual step time and tokens/s of a device as published, one from the other where one is missing.

    batch_rows: of a step; 0 where not published: then there is no step, only speed.
    """
    step, tokens = _step_time_s(cells), float(batch_rows * context)
    speed = cells.get("tokens_per_s_per_device")
    if not speed and cells.get("tokens_per_s") and devices:
        speed = cells["tokens_per_s"] / devices
    if not speed and step and tokens and devices:
        speed = tokens / step / devices
    if not speed and shape is not None and device is not None:
        tflops = cells.get("tflops") or _mfu_tflops(cells, device)
        source, notes = cells.get("source", ""), cells.get("notes", "")
        counted = conventions.published_flops_per_token(source, notes, shape, context)
        speed = 1e12 * tflops / counted if tflops else None
    if not step and speed and tokens and devices:
        step = tokens / (speed * devices)
    return {"actual_step_time_s": step, "actual_tokens_per_s_per_device": speed}


def _step_time_s(cells: dict[str, Any]) -> float | None:
    if cells.get("step_time_s"):
        return float(cells["step_time_s"])
    if cells.get("step_time_ms"):
        return float(cells["step_time_ms"]) / 1000.0
    match = re.search(
        r"(?<![\d.])(\d{1,9}(?:\.\d+)?) s/(?:it|step)\b|step (\d{1,9}(?:\.\d+)?) (m?)s\b",
        cells.get("notes", ""),
    )
    if match is None:
        return None
    return float(match.group(1) or match.group(2)) / (1000.0 if match.group(3) else 1.0) or None


def _mfu_tflops(cells: dict[str, Any], device: Device) -> float | None:
    """MFU of the 16-bit peak; a share under 1 is a fraction, else per cent."""
    mfu, peak = cells.get("mfu"), device.bf16_dense_tflops
    if not mfu or not peak:
        return None
    return float(mfu if mfu < 1.0 else mfu / 100.0) * peak


def _memory(cells: dict[str, Any]) -> dict[str, float | None]:
    """Actual memory by kind."""
    kind = conventions.memory_kind_of(cells.get("source", ""), cells.get("notes", ""))
    plain = {kind: cells.get("memory")}
    return {
        "actual_allocated_gib": cells.get("allocated") or plain.get("allocated"),
        "actual_reserved_gib": cells.get("reserved") or plain.get("reserved"),
        "actual_device_gib": plain.get("device"),
    }


def _product(degrees: dict[str, int]) -> int:
    """Devices where only the axes say them; experts share those of the data."""
    product = 1
    for axis, degree in degrees.items():
        product *= 1 if axis == "ep" else degree
    return product if degrees else 0
