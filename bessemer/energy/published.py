"""`bessemer energy validate`: published trainings, recomputed or predicted, against what was published.

A row that was published as hours x watts (x PUE) is recomputed so: that checks our arithmetic and theirs. A
row whose energy was measured is predicted from device, hours, count, kind of work and PUE alone, as
`plan` would (energy/draw.py); so are rows that say hours only. PUE multiplies energy only where the row's
scope includes it, carbon always: a site's grid feeds the building.
"""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bessemer.energy.draw import kind_of_work, mean_draw
from bessemer.energy.power import Band
from bessemer.errors import RecipeError
from bessemer.hardware import find

_NEEDED = ("model", "gpu_type", "gpu_hours")
_NUMBERS = {"gpu_count": "devices", "gpu_hours": "hours", "avg_W_per_gpu": "watts", "kWh": "kwh",
            "PUE": "pue", "gCO2_per_kWh": "grams", "tCO2e": "tonnes"}  # fmt: skip
_WITH_PUE = re.compile(r"[+x×*]\s*pue", re.IGNORECASE)


@dataclass(frozen=True)
class Published:
    """A row of the table; None: blank."""

    row: int  # 1-based, of data
    model: str
    device: str
    scope: str
    basis: str
    text: str  # model and notes, by which the kind of work is known
    devices: float | None
    hours: float | None  # device-hours
    watts: float | None  # published mean of a device
    kwh: float | None
    pue: float | None
    grams: float | None  # CO2e of a kWh
    tonnes: float | None

    @property
    def is_measured(self) -> bool:
        return self.basis.lower().startswith("measured")

    @property
    def scope_has_pue(self) -> bool:
        return bool(_WITH_PUE.search(self.scope))


def validate(rows: list[Published]) -> dict[str, Any]:
    """The document of `energy validate`."""
    told = [_told(row) for row in rows]
    return {"rows": told, "summary": _summary(told)}


def read_published(path: Path) -> list[Published]:
    """RecipeError for a file that is no such table, and for a figure that is none or not above 0."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            cells = list(csv.DictReader(line for line in file if not line.startswith("#")))
    except (OSError, UnicodeDecodeError) as error:
        raise _no_table(path, getattr(error, "strerror", None) or "bytes that are not UTF-8 text") from error
    missing = [name for name in _NEEDED if not cells or name not in cells[0]]
    if missing:
        raise _no_table(path, "no rows" if not cells else f"no column {', '.join(missing)}")
    return [_row(path, number, row) for number, row in enumerate(cells, start=1)]


def _row(path: Path, number: int, cells: Mapping[str, str | None]) -> Published:
    numbers = {ours: _number(path, number, name, cells.get(name)) for name, ours in _NUMBERS.items()}
    text = {name: (cells.get(name) or "").strip() for name in ("model", "gpu_type", "energy_scope", "basis")}
    return Published(
        row=number,
        model=text["model"],
        device=text["gpu_type"],
        scope=text["energy_scope"],
        basis=text["basis"],
        text=f"{text['model']} {cells.get('kind') or ''}",
        **numbers,
    )


def _number(path: Path, row: int, column: str, cell: str | None) -> float | None:
    text = (cell or "").strip().replace(",", "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0.0 < value < float("inf"):
        raise RecipeError(
            f"{path}: row {row} has no usable {column}",
            found=text,
            wanted="a number above 0, or nothing where it is not known",
            fix="correct the cell, or empty it",
        )
    return value


def _told(row: Published) -> dict[str, Any]:
    kwh, how, reason = _energy(row)
    tonnes = None if kwh is None else _carbon(row, kwh)
    return {
        "row": row.row,
        "model": row.model,
        "device": row.device,
        "how": how,
        "predicted_kwh": {"value": None, "low": None, "high": None} if kwh is None else vars(kwh),
        "actual_kwh": row.kwh,
        "predicted_tco2e": tonnes,
        "actual_tco2e": row.tonnes,
        "basis": row.basis,
        "kwh_error": _error(None if kwh is None else kwh.value, row.kwh),
        "tco2e_error": _error(tonnes, row.tonnes),
        "inside_band": kwh.low <= row.kwh <= kwh.high if how == "predicted" and kwh and row.kwh else None,
        "within_rounding": _within_rounding(kwh.value, row.kwh) if how == "recomputed" and kwh else None,
        "skipped_because": reason,
    }


def _within_rounding(value: float, published: float | None) -> bool | None:
    """Whether it could have been written as what was published: 16,814 as 17,000."""
    if published is None:
        return None
    digits = f"{published:.10g}".rstrip("0") if published % 1 == 0 else ""
    last = (
        10.0 ** (len(f"{published:.10g}") - len(digits))
        if digits
        else 10.0 ** -len(f"{published}".split(".")[1])
    )
    return abs(value - published) <= 0.5 * last + 1e-9


def _energy(row: Published) -> tuple[Band | None, str | None, str | None]:
    """(kWh, how they were come by, why there are none)."""
    if row.hours is None:
        return None, None, "no device-hours"
    factor = row.hours / 1000.0 * (row.pue if row.pue is not None and row.scope_has_pue else 1.0)
    if row.watts is not None and not row.is_measured:
        return Band(*[row.watts * factor] * 3), "recomputed", None
    device = find(row.device)
    if device is None:
        return None, None, f"the catalogue has no {row.device or 'device'}"
    devices = None if row.devices is None else round(row.devices)
    watts = mean_draw(device, devices, kind_of_work(row.text))
    if watts is None:
        return None, None, f"the power of {device.name} is not known"
    return watts.times(factor), "predicted", None


def _carbon(row: Published, kwh: Band) -> float | None:
    if row.grams is None:
        return None
    building = 1.0 if row.pue is None or row.scope_has_pue else row.pue
    return kwh.value * building * row.grams / 1e6


def _summary(told: list[dict[str, Any]]) -> dict[str, Any]:
    """Errors are fractions. A published figure is rounded: to two digits it may be 5 % off by itself."""
    recomputed = [row for row in told if row["how"] == "recomputed"]
    measured = [row for row in told if row["how"] == "predicted" and row["kwh_error"] is not None]
    widths = [
        row["predicted_kwh"]["high"] / row["predicted_kwh"]["value"] - 1.0
        for row in told
        if row["how"] == "predicted"
    ]
    return {
        "rows": len(told) - sum(row["skipped_because"] is not None for row in told),
        "skipped": sum(row["skipped_because"] is not None for row in told),
        **_errors("recomputed", recomputed),
        **_errors("measured", measured),
        "measured_inside_band": _mean([float(row["inside_band"]) for row in measured]),
        "widest_band": max(widths, default=None),
        "tco2e_mape": _mean([row["tco2e_error"] for row in told]),
    }


def _errors(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    errors = [row["kwh_error"] for row in rows if row["kwh_error"] is not None]
    return {
        f"{name}_rows": len(errors),
        f"{name}_mape": _mean(errors),
        f"{name}_worst": max(errors, default=None),
    }


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _error(predicted: float | None, actual: float | None) -> float | None:
    return None if predicted is None or not actual else abs(predicted - actual) / actual


def _no_table(path: Path, found: str) -> RecipeError:
    return RecipeError(
        f"{path} is no table of published energy",
        found=found,
        wanted="a CSV file with columns model, gpu_type, gpu_hours, and gpu_count, avg_W_per_gpu, kWh, "
        "energy_scope, PUE, gCO2_per_kWh, tCO2e, basis where they are known",
        fix="check the path and the heading",
    )
