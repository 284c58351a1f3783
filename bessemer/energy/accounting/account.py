"""The account of a run: what each stage drew, and what that was in the building, in carbon and in money.

Read from the run directory alone. Three scopes, each within the next: what was metered (its parts, or the
whole node where something reads that), the node (around accelerators: facility.py), the facility
(PUE). Nothing is added around a CPU that no meter of the node covers: fans, disks and losses of its supply
are not known, and the account says so. What is unknown is None with the reason, never 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bessemer.energy.accounting.inherited import inherited
from bessemer.energy.accounting.ledger import StageLedger
from bessemer.energy.accounting.likeness import equivalents, published_models
from bessemer.energy.accounting.place import Place, place_of
from bessemer.energy.accounting.savings import saved_by_pauses
from bessemer.energy.accounting.stage_account import StageAccount, over, stage_account
from bessemer.energy.accounting.works import works
from bessemer.energy.metering.beside import DATA
from bessemer.energy.quantity import NOTHING, UNKNOWN, Quantity
from bessemer.energy.reading import NODE, worst
from bessemer.errors import RecipeError
from bessemer.formulas.layout import Layout
from bessemer.rundir import Row, begins_at, named, read_object, read_rows, stages

_ONCE = "prepared once, perhaps for several runs; this one trained on it first, and counts it"
_ELSEWHERE = "prepared before this run, whose total leaves it out"


def account(
    run: Path, *, region: str | None = None, pue: float | None = None, intensity: Path | None = None
) -> dict[str, Any]:
    """The document of `bessemer energy RUN`. region, pue: instead of the recipe's; intensity: hourly."""
    run = named(run).parent if (run / "metrics.jsonl").is_file() else run
    ledgers = {folder: _ledger(folder) for folder in stages(run)}
    if not ledgers:
        raise _no_run(run)
    place = place_of(run, region, pue, intensity)
    trained = [_stage(folder, ledger, place) for folder, ledger in ledgers.items()]
    everything = _in_order(trained, _works(run, list(ledgers), place))
    told = [stage for stage in everything if stage.counts]
    factor, whence = place.pue
    total = _total(told)
    kwh_of = {stage.name: stage.kwh_facility for stage in told}
    return {
        "run": str(run),
        "stages": {stage.name: stage.to_json() for stage in everything},
        "total": {name: quantity.to_json() for name, quantity in total.items()},
        "scope": {
            "metered": _metered(told, place),
            "node": _around(told, place),
            "facility": f"PUE {factor:g}, {whence}",
            "pue": factor,
            "region": place.region,
            "location": place.location,
            "hardware": place.hardware,
            "missing_hours": _missing_hours(list(ledgers.values()), place),
        },
        "pauses": saved_by_pauses(
            [(ledger, kwh_of[folder.name]) for folder, ledger in ledgers.items()], place.hourly
        ),
        "inherited": _inherited(list(ledgers)),
        "plan": _against_plan(run, told, ledgers),
        "equivalents": equivalents(total["kwh_facility"].value, total["kg_co2e"].value),
        "published": published_models(total["kwh_facility"].value),
    }


def relaid_after(rows: Sequence[Row], plan: Row) -> int:
    """The last of these steps that was made in another layout than the plan's; 0: none was."""
    if not rows:
        return 0
    planned = (plan.get("pretrain") or {}).get("layout")
    layout = rows[-1].get("layout") if planned is None else str(Layout.from_json(planned))
    return max((row["step"] for row in rows if row.get("layout", layout) != layout), default=0)


def _total(told: list[StageAccount]) -> dict[str, Quantity]:
    return {
        "energy_j": _sum(stage.energy for stage in told),
        "kwh_facility": _sum(stage.kwh_facility for stage in told),
        "kg_co2e": _sum(stage.carbon for stage in told),
        "usd": _sum(stage.usd for stage in told),
        "lost_j": _sum(stage.lost for stage in told),
        "restarting_j": _sum(stage.restarting for stage in told),
        "after_kills_j": _sum(stage.after_kills for stage in told),
        "waiting_for_data_j": _sum(UNKNOWN if stage.waiting is None else stage.waiting[1] for stage in told),
    }


def _inherited(folders: list[Path]) -> dict[str, list[Row]]:
    """By stage; those that began from nothing, or from this run's own stage, are left out."""
    found = {folder.name: inherited(folder) for folder in folders}
    return {name: origins for name, origins in found.items() if origins}


def _ledger(folder: Path) -> StageLedger:
    return StageLedger(read_rows(folder / "metrics.jsonl"), read_rows(folder / "events.jsonl"))


def _stage(folder: Path, ledger: StageLedger, place: Place) -> StageAccount:
    info = read_object(folder / "stage.json") or {}
    return stage_account(folder.name, ledger, info, place, place.devices_of(info))


def _works(run: Path, folders: list[Path], place: Place) -> dict[str, StageAccount]:
    """Preparing data, evaluation and export. Data is prepared without accelerators."""
    infos = [read_object(folder / "stage.json") or {} for folder in folders]
    data = [Path(info["data"]["folder"]) for info in infos if (info.get("data") or {}).get("folder")]
    found = {}
    for kind, work in works(run, list(dict.fromkeys(data))).items():
        devices = 0 if kind == DATA and not place.is_cpu else 1
        stage = stage_account(kind, work.ledger, {}, place, devices)
        note = _ONCE if kind == DATA and work.counts else _ELSEWHERE if kind == DATA else None
        # Neither attempts nor steps: time between two evaluations is nobody's wait.
        none: dict[str, Any] = {"restarting": NOTHING, "waiting": (0.0, NOTHING), "waiting_lost": NOTHING,
                                "between_attempts_s": None, "goodput": None}  # fmt: skip
        found[kind] = replace(stage, counts=work.counts, note=note, **none)
    return found


def _in_order(stages: list[StageAccount], works: dict[str, StageAccount]) -> list[StageAccount]:
    first = [works[DATA]] if DATA in works else []
    return [*first, *stages, *(stage for kind, stage in works.items() if kind != DATA)]


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
    """Share of the time in steps and pauses in which a meter of the whole node was read."""
    if not any(NODE in (stage.parts or {}) for stage in told):
        return 0.0
    hours, beside = (
        sum(each) for each in zip(*((s.metered_hours, s.hours_beside_node_meter) for s in told), strict=True)
    )
    return 1.0 - beside / hours if hours else 1.0


def _missing_hours(ledgers: Sequence[StageLedger], place: Place) -> list[str]:
    """In which training drew something, and whose intensity is not known."""
    spans = [span for ledger in ledgers for span in ledger.spans() or ()]
    return place.hourly.missing(spans) if place.hourly else []


def _against_plan(
    run: Path, told: list[StageAccount], ledgers: Mapping[Path, StageLedger]
) -> dict[str, Any] | None:
    """Pre-training's prediction for the steps done, beside what it drew, lost steps included. Of a fork for
    its own steps, without its origin's. None of a run in several layouts: its plan is of the last one."""
    plan = read_object(run / "plan.json") or {}
    stage = next((stage for stage in told if stage.name == "pretrain"), None)
    ledger = next((ledger for folder, ledger in ledgers.items() if folder.name == "pretrain"), None)
    steps = (plan.get("pretrain") or {}).get("steps")
    if stage is None or ledger is None or not ledger.rows or not steps or relaid_after(ledger.rows, plan):
        return None
    done = (max(row["step"] for row in ledger.rows) - begins_at(ledger.events)) / steps
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
        "ratio": over(actual.value, predicted.value),
        "inside_band": band.low <= actual.value <= band.high if known and band and actual.value else None,
    }


def _sum(quantities: Any) -> Quantity:
    """UNKNOWN with one of them unknown."""
    parts = list(quantities)
    whole = NOTHING
    for part in parts:
        whole = whole.plus(part)
    return replace(whole, basis=worst(*(part.basis for part in parts))) if parts else UNKNOWN


def _no_run(run: Path) -> RecipeError:
    return RecipeError(
        f"{run} is not a run",
        found="no stage with metrics.jsonl" if run.is_dir() else "no such folder",
        wanted="a run directory such as runs/demo, or `bessemer energy validate ROWS.csv`",
        fix="check the path, or begin a run with `bessemer run RECIPE`",
    )
