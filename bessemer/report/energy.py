"""What a run drew, and what that was in the building, in carbon and in money: the account, as pictures.

All of it is the document of energy/accounting/account.py, which `bessemer energy RUN` prints.
"""

from collections.abc import Callable, Iterator, Mapping
from html import escape
from typing import Any

from bessemer.energy.accounting.savings import pause_words
from bessemer.energy.reading import NODE
from bessemer.report.energy_picture import Bar, Part, energy_bars
from bessemer.report.html import Markup, Tile, heading, paragraph, table, tiles, verdict
from bessemer.report.record import RunRecord
from bessemer.units import J_PER_KWH, format_count, format_joules, format_kilograms, format_short, format_usd

Told = Mapping[str, Any]  # a figure of the document: value, low, high, basis
Words = Callable[[float, float], str]  # of a number, in the unit that a second one has
_COMPONENTS = {"accelerator": ("accelerators", "s1"), "cpu": ("CPU", "s2"), "memory": ("memory", "s3"),
               "other": ("rest of the machine", "s4")}  # fmt: skip
_PHASES = {
    "starting": ("starting", "s5"),
    "steps": ("steps that count", "s1"),
    "waiting": ("waiting for data", "s2"),
    "validation": ("validation", "s3"),
    "saving": ("saving", "s4"),
    "sampling": ("sampling answers", "s6"),
    "paused": ("paused", "other"),
    "lost": ("steps that were run again", "error"),
    "restarting": ("starting again", "warm"),
}


def energy(run: RunRecord) -> str:
    document = run.account
    return (
        tiles(list(_tiles(document)))
        + _by_component(document)
        + _by_phase(document)
        + _table(document["stages"])
        + _scope(document)
        + _against_plan(document["plan"])
        + _likeness(document)
    )


def _kwh_words(kwh: float, like: float | None = None) -> str:
    return format_joules(kwh * J_PER_KWH, None if like is None else like * J_PER_KWH)


def _tiles(document: dict[str, Any]) -> Iterator[Tile]:
    total, stages = document["total"], list(document["stages"].values())
    unread = "some of it could not be read"
    yield _tile("Energy, as metered", total["energy_j"], format_joules, unread)
    yield _tile("At the meter of the building", total["kwh_facility"], _kwh_words, unread)
    is_read = total["kwh_facility"]["value"] is not None
    carbon = next((row["carbon_from"] for row in stages if row["kg_co2e"] is None), "")
    yield _tile("Carbon, CO2 equivalents", total["kg_co2e"], format_kilograms, carbon if is_read else unread)
    price = next((row["usd_from"] for row in stages if row["usd"] is None), "")
    yield _tile("Money", total["usd"], format_usd, price if is_read else f"{unread}; {price}")


def _tile(label: str, told: Told, words: Words, why_not: str) -> Tile:
    value = told["value"]
    if value is None:
        return Tile(label, None, why_not)
    band = "" if told["low"] == told["high"] else f"{_ends(told, words)}, "
    return Tile(label, words(value, value), band + told["basis"])


def _by_component(document: dict[str, Any]) -> str:
    bars = []
    pue_basis = "assumed" if "assumed" in document["scope"]["facility"] else "modelled"
    for name, row in document["stages"].items():
        band = row["bands"]["kwh_facility"]
        if band["value"] is not None and row["counts"]:
            low, high = band["low"] * J_PER_KWH, band["high"] * J_PER_KWH
            bars.append(Bar(name, list(_components(row, pue_basis)), low, high))
    note = "Hatched: not measured. The thin line is the band of the sum."
    return energy_bars("Energy at the meter of the building, by component", bars, note=note)


def _components(row: Mapping[str, Any], pue_basis: str) -> Iterator[Part]:
    """What was metered by component, what the server drew around it, and the building."""
    metered, node = row["energy_j"], row["node_j"]["value"]
    parts = [
        Part(_COMPONENTS[name][0], band[0], _COMPONENTS[name][1], basis)
        for name, told in (row["parts_j"] or {}).items()
        if name != NODE
        for basis, band in told["by_basis"].items()
    ]
    told_apart = sum(part.joules for part in parts)
    # A meter of the whole machine may have failed for a while, or its parts have been assumed too high.
    if abs(told_apart - metered["value"]) > 0.01 * metered["value"] or any(p.joules < 0.0 for p in parts):
        parts = [Part("not told apart", metered["value"], "s1", metered["basis"])]
    yield from parts
    yield Part("server around the devices", node - metered["value"], "s5", "assumed")
    building = row["kwh_facility"] * J_PER_KWH - node
    yield Part("the building (PUE)", building, "other", pue_basis)


def _by_phase(document: dict[str, Any]) -> str:
    bars = []
    for name, row in document["stages"].items():
        metered = row["energy_j"]
        if metered["value"] is not None and (row["phases_j"] or row["lost_j"]["value"]):
            bars.append(Bar(name, list(_phases(row)), metered["low"], metered["high"]))
    note = "As metered: without the server around the devices and the building."
    return energy_bars("Metered energy, by what it went into", bars, note=note)


def _phases(row: Mapping[str, Any]) -> Iterator[Part]:
    """What was lost, and what was drawn in waiting and in starting again, is taken out of what it is in.

    What was lost has its own validations and saves, which are taken out of those phases. Waiting is that of
    steps that count: of the others it is in what was lost.
    """
    metered, waiting = row["energy_j"], row["waiting_for_data"] or {}
    waited = _joules(waiting.get("energy_j")) - _joules(waiting.get("lost_j"))
    joules = {name: told["value"] or 0.0 for name, told in (row["phases_j"] or {"steps": metered}).items()}
    lost = row["lost_phases_j"] or {"steps": row["lost_j"]}
    inside = [("lost", phase, _joules(told)) for phase, told in lost.items()]
    inside += [("waiting", "steps", waited), ("restarting", "starting", _joules(row["restarting_j"]))]
    for name, phase, part_j in inside:
        taken_j = min(part_j, joules.get(phase, 0.0))
        joules[name] = joules.get(name, 0.0) + taken_j
        joules[phase] = joules.get(phase, 0.0) - taken_j
    for name, (words, style) in _PHASES.items():
        yield Part(words, joules.get(name, 0.0), style, metered["basis"])


def _joules(told: Told | None) -> float:
    return ((told or {}).get("value")) or 0.0


def _table(stages: Mapping[str, Mapping[str, Any]]) -> str:
    headings = ["Stage", "metered", "basis", "at the building", "CO2e", "money", "J / token", "pJ / FLOP"]
    rows = []
    for name, row in stages.items():
        bands, flop = row["bands"], row["joules_per_flop"]
        rows.append(
            [
                _noted(name, row["note"]),
                _banded(row["energy_j"], format_joules),
                row["energy_j"]["basis"],
                _banded(bands["kwh_facility"], _kwh_words),
                _banded(bands["kg_co2e"], format_kilograms),
                _banded(bands["usd"], format_usd),
                "–" if row["tokens"] is None else _known(row["joules_per_token"], format_short),
                "–" if row["tokens"] is None else _known(flop, lambda each: format_short(each * 1e12)),
            ]
        )
    return table(headings, rows, numbers=(1, 3, 4, 5, 6, 7))


def _noted(name: str, note: str | None) -> str | Markup:
    return Markup(f"{escape(name)}<br><small>{escape(note)}</small>") if note else name


def _banded(told: Told, words: Words) -> Markup:
    if told["value"] is None:
        return Markup('<span class="absent">unknown</span>')
    value = escape(words(told["value"], told["value"]))
    if told["low"] == told["high"]:
        return Markup(value)
    return Markup(f"{value}<br><small>{escape(_ends(told, words))}</small>")


def _ends(told: Told, words: Words) -> str:
    return f"{words(told['low'], told['value'])} to {words(told['high'], told['value'])}"


def _known(value: float | None, words: Callable[[float], str]) -> str | Markup:
    return Markup('<span class="absent">unknown</span>') if value is None else words(value)


def _scope(document: dict[str, Any]) -> str:
    scope, stages = document["scope"], document["stages"].values()
    rows = [["Metered", scope["metered"]], ["Node", scope["node"]], ["Building", scope["facility"]]]
    rows += [["Carbon", words] for words in sorted({row["carbon_from"] for row in stages})]
    rows += [["Money", words] for words in sorted({row["usd_from"] for row in stages})]
    if document["pauses"] is not None:
        rows.append(["Pauses", pause_words(document["pauses"])])
    rows += [["Inherited", _origin(each)] for origins in document["inherited"].values() for each in origins]
    return table(["Counted", "as"], rows)


def _origin(origin: Mapping[str, Any]) -> str:
    joules = origin["energy_j"]["value"]
    until = "" if origin["step"] is None else f" until step {origin['step']:,}"
    took = "of unknown energy" if joules is None else f"which took {format_joules(joules)}"
    return f"{origin['from']}{until}, {took}: another run's, and in no sum"


def _against_plan(plan: dict[str, Any] | None) -> str:
    names = {"kwh_facility": ("Energy at the building", _kwh_words),
             "kg_co2e": ("Carbon", format_kilograms), "usd": ("Money", format_usd)}  # fmt: skip
    graded = [(*names[key], row) for key, row in (plan or {}).items() if key in names]
    rows = [
        [
            name,
            words(row["predicted"]["value"]),
            _span(row["predicted"], words),
            words(row["actual"]["value"]),
            f"{row['ratio']:.2f} ×",
            _verdict(row["inside_band"]),
        ]
        for name, words, row in graded
        if row["ratio"] is not None
    ]
    if plan is None or not rows:
        return ""
    done = plan["steps_done"]
    part = "all planned steps" if done == 1.0 else f"the {done:.0%} of the planned steps that were made"
    lead = paragraph(f"For {part}.", "note")
    headings = ["Pre-training", "planned", "band", "was", "was / planned", "verdict"]
    return heading("Against the plan") + lead + table(headings, rows, numbers=(1, 2, 3, 4))


def _span(told: Told, words: Words) -> str:
    return "no band" if told["low"] is None else _ends(told, words)


def _verdict(inside: bool | None) -> Markup:
    if inside is None:
        return Markup("–")
    return verdict("inside the band", tone="good") if inside else verdict("outside the band", tone="warm")


def _likeness(document: dict[str, Any]) -> str:
    """Everyday uses of as much, and published trainings."""
    uses = [Tile(row["what"], format_short(row["count"]), row["source"]) for row in document["equivalents"]]
    rows = [
        [
            row["model"],
            _kwh_words(row["kwh"]),
            "–" if row["tco2e"] is None else format_kilograms(1000.0 * row["tco2e"]),
            _known(row["times_this_run"], lambda times: f"{format_count(times)} ×"),
            f"{row['scope']}, {row['basis']}",
            row["source"],
        ]
        for row in document["published"]
    ]
    headings = ["Published training", "energy", "CO2e", "times this run", "scope and basis", "source"]
    published = heading("Published trainings") + table(headings, rows, numbers=(1, 2, 3))
    return (heading("As much energy and carbon as") + tiles(uses) if uses else "") + published
