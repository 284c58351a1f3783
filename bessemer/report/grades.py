"""Every prediction of a run, graded: predicted with its band, measured, the error, inside the band or not.

Pre-training is what the plan predicts. Quantities of the whole run (hours, energy, money, carbon) are
compared for the steps that were made. Energy, money and carbon are the account's: at the building, as the
plan has them, with steps that were lost and run again; so is goodput (energy/accounting/goodput.py).
A run that goes on in another layout has a new plan: that is compared with the steps made since, and what the
account has of the whole run with nothing.
error: predicted over measured, less 1: +0.1 is a prediction that was a tenth too high.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bessemer.energy.accounting.account import relaid_after
from bessemer.report.record import RunRecord, StageRecord, number
from bessemer.rundir import begins_at, time_in_steps_s

# Quantity of the plan: (what it is called, unit, whether it grows with the steps).
QUANTITIES = {
    "step_time_s": ("Step time", "s", False),
    "tokens_per_s": ("Throughput", "tokens/s", False),
    "tflops_per_device": ("Model FLOP/s of a device", "TFLOP/s", False),
    "mfu": ("MFU", "", False),
    "memory_gib": ("Memory", "GiB", False),
    "hours": ("Time in steps", "h", True),
    "device_hours": ("Device hours", "h", True),
    "kwh": ("Energy", "kWh", True),
    "usd": ("Money", "USD", True),
    "kg_co2e": ("Carbon", "kg CO2e", True),
    "goodput": ("Goodput", "", False),
}
_OF_THE_ACCOUNT = ("kwh", "usd", "kg_co2e", "goodput")


@dataclass(frozen=True)
class Grade:
    """None: not predicted, or not measured. inside: the band; None where it cannot be told."""

    quantity: str
    name: str
    unit: str
    predicted: float | None
    low: float | None
    high: float | None
    basis: str | None
    measured: float | None
    error: float | None
    inside: bool | None

    @property
    def beyond(self) -> float:
        """How far outside the band, as a share of its nearer end."""
        if self.inside is not False or self.measured is None or self.low is None or self.high is None:
            return 0.0
        end, far = (self.high, self.measured) if self.measured > self.high else (self.measured, self.low)
        return far / end - 1.0 if end else 1.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def grades(run: RunRecord) -> list[Grade]:
    """In the order of QUANTITIES; what was neither predicted nor measured is left out. None before the first
    step of what is planned."""
    stage = run.first_of_kind("pretrain")
    if stage is None or run.plan is None or steps_made(stage, run.plan) == 0.0:
        return []
    predicted: dict[str, Any] = run.plan.get("predicted") or {}
    if relaid_after(stage.rows, run.plan):
        predicted = {key: row for key, row in predicted.items() if key not in _OF_THE_ACCOUNT}
    drawn = run.account["stages"][stage.name]
    found, share = measured(stage, run.plan, drawn), steps_made(stage, run.plan)
    each = (_grade(key, predicted.get(key) or {}, found.get(key), share) for key in QUANTITIES)
    return [grade for grade in each if grade.predicted is not None or grade.measured is not None]


def steps_made(stage: StageRecord, plan: dict[str, Any]) -> float:
    """Share of the planned steps made in the plan's layout, of a fork by itself; 1 where the plan does not
    say how many."""
    steps = number((plan.get("pretrain") or {}).get("steps"))
    made = number(stage.last.get("step"))
    before = max(begins_at(stage.events), relaid_after(stage.rows, plan))
    return min(1.0, (made - before) / steps) if steps and made else 1.0


def measured(
    stage: StageRecord, plan: dict[str, Any], drawn: Mapping[str, Any] | None = None
) -> dict[str, float | None]:
    """What the rows say of the plan's layout, in its words and units. drawn: the stage's account."""
    drawn, since = drawn or {}, relaid_after(stage.rows, plan)
    memory, seconds = stage.largest("memory_bytes", since), time_in_steps_s(stage.rows, since)
    hours, pace = None if seconds is None else seconds / 3600.0, stage.middle("tokens_per_s", since)
    device_hours = _times(hours, _planned_ratio(plan, "device_hours", "hours"))
    return {
        "step_time_s": stage.middle("step_time_s", since),
        "tokens_per_s": pace,
        "tflops_per_device": _times(pace, _planned_ratio(plan, "tflops_per_device", "tokens_per_s")),
        "mfu": stage.middle("mfu", since),
        "memory_gib": None if memory is None else memory / 2**30,
        "hours": hours,
        "device_hours": device_hours,
        "kwh": drawn.get("kwh_facility"),
        "usd": drawn.get("usd"),
        "kg_co2e": drawn.get("kg_co2e"),
        "goodput": drawn.get("goodput"),
    }


def _grade(key: str, estimate: dict[str, Any], found: float | None, share: float) -> Grade:
    name, unit, grows = QUANTITIES[key]
    factor = share if grows else 1.0
    value, low, high = (_times(number(estimate.get(end)), factor) for end in ("value", "low", "high"))
    error = value / found - 1.0 if value is not None and found else None
    inside = None if low is None or high is None or found is None else low <= found <= high
    basis = estimate.get("basis") if value is not None else None
    return Grade(key, name, unit, value, low, high, basis, found, error, inside)


def _planned_ratio(plan: dict[str, Any], one: str, other: str) -> float | None:
    """Of two predicted quantities: devices, FLOPs of a token."""
    predicted = plan.get("predicted") or {}
    top, bottom = (number((predicted.get(key) or {}).get("value")) for key in (one, other))
    return top / bottom if top is not None and bottom else None


def _times(value: float | None, factor: float | None) -> float | None:
    return None if value is None or factor is None else value * factor
