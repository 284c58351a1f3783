"""What one stage drew, and what that was in the building, in carbon and in money: a line of the account.

What is metered (ledger.py), around it the node where training has accelerators, around that the
facility; carbon by region or by the hour; money by prices. What is unknown is UNKNOWN, with the reason.
"""

from dataclasses import dataclass
from typing import Any

from bessemer.energy.accounting.facility import around_device, kg_per_kwh, prices, rest_of_node_j
from bessemer.energy.accounting.goodput import goodput
from bessemer.energy.accounting.ledger import StageLedger
from bessemer.energy.accounting.place import Place
from bessemer.energy.quantity import NOTHING, UNKNOWN, Quantity, exactly
from bessemer.formulas.flops import train_flops_per_token
from bessemer.formulas.shape import ModelShape
from bessemer.rundir import Row
from bessemer.units import J_PER_KWH

_NO_REGION = 'no grid region is named: set energy.region, or add --region DEU; "WLD" is the world\'s mean'


@dataclass(frozen=True)
class AtFacility:
    """What a stage took: of the building, the grid and the bill."""

    hours: float  # that its devices were held
    node: Quantity  # [J]
    kwh: Quantity
    carbon: Quantity  # [kg CO2e]
    carbon_from: str
    usd: Quantity
    usd_from: str


@dataclass(frozen=True)
class StageAccount:
    name: str
    energy: Quantity  # metered [J]
    parts: dict[str, Any] | None
    node: Quantity  # [J]
    metered_hours: float  # in steps and in pauses
    hours_beside_node_meter: float  # of these: in which no meter read the whole node
    kwh_facility: Quantity
    carbon: Quantity  # [kg CO2e]
    carbon_from: str
    usd: Quantity
    usd_from: str
    lost: Quantity  # in steps that were run again [J]
    lost_phases: dict[str, Quantity] | None  # of it, by what it was spent on [J]; None: the rows do not tell
    after_kills: Quantity  # likely, of attempts that were killed, after their last row; in no sum [J]
    restarting: Quantity  # of attempts after the first, until their first step [J]
    waiting: tuple[float, Quantity] | None  # for data [s, J]; None: the rows do not tell
    waiting_lost: Quantity  # of it, what is in `lost` too [J]
    phases: dict[str, Quantity] | None  # by what it was spent on [J]
    phases_s: dict[str, float] | None
    tokens: float | None
    flops: float | None  # useful: model FLOPs of the tokens trained on
    hours: float
    goodput: float | None  # goodput.py
    between_attempts_s: float | None
    gaps: int
    gap_s: float
    counts: bool = True  # in the total
    note: str | None = None

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
            "metered_hours": self.metered_hours,
            "hours_beside_node_meter": self.hours_beside_node_meter,
            "lost_j": self.lost.to_json(),
            "lost_phases_j": _each(self.lost_phases),
            "restarting_j": self.restarting.to_json(),
            "after_kills_j": self.after_kills.to_json(),
            "waiting_for_data": _waiting(self.waiting, self.waiting_lost),
            "phases_j": _each(self.phases),
            "phases_s": self.phases_s,
            "joules_per_token": over(self.energy.value, self.tokens),
            "joules_per_flop": over(self.energy.value, self.flops),
            "tokens": self.tokens,
            "hours": self.hours,
            "goodput": self.goodput,
            "between_attempts_s": self.between_attempts_s,
            "gaps": self.gaps,
            "gap_s": self.gap_s,
            "counts": self.counts,
            "note": self.note,
        }


def stage_account(name: str, ledger: StageLedger, info: Row, place: Place, devices: int) -> StageAccount:
    """info: its stage.json, {} of other work. devices: that it had."""
    told = at_facility(ledger, place, devices)
    return StageAccount(
        name=name,
        energy=ledger.energy,
        parts=ledger.parts,
        node=told.node,
        metered_hours=ledger.metered_hours,
        hours_beside_node_meter=ledger.beside_node_meter[0],
        kwh_facility=told.kwh,
        carbon=told.carbon,
        carbon_from=told.carbon_from,
        usd=told.usd,
        usd_from=told.usd_from,
        lost=ledger.lost,
        lost_phases=ledger.lost_phases,
        restarting=ledger.restarting,
        after_kills=ledger.after_kills,
        waiting=ledger.waiting,
        waiting_lost=ledger.waiting_lost,
        phases=ledger.phases,
        phases_s=ledger.phases_s,
        tokens=ledger.tokens,
        flops=_flops(info, ledger.tokens),
        hours=ledger.hours,
        goodput=goodput(ledger),
        between_attempts_s=ledger.between_attempts_s,
        gaps=int(ledger.newest.get("energy_gaps") or 0),
        gap_s=float(ledger.newest.get("energy_gap_s") or 0.0),
    )


def at_facility(ledger: StageLedger, place: Place, devices: int) -> AtFacility:
    """devices: of the stage."""
    hours, bill = ledger.held_hours, prices(place.recipe, place.listed)
    node = _node(ledger, place, devices)
    kwh = node.times(place.pue[0] / J_PER_KWH)
    carbon, carbon_from = _carbon(kwh, ledger, place)
    usd = bill.usd(exactly(hours * devices), kwh)
    return AtFacility(hours, node, kwh, carbon, carbon_from, usd, bill.whence)


def _node(ledger: StageLedger, place: Place, devices: int) -> Quantity:
    hours, read_j = ledger.beside_node_meter
    if place.is_cpu or not devices or hours <= 0.0:
        return ledger.energy
    around_w = around_device(place.recipe, place.listed, devices)
    return ledger.energy.plus(rest_of_node_j(around_w, hours * devices, read_j))


def _carbon(kwh: Quantity, ledger: StageLedger, place: Place) -> tuple[Quantity, str]:
    """By the hour where a file or the run says so; what that does not cover by the region's yearly mean."""
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
        return UNKNOWN, f"the hourly intensity covers {covered:.0%} of the energy, and {_NO_REGION}"
    by_hour = kwh.times(covered).multiplied(hourly) if covered else NOTHING
    return by_hour.plus(rest), f"hourly intensity of {covered:.0%}, else the yearly mean of {place.region}"


def _flops(stage: Row, tokens: float | None) -> float | None:
    """None: not known."""
    if not isinstance(stage.get("shape"), dict) or not stage.get("context") or tokens is None:
        return None
    shape = ModelShape.from_json(stage["shape"])
    return train_flops_per_token(shape, stage["context"]) * tokens


def _waiting(waiting: tuple[float, Quantity] | None, lost: Quantity) -> Row | None:
    if waiting is None:
        return None
    return {"seconds": waiting[0], "energy_j": waiting[1].to_json(), "lost_j": lost.to_json()}


def _each(quantities: dict[str, Quantity] | None) -> Row | None:
    return None if quantities is None else {name: told.to_json() for name, told in quantities.items()}


def over(value: float | None, by: float | None) -> float | None:
    return value / by if value is not None and by else None
