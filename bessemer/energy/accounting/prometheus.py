"""The account as Prometheus text, a file for node_exporter's textfile collector.

Base units (joules, seconds, grams), `_total` on what only grows, labels that never change for a series: the
basis of a sum can become weaker, so it is a sample of its own. Components have a family of their own, as
"node" holds the others. What is unknown has no sample: 0 would be a claim. The collector reads whole files
named *.prom, so it is written beside and renamed.
Source: Prometheus, "Metric and label naming" and "Exposition formats".
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bessemer.durable import write_text
from bessemer.errors import RecipeError
from bessemer.units import J_PER_KWH

Sample = tuple[Mapping[str, str], float | None]
_UNKNOWN: Mapping[str, Any] = {"seconds": None, "energy_j": {"value": None}}


def write_prometheus(path: Path, document: Mapping[str, Any]) -> None:
    """document: of `account`. RecipeError for a name that the collector would pass over."""
    if path.suffix != ".prom":
        raise RecipeError(
            "node_exporter would not read this file",
            found=str(path),
            wanted="a name that ends in .prom, in the folder of its textfile collector",
            fix=f"name it {path.with_suffix('.prom').name}",
        )
    write_text(path, prometheus_text(document))


def prometheus_text(document: Mapping[str, Any]) -> str:
    run = Path(document["run"]).resolve().name
    rows_of_stages = document["stages"].items()
    stages = [({"run": run, "stage": name}, row) for name, row in rows_of_stages if row["counts"]]
    lines: list[str] = []
    for family, kind, text, samples in _families(stages):
        rows = [f"{family}{_labels(labels)} {value!r}" for labels, value in samples if value is not None]
        if rows:
            lines += [f"# HELP {family} {text}", f"# TYPE {family} {kind}", *rows]
    return "\n".join(lines) + "\n" if lines else ""


Stage = tuple[dict[str, str], Mapping[str, Any]]
Family = tuple[str, str, str, Iterable[Sample]]  # name, type, help, samples


def _families(stages: list[Stage]) -> Iterator[Family]:
    yield from _metered(stages)
    yield from _by_phase(stages)
    for family, text, values in _scalars(stages):
        yield family, "counter", text, values


def _metered(stages: list[Stage]) -> Iterator[Family]:
    """Energy, how well it is known, and what drew it."""
    yield (
        "bessemer_energy_joules_total",
        "counter",
        "Energy that was metered.",
        [(at, row["energy_j"]["value"]) for at, row in stages],
    )
    yield (
        "bessemer_energy_basis_info",
        "gauge",
        "How bessemer_energy_joules_total was come by: measured, modelled or assumed.",
        [({**at, "basis": row["energy_j"]["basis"]}, 1.0) for at, row in stages],
    )
    for end in ("low", "high"):
        yield (
            f"bessemer_energy_{end}_joules",
            "gauge",
            f"The {end} end of the band of bessemer_energy_joules_total.",
            [(at, row["energy_j"][end]) for at, row in stages],
        )
    yield (
        "bessemer_component_energy_joules_total",
        "counter",
        "Energy of a component, by how it was come by; node is the whole, other what the rest leaves of it.",
        [sample for at, row in stages for sample in _components(at, row["parts_j"] or {})],
    )


def _by_phase(stages: list[Stage]) -> Iterator[Family]:
    yield (
        "bessemer_phase_energy_joules_total",
        "counter",
        "Energy by what it was spent on; the phases of a stage add up to what was metered of it.",
        [
            ({**at, "phase": phase}, told["value"])
            for at, row in stages
            for phase, told in (row["phases_j"] or {}).items()
        ],
    )
    yield (
        "bessemer_phase_seconds_total",
        "counter",
        "Time by what it was spent on.",
        [
            ({**at, "phase": phase}, seconds)
            for at, row in stages
            for phase, seconds in (row["phases_s"] or {}).items()
        ],
    )


def _components(at: Mapping[str, str], parts: Mapping[str, Any]) -> Iterator[Sample]:
    for component, told in parts.items():
        for basis, band in told["by_basis"].items():
            known = told["value"] is not None and band[0] >= 0.0
            yield {**at, "component": component, "basis": basis}, band[0] if known else None


def _scalars(stages: list[Stage]) -> Iterator[tuple[str, str, list[Sample]]]:
    def each(value: Any, factor: float = 1.0) -> list[Sample]:
        found = [(at, value(row)) for at, row in stages]
        return [(at, None if one is None else one * factor) for at, one in found]

    yield (
        "bessemer_facility_energy_joules_total",
        "Energy at the meter of the building.",
        each(lambda row: row["kwh_facility"], J_PER_KWH),
    )
    yield (
        "bessemer_co2e_grams_total",
        "Greenhouse gases of the facility's energy.",
        each(lambda row: row["kg_co2e"], 1000.0),
    )
    yield "bessemer_cost_usd_total", "Money, in US dollars.", each(lambda row: row["usd"])
    yield (
        "bessemer_lost_energy_joules_total",
        "Energy of steps that were run again.",
        each(lambda row: row["lost_j"]["value"]),
    )
    yield (
        "bessemer_restarting_energy_joules_total",
        "Energy of attempts after the first, until their first step.",
        each(lambda row: row["restarting_j"]["value"]),
    )
    yield (
        "bessemer_waiting_for_data_energy_joules_total",
        "Energy of steps while they waited for data; in the phase of steps too.",
        each(lambda row: (row["waiting_for_data"] or _UNKNOWN)["energy_j"]["value"]),
    )
    yield (
        "bessemer_waiting_for_data_seconds_total",
        "Time that steps waited for data.",
        each(lambda row: (row["waiting_for_data"] or _UNKNOWN)["seconds"]),
    )
    yield (
        "bessemer_energy_gap_seconds_total",
        "Time in which a meter did not answer.",
        each(lambda row: row["gap_s"]),
    )
    yield "bessemer_trained_tokens_total", "Tokens, each step once.", each(lambda row: row["tokens"])
    yield "bessemer_step_seconds_total", "Time in steps.", each(lambda row: row["hours"], 3600.0)


def _labels(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items()) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
