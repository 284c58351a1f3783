"""The texts of `bessemer energy`: the account of a run, and the model against published trainings."""

from collections.abc import Iterator
from typing import Any

from bessemer.cli.columns import skipped_lines, text_table
from bessemer.energy.accounting.savings import pause_words
from bessemer.energy.quantity import banded
from bessemer.units import (
    J_PER_KWH,
    format_joules,
    format_kilograms,
    format_seconds,
    format_short,
    format_usd,
)

_BESIDE_EACH_OTHER = 2  # stages: 110 columns hold no more, with their bands


def account(document: dict[str, Any]) -> str:
    stages = list(document["stages"].items())
    beside = [stages[at : at + _BESIDE_EACH_OTHER] for at in range(0, len(stages), _BESIDE_EACH_OTHER)]
    blocks = [
        *(_stages(dict(some)) for some in beside),
        _all(document) if len(stages) > 1 else "",
        "\n".join(_gaps(document)),
        "\n".join(_scope(document)),
        "\n".join(_plan(document["plan"])),
        "\n".join(_likeness(document)),
    ]
    return "\n\n".join(block for block in blocks if block)


def _stages(stages: dict[str, Any]) -> str:
    """A column each; a line that none of them has anything for is left out."""
    columns = [dict(_lines(row)) for row in stages.values()]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [[name, *(column.get(name, "") for column in columns)] for name in names]
    return "\n".join(text_table(["Stage", *stages], rows, left=1 + len(stages)))


def _lines(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    bands, flop = row["bands"], row["joules_per_flop"]
    yield "metered", banded(row["energy_j"], format_joules)
    yield "basis", row["energy_j"]["basis"]
    yield "facility", banded(bands["kwh_facility"], _of_kwh)
    yield "CO2e", banded(bands["kg_co2e"], format_kilograms)
    yield "cost", banded(bands["usd"], format_usd)
    if row["tokens"] is not None:
        yield "J/token", _or_unknown(row["joules_per_token"], format_short)
        yield "pJ/FLOP", _or_unknown(flop, lambda each: format_short(each * 1e12))
    for part, told in (row["parts_j"] or {}).items():
        yield f"  {part}", f"{_or_unknown(told['value'], format_joules)}, {told['basis']}"
    for phase, told in (row["phases_j"] or {}).items():
        yield f"  in {phase}", _or_unknown(told["value"], format_joules)
    waiting = row["waiting_for_data"]
    if waiting is not None and row["tokens"] is not None:
        joules, waited = (
            _or_unknown(waiting["energy_j"]["value"], _or_none),
            format_seconds(waiting["seconds"]),
        )
        yield "waiting", f"{joules}, {waited} for data"
    if row["tokens"] is not None:
        yield "lost", _or_unknown(row["lost_j"]["value"], _or_none)
        yield "restarts", _or_unknown(row["restarting_j"]["value"], _or_none)
        yield "goodput", _or_unknown(row["goodput"], lambda share: f"{share:.1%}")
        if row["after_kills_j"]["value"] != 0.0:
            yield "kills (est.)", f"{banded(row['after_kills_j'], format_joules)}, in no sum"


def _all(document: dict[str, Any]) -> str:
    total = document["total"]
    metered, facility = banded(total["energy_j"], format_joules), banded(total["kwh_facility"], _of_kwh)
    carbon, cost = banded(total["kg_co2e"], format_kilograms), banded(total["usd"], format_usd)
    return f"all stages  metered {metered}, facility {facility}\n            CO2e {carbon}, cost {cost}"


def _gaps(document: dict[str, Any]) -> list[str]:
    """What no meter told, and what is not this run's."""
    lines = []
    for name, row in document["stages"].items():
        lines += [f"{name}: {row['note']}"] if row["note"] else []
        if row["between_attempts_s"]:
            waited = format_seconds(row["between_attempts_s"])
            lines.append(f"{name}: {waited} between its attempts, in which nothing was metered")
        if row["gaps"]:
            lines.append(
                f"{name}: a meter did not answer {row['gaps']} times, for {row['gap_s']:.0f} s in all"
            )
    return lines


def _scope(document: dict[str, Any]) -> list[str]:
    scope, stages = document["scope"], document["stages"].values()
    lines = [
        f"metered   {scope['metered']}",
        f"node      {scope['node']}",
        f"facility  {scope['facility']}",
        *sorted({f"carbon    {row['carbon_from']}" for row in stages}),
        *sorted({f"cost      {row['usd_from']}" for row in stages}),
    ]
    if document["pauses"] is not None:
        lines.append(f"pauses    {pause_words(document['pauses'])}")
    lines += [
        f"inherited {_origin(origin)}, in no sum"
        for origins in document["inherited"].values()
        for origin in origins
    ]
    if scope["missing_hours"]:
        hours = scope["missing_hours"]
        lines.append(f"gaps      {len(hours)} hours have no hourly figure, the first {hours[0]}")
    return lines


def _origin(origin: dict[str, Any]) -> str:
    """What another run paid for."""
    joules = _or_unknown(origin["energy_j"]["value"], format_joules)
    until = "" if origin["step"] is None else f" until step {origin['step']:,}"
    return f"{origin['from']}{until}, which took {joules}"


def _plan(plan: dict[str, Any] | None) -> list[str]:
    if plan is None:
        return []
    texts = {
        "kwh_facility": _of_kwh,
        "kg_co2e": lambda kg: f"{format_kilograms(kg)} CO2e",
        "usd": format_usd,
    }
    lines = []
    for name, text in texts.items():
        row = plan[name]
        if row["ratio"] is not None:
            inside = "inside" if row["inside_band"] else "outside"
            predicted, times = text(row["predicted"]["value"]), f"{row['ratio']:.2f} times that"
            lines.append(f"plan      {predicted} for the steps done; it was {times}, {inside} the band")
    return lines


def _likeness(document: dict[str, Any]) -> list[str]:
    lines = [
        f"as much as {format_short(row['count'])} {row['what']} ({row['source']})"
        for row in document["equivalents"]
    ]
    rows = [
        [row["model"], _of_kwh(row["kwh"]), f"{row['scope']}, {row['basis']}", row["source"]]
        for row in document["published"]
    ]
    headings = ["Published trainings", "energy", "scope and basis", "source"]
    return [*lines, *([""] if lines else []), *text_table(headings, rows, left=4)]


def _of_kwh(kwh: float, like: float | None = None) -> str:
    return format_joules(kwh * J_PER_KWH, None if like is None else like * J_PER_KWH)


def _or_none(joules: float) -> str:
    return format_joules(joules) if joules else "none"


def _or_unknown(value: float | None, text: Any) -> str:
    return "unknown" if value is None else str(text(value))


def validation(document: dict[str, Any]) -> str:
    rows = [
        [
            str(row["row"]),
            row["model"][:36],
            row["how"],
            _kwh(row["predicted_kwh"]["value"]),
            _kwh(row["actual_kwh"]),
            _percent(row["kwh_error"]),
            _percent(row["tco2e_error"]),
        ]
        for row in document["rows"]
        if row["how"]
    ]
    headings = ["Row", "model", "", "kWh here", "published", "off", "carbon off"]
    summary = document["summary"]
    lines = [
        f"Recomputed as published: {summary['recomputed_rows']} rows, {_percent(summary['recomputed_mape'])} "
        f"off on average, {_percent(summary['recomputed_worst'])} at most.",
        f"Measured, predicted from device, hours, count and PUE: {summary['measured_rows']} rows, "
        f"{_percent(summary['measured_mape'])} off on average, {_percent(summary['measured_inside_band'])} "
        f"inside the band of {_percent(summary['widest_band'])}.",
    ]
    skipped = skipped_lines(row["skipped_because"] for row in document["rows"])
    table = [*text_table(headings, rows, left=3), ""] if rows else []
    return "\n".join([*table, *lines, *skipped])


def _kwh(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
