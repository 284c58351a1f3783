"""The layout of a published row, with what is blank filled in from the rest of it.

Data ranks are the devices over the other axes; a micro-batch that neither a column nor the notes give is
one row; micro-batches follow from the batch. A row that gives a split but no batch at all gets eight
micro-batches for each pipeline rank, enough that the bubble is small. MaxText's rows name their scripts.
"""

import math
import re
from typing import Any

from bessemer.formulas.layout import SCHEDULES
from bessemer.hardware import Device
from bessemer.planner.cost.candidates import Candidates
from bessemer.planner.published import conventions
from bessemer.planner.published.models import DIMS

Cells = dict[str, Any]

_ROWS_IN_NOTES = r"(?:local|micro|per[- ](?:gpu|device))[- _]?batch(?:[- _]size)?\D{0,3}(\d{1,9})\b"


def with_script(cells: Cells, device: Device | None) -> Cells:
    """A MaxText row with what its script says: shards within a slice, copies of it across slices."""
    source, model, notes = (cells.get(key, "") for key in ("source", "model", "notes"))
    scripted = conventions.scripted_layout(source, model, device) if device else None
    if scripted is None:
        return cells
    chips = conventions.slice_chips(notes) or int(cells.get("devices", 1))
    rows = scripted.rows_per_chip * scripted.tensor
    known = {"tp": scripted.tensor, "pp": 1, "micro_batch": rows, "recompute": scripted.recompute}
    copies = max(1, int(cells.get("devices", chips)) // chips)
    return {**known, "seq": conventions.MAXTEXT_CONTEXT, "replicate": copies, **cells}


def read_layout(
    cells: Cells, degrees: dict[str, int], devices: int, device: Device | None, stack: str
) -> Candidates | None:
    """One candidate; None where the row says neither a split nor that there is one device."""
    if not devices or (devices > 1 and not {"tp", "pp", "dp"} & degrees.keys()):
        return None
    source, sharding, notes = (cells.get(key, "") for key in ("source", "sharding", "notes"))
    tensor, pipeline, context = (degrees.get(axis, 1) for axis in ("tp", "pp", "cp"))
    data = max(1, devices // (tensor * pipeline * context))
    zero = conventions.zero_of(source, sharding, notes, stack, pipeline)
    node = (device.devices_per_node if device else None) or 1
    copies = int(cells.get("replicate", 0)) or conventions.copies_of(
        f"{sharding} {notes}", data, node // tensor
    )
    copies = data if zero == 0 else copies
    row = {
        "replicate": copies,
        "shard": data // copies,
        "tensor": tensor,
        "pipeline": pipeline,
        "context": context,
        "expert": degrees.get("ep", 1),
        "recompute": conventions.recompute_of(cells.get("recompute", ""), source),
        "precision": conventions.precision_of(cells.get("precision", "")),
        "zero": zero,
    }
    schedule = _schedule(cells, pipeline)
    batch = _batch(cells, data, pipeline)
    if pipeline > 1 and "torchtitan" in source.lower() and "micro_batches" not in cells:
        batch = _cut_by_stages(batch, pipeline * schedule["interleave"])
    return Candidates.of([{**row, **batch, **schedule}])


def misfit(cells: Cells, degrees: dict[str, int], devices: int) -> str | None:
    """Why no layout can be read; None: one can."""
    for name, value in cells.get("impossible", {}).items():
        if name not in DIMS:
            return f"missing layout: {name} of {value:g}"
    ranks = math.prod(degrees.get(axis, 1) for axis in ("tp", "pp", "cp"))
    # Some tables count ranks that share rows as data ranks, too: without the context axis.
    copies = math.prod(degrees.get(axis, 1) for axis in ("tp", "pp", "dp"))
    if devices and max(ranks, copies) > devices:
        return f"missing layout: {ranks if ranks > devices else copies:,} ranks on {devices:,} devices"
    return None


def step_rows(layout: Candidates) -> int:
    """Rows of a step."""
    return int((layout.data * layout.micro_batch * layout.micro_batches)[0])


def _batch(cells: Cells, data: int, pipeline: int) -> dict[str, int]:
    said = re.search(_ROWS_IN_NOTES, cells.get("notes", ""), re.I)
    micro_batch = int(cells.get("micro_batch", 0)) or (int(said.group(1)) if said else 1) or 1
    rows = cells.get("batch_rows") or cells.get("batch_tokens", 0.0) / cells.get("seq", 2048.0)
    micro_batches = int(cells.get("micro_batches", 0))
    if not micro_batches:
        micro_batches = round(rows / (data * micro_batch)) if rows else (8 * pipeline if pipeline > 1 else 1)
    return {"micro_batch": micro_batch, "micro_batches": max(1, micro_batches)}


def _cut_by_stages(batch: dict[str, int], stages: int) -> dict[str, int]:
    """A rank's rows in as many micro-batches as there are stages, whatever their size: what torchtitan's
    pipeline_parallel_microbatches is where nobody sets it (its help of 2024)."""
    rows = batch["micro_batch"] * batch["micro_batches"]
    return {"micro_batch": rows // stages, "micro_batches": stages} if rows % stages == 0 else batch


def _schedule(cells: Cells, pipeline: int) -> dict[str, int]:
    text = " ".join(cells.get(key, "") for key in ("schedule", "notes", "source")).lower()
    # Interleaved without a number: two stages on a rank, as torchtitan does unless told otherwise.
    usual = 2 if "interleaved" in text else _weak_scaling_stages(cells, pipeline)
    interleave = max(1, int(cells.get("interleave", usual)))
    if pipeline > 1 and re.search(r"\bzbv|zero.?bubble", text):
        return {"schedule": SCHEDULES.index("zbv"), "interleave": 2}
    # DeepSeek-V3's training, whichever of its reports a row is from.
    if pipeline > 1 and re.search(r"dualpipe|2412\.19437|2505\.09343", text):
        return {"schedule": SCHEDULES.index("dualpipev"), "interleave": 2}
    if pipeline > 1 and interleave > 1:
        return {"schedule": SCHEDULES.index("interleaved"), "interleave": interleave}
    return {"schedule": SCHEDULES.index("1f1b"), "interleave": 1}


def _weak_scaling_stages(cells: Cells, pipeline: int) -> int:
    """Megatron Core's weak scaling ran interleaved and does not say how: what divides, up to 8 stages."""
    if "weak scaling" not in cells.get("source", "").lower() or pipeline == 1 or not cells.get("layers"):
        return 1
    layers = int(cells["layers"]) // pipeline
    return max(stages for stages in range(1, 9) if layers % stages == 0)
