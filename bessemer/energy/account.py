"""The account of a run: what each stage drew, and what that was in the building, in carbon and in money.

Read from the run directory alone. Three scopes, each within the next: what was metered (its parts, or the
whole node where something reads that), the node (around accelerators: energy/facility.py), the facility
(PUE). Nothing is added around a CPU that no meter of the node covers: fans, disks and losses of its supply
are not known, and the account says so. What is unknown is None with the reason, never 0.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bessemer.energy.facility import around_device, kg_per_kwh, rest_of_node_j, usd
from bessemer.energy.ledger import StageLedger
from bessemer.energy.likeness import equivalents, published_models
from bessemer.energy.place import Place, place_of
from bessemer.energy.quantity import NOTHING, UNKNOWN, Quantity
from bessemer.energy.reading import NODE, worst
from bessemer.errors import RecipeError
from bessemer.formulas.flops import train_flops_per_token
from bessemer.formulas.shape import ModelShape
from bessemer.hardware import find
from bessemer.rundir import Row, named, read_object, read_rows, stages
from bessemer.units import J_PER_KWH

_NO_REGION = 'no grid region is named: set energy.region, or add --region DEU; "WLD" is the world\'s mean'


@dataclass(frozen=True)
class StageAccount:
    name: str
    energy: Quantity  # metered [J]
    parts: dict[str, Any] | None
    node: Quantity  # [J]
    hours_beside_node_meter: float  # in which no meter read the whole node
    kwh_facility: Quantity
    carbon: Quantity  # [kg CO2e]
    carbon_from: str
    usd: Quantity
    usd_from: str
    lost: Quantity  # in steps that were run again [J]
    tokens: float | None
    flops: float | None  # useful: model FLOPs of the tokens trained on
    hours: float
    between_attempts_s: float | None
    gaps: int
    gap_s: float

    def to_json(self) -> dict[str, Any]:
        return {
            "energy_j": self.energy.to_json(),
            "kwh_facility": self.kwh_facility.value,
            "kg_co2e": self.carbon.value,
            "usd": self.usd.value,
            "bands": {
                "kwh_facility": self.kwh_facility.to_json(),
                "kg_co2e": self.carbon.to_json(),
                "usd": self.usd.to_json(),
            },
            "carbon_from": self.carbon_from,
            "usd_from": self.usd_from,
            "parts_j": self.parts,
            "node_j": self.node.to_json(),
            "hours_beside_node_meter": self.hours_beside_node_meter,
            "lost_j": self.lost.to_json(),
            "joules_per_token": _over(self.energy.value, self.tokens),
            "joules_per_flop": _over(self.energy.value, self.flops),
            "tokens": self.tokens,
            "hours": self.hours,
            "between_attempts_s": self.between_attempts_s,
            "gaps": self.gaps,
            "gap_s": self.gap_s,
        }


def account(
    run: Path, *, region: str | None = None, pue: float | None = None, intensity: Path | None = None
) -> dict[str, Any]:
    """The document of `bessemer energy RUN`. region, pue: instead of the recipe's; intensity: hourly."""
    run = named(run).parent if (run / "metrics.jsonl").is_file() else run
    folders = stages(run)
    if not folders:
        raise _no_run(run)
    place = place_of(run, region, pue, intensity)
    told = [_stage(folder, place) for folder in folders]
    factor, whence = place.pue
    carbon = _sum(stage.carbon for stage in told)
    kwh = _sum(stage.kwh_facility for stage in told)
    return {
        "run": str(run),
        "stages": {stage.name: stage.to_json() for stage in told},
        "total": {
            "energy_j": _sum(stage.energy for stage in told).to_json(),
            "kwh_facility": kwh.to_json(),
            "kg_co2e": carbon.to_json(),
            "usd": _sum(stage.usd for stage in told).to_json(),
            "lost_j": _sum(stage.lost for stage in told).to_json(),
        },
        "scope": {
            "metered": _metered(told, place),
            "node": _around(told, place),
            "facility": f"PUE {factor:g}, {whence}",
            "pue": factor,
            "region": place.region,
            "location": place.location,
            "hardware": place.hardware,
            "missing_hours": place.hourly.missing if place.hourly else [],
        },
        "plan": _against_plan(run, told),
        "equivalents": equivalents(kwh.value, carbon.value),
        "published": published_models(kwh.value),
    }


def _stage(folder: Path, place: Place) -> StageAccount:
    ledger = StageLedger(read_rows(folder / "metrics.jsonl"), read_rows(folder / "events.jsonl"))
    info = read_object(folder / "stage.json") or {}
    devices = place.devices_of(info)
    device_hours = ledger.hours * devices
    node = _node(ledger, place, devices)
    kwh = node.times(place.pue[0] / J_PER_KWH)
    carbon, carbon_from = _carbon(kwh, ledger, place)
    money, money_from = usd(place.recipe, place.device, device_hours, kwh)
    return StageAccount(
        name=folder.name,
        energy=ledger.energy,
        parts=ledger.parts,
        node=node,
        hours_beside_node_meter=ledger.beside_node_meter[0],
        kwh_facility=kwh,
        carbon=carbon,
        carbon_from=carbon_from,
        usd=money,
        usd_from=money_from,
        lost=ledger.lost,
        tokens=ledger.tokens,
        flops=_flops(info, ledger.tokens),
        hours=ledger.hours,
        between_attempts_s=ledger.between_attempts_s,
        gaps=int(ledger.last.get("energy_gaps") or 0),
        gap_s=float(ledger.last.get("energy_gap_s") or 0.0),
    )


def _node(ledger: StageLedger, place: Place, devices: int) -> Quantity:
    hours, read_j = ledger.beside_node_meter
    if place.is_cpu or hours <= 0.0:
        return ledger.energy
    device = find(place.device) if place.device else None
    around_w = around_device(place.recipe, device, devices)
    return ledger.energy.plus(rest_of_node_j(around_w, hours * devices, read_j))


def _carbon(kwh: Quantity, ledger: StageLedger, place: Place) -> tuple[Quantity, str]:
    """By the hour where a file says so; what it does not cover by the region's yearly mean."""
    yearly = kg_per_kwh(place.region)
    if place.hourly is None:
        whence = f"yearly mean of {place.region}" if place.region else _NO_REGION
        return kwh.multiplied(yearly), whence
    spans = ledger.spans()
    if spans is None:
        return UNKNOWN, "the rows do not tell when their energy was drawn"
    hourly, covered = place.hourly.mean(spans)
    if covered > 1.0 - 1e-9:
        return kwh.multiplied(hourly), "hourly intensity"
    rest = kwh.times(1.0 - covered).multiplied(yearly)
    if rest.value is None:
        return UNKNOWN, f"the hourly file covers {covered:.0%} of the energy, and {_NO_REGION}"
    by_hour = kwh.times(covered).multiplied(hourly) if covered else NOTHING
    return by_hour.plus(rest), f"hourly intensity of {covered:.0%}, else the yearly mean of {place.region}"


def _flops(stage: Row, tokens: float | None) -> float | None:
    """None: not known."""
    if not isinstance(stage.get("shape"), dict) or not stage.get("context") or tokens is None:
        return None
    shape = ModelShape.from_json(stage["shape"])
    return train_flops_per_token(shape, stage["context"]) * tokens


def _metered(told: list[StageAccount], place: Place) -> str:
    parts = "CPU and its memory" if place.is_cpu else "accelerators, CPU and its memory"
    share = _node_metered(told)
    if share <= 0.0:
        return parts
    part = "" if share >= 1.0 else f" for {share:.0%} of the time, else {parts}"
    return f"the whole machine, by its own meter{part}: other programs on it are included"


def _around(told: list[StageAccount], place: Place) -> str:
    share = _node_metered(told)
    if share >= 1.0:
        return "as metered"
    beside = "" if share <= 0.0 else "as metered where the machine's meter was read, else "
    if place.is_cpu:
        return f"{beside}nothing is added: fans, disks, network and losses of the supply are not known"
    return f"{beside}with what servers draw around accelerators, assumed"


def _node_metered(told: list[StageAccount]) -> float:
    """Share of the time in steps in which a meter of the whole node was read."""
    if not any(NODE in (stage.parts or {}) for stage in told):
        return 0.0
    hours, beside = (
        sum(each) for each in zip(*((s.hours, s.hours_beside_node_meter) for s in told), strict=True)
    )
    return 1.0 - beside / hours if hours else 1.0


def _against_plan(run: Path, told: list[StageAccount]) -> dict[str, Any] | None:
    """Pre-training's prediction for the steps done, beside what it drew, lost steps included."""
    plan = read_object(run / "plan.json") or {}
    stage = next((stage for stage in told if stage.name == "pretrain"), None)
    rows = read_rows(run / "pretrain" / "metrics.jsonl") if stage is not None else []
    steps = (plan.get("pretrain") or {}).get("steps")
    if stage is None or not rows or not steps:
        return None
    done = max(row["step"] for row in rows) / steps
    return {
        "steps_done": done,
        "kwh_facility": _graded(plan, "kwh", done, stage.kwh_facility),
        "kg_co2e": _graded(plan, "kg_co2e", done, stage.carbon),
        "usd": _graded(plan, "usd", done, stage.usd),
    }


def _graded(plan: Row, name: str, done: float, actual: Quantity) -> dict[str, Any]:
    row = (plan.get("predicted") or {}).get(name) or {}
    predicted = Quantity(
        row.get("value"), row.get("low"), row.get("high"), row.get("basis", "assumed")
    ).times(done)
    band = predicted.band
    known = band is not None and actual.value is not None
    return {
        "predicted": predicted.to_json(),
        "actual": actual.to_json(),
        "ratio": _over(actual.value, predicted.value),
        "inside_band": band.low <= actual.value <= band.high if known and band and actual.value else None,
    }


def _sum(quantities: Any) -> Quantity:
    """UNKNOWN with one of them unknown."""
    parts = list(quantities)
    whole = NOTHING
    for part in parts:
        whole = whole.plus(part)
    return replace(whole, basis=worst(*(part.basis for part in parts))) if parts else UNKNOWN


def _over(value: float | None, by: float | None) -> float | None:
    return value / by if value is not None and by else None


def _no_run(run: Path) -> RecipeError:
    return RecipeError(
        f"{run} is not a run",
        found="no stage with metrics.jsonl" if run.is_dir() else "no such folder",
        wanted="a run directory such as runs/demo, or `bessemer energy validate ROWS.csv`",
        fix="check the path, or begin a run with `bessemer run RECIPE`",
    )
