"""The columns of tables of published runs, in any case and order, most of them optional.

Spellings are those of published_runs.csv, validation_throughput.csv and validation_memory.csv, and a few
that other tables use. Lines that begin with # are comments: where an excerpt says whose figures it has.
"""

import csv
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bessemer.errors import RecipeError
from bessemer.planner.published.models import DIMS

# Column: its spellings, in lower case; the first that a row fills counts.
COLUMNS: dict[str, tuple[str, ...]] = {
    "source": ("source",),
    "model": ("model",),
    "params": ("params",),
    "params_b": ("params_b",),
    **{dim: (dim,) for dim in DIMS},
    "seq": ("seq", "seq_len", "sequence_length", "context", "context_tokens"),
    "batch_rows": ("global_batch_sequences", "global_batch_seq", "global_batch_size", "global_batch", "gbs"),
    "batch_tokens": ("global_batch_tokens", "batch_tokens"),
    "devices": ("gpus", "n_acc", "devices", "num_gpus", "accelerators", "chips"),
    "device": ("gpu_type", "accelerator", "device", "hardware", "gpu"),
    "tp": ("tp", "tensor"),
    "pp": ("pp", "pipeline"),
    "cp": ("cp",),
    "dp": ("dp",),
    "ep": ("ep", "expert"),
    "interleave": ("interleave", "vpp", "vp", "virtual_stages"),
    "micro_batch": ("micro_batch", "mbs", "micro_batch_size"),
    "micro_batches": ("microbatches", "micro_batches"),
    "recompute": ("activation_recompute", "recompute"),
    "precision": ("precision", "dtype"),
    "sharding": ("sharding", "zero"),
    "schedule": ("schedule",),
    "stage": ("pp_stage", "stage"),
    "step_time_s": ("step_time_s",),
    "step_time_ms": ("step_ms_measured", "step_time_ms", "step_ms"),
    "tokens_per_s": ("tokens_per_s",),
    "tokens_per_s_per_device": ("tokens_per_s_per_gpu", "tokens_per_s_per_acc", "tokens_per_s_per_device"),
    "tflops": ("tflops_per_gpu", "tflops_per_device", "tflops"),
    "mfu": ("mfu", "reported_mfu_pct", "mfu_pct"),
    "memory": ("mem_gib", "memory_gib"),
    "allocated": ("mem_alloc_gib", "max_allocated_gib", "allocated_gib"),
    "reserved": ("mem_reserved_gib", "max_reserved_gib", "reserved_gib"),
    "gpu_hours": ("gpu_hours", "device_hours"),
    "notes": ("notes", "case"),
}
# Whole numbers from 1 on; a 0 is a blank. MEASURED: a 0 was not measured.
_LAYOUT = {"seq", "batch_rows", "batch_tokens", "devices", "tp", "pp", "cp", "dp", "ep", "interleave",
           "micro_batch", "micro_batches"}  # fmt: skip
_COUNTS = {*_LAYOUT, *DIMS}
_MEASURED = {"step_time_s", "step_time_ms", "tokens_per_s", "tokens_per_s_per_device", "tflops", "mfu",
             "memory", "allocated", "reserved", "gpu_hours"}  # fmt: skip
_ALIKE = 0.75  # of two spellings, as difflib counts
_MOST = 1e9  # of a count but a batch's tokens: products of several still fit 64 bits
_LEAST = 1e-6  # of a figure in its unit; less is a 0 that was written otherwise
_TEXTS = {"source", "model", "device", "recompute", "precision", "sharding", "schedule", "notes"}

_ABSENT = {"-", "?", "n/a", "na", "nan", "none", "null", "unknown"}


def read_cells(path: Path) -> list[dict[str, Any]]:
    """Each row by our names: text where present, numbers read, blanks left out.

    A count that is none (half a rank) is left out too, and named under `impossible`: its row is lost, and
    no other. RecipeError where the file cannot be read, is no such table or has no rows.
    """
    reader = csv.DictReader(_lines(path))
    try:
        header = [(name or "").strip().lower() for name in reader.fieldnames or []]
        _check_header(path, header)
        reader.fieldnames = header
        rows = [_cells(path, number, row) for number, row in enumerate(reader, start=1)]
    except csv.Error as error:
        raise RecipeError(
            f"cannot read {path}",
            found=f"line {reader.line_num + 1}: {error}",
            wanted=f"CSV with cells of at most {csv.field_size_limit():,} characters",
            fix="shorten or quote the cell",
        ) from error
    if not rows:
        raise RecipeError(
            f"{path} has no rows",
            found="a header alone",
            wanted="at least one published run",
            fix="add rows, or name another file",
        )
    return rows


def unread_columns(path: Path) -> dict[str, str | None]:
    """Columns of the file that nothing is read from, each with the spelling that was probably meant: a figure
    under another name would else be missed, or assumed, without a word. After `read_cells`."""
    known = [spelling for spellings in COLUMNS.values() for spelling in spellings]
    header = [name.strip().lower() for name in next(csv.reader(_lines(path)))]
    missing = [
        word for spellings in COLUMNS.values() if not set(spellings) & set(header) for word in spellings
    ]
    unread = [name for name in header if name and name not in known]
    return {name: next(iter(difflib.get_close_matches(name, missing, 1, _ALIKE)), None) for name in unread}


def _lines(path: Path) -> list[str]:
    """Without comments. RecipeError where there is no such text."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [line for line in file if not line.startswith("#")]
    except (OSError, UnicodeDecodeError) as error:
        is_text = not isinstance(error, UnicodeDecodeError)
        raise RecipeError(
            f"cannot read {path}",
            found=getattr(error, "strerror", None) or "bytes that are not UTF-8 text",
            wanted="a CSV file of published runs",
            fix="check the path" if is_text else "save the table as CSV in UTF-8",
        ) from error


def _check_header(path: Path, header: list[str]) -> None:
    wanted = "a header with `model` and columns such as seq, gpus, gpu_type, tp, pp, dp, micro_batch"
    if not header:
        raise RecipeError(
            f"{path} has no header", found="no names of columns", wanted=wanted, fix="name another file"
        )
    layout = {spelling for key in ("tp", "pp", "dp", "devices") for spelling in COLUMNS[key]}
    if "model" not in header or not layout & set(header):
        raise RecipeError(
            f"{path} is no table of published runs",
            found="columns " + ", ".join(header)[:200],
            wanted=wanted,
            fix=_another_table(header),
        )


def _another_table(header: list[str]) -> str:
    """What to do about a header that is none of these tables'."""
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and separator in header[0]:
            return f"its columns are separated by {name}: save it with commas"
    if {"gpu_hours", "kwh"} <= set(header):
        return "for a table of energies: `bessemer energy validate`"
    return "rename the columns; docs/planner.md lists their names"


def _cells(path: Path, number: int, row: Mapping[str, str | None]) -> dict[str, Any]:
    """The row by our names: text where present, numbers read, blanks left out."""
    cells: dict[str, Any] = {}
    impossible: dict[str, float] = {}
    for name, spellings in COLUMNS.items():
        text = next((cell.strip() for key in spellings if (cell := row.get(key)) and cell.strip()), None)
        value = text if text is None or name in _TEXTS else _number(path, number, name, text)
        if isinstance(value, float):
            if name in _COUNTS and not _is_count(name, value):
                impossible |= {name: value} if value else {}
                continue
            if name in _MEASURED and value < _LEAST:
                continue
        if value is not None:
            cells[name] = value
    return cells | ({"impossible": impossible} if impossible else {})


def _is_count(name: str, value: float) -> bool:
    return value >= 1.0 and value.is_integer() and (name == "batch_tokens" or value <= _MOST)


def _number(path: Path, number: int, name: str, text: str) -> float | None:
    """A number of 0 or more, with a thousands comma, "about" or a per cent sign; None: said to be absent."""
    if text.lower() in _ABSENT:
        return None
    try:
        value = float(text.replace(",", "").rstrip("% ").lstrip("~≈ "))
    except ValueError:
        value = -1.0
    if not 0.0 <= value < 1e18:
        raise RecipeError(
            f"row {number} of {path}: {name} is no number",
            found=text,
            wanted="a number of 0 or more, or nothing",
            fix="correct the cell or leave it blank",
        )
    return value
