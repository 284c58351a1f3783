"""The texts of `bessemer energy`: the account of a run, and the model against published trainings."""

from typing import Any

from bessemer.cli.columns import text_table
from bessemer.units import J_PER_KWH, format_seconds


def account(document: dict[str, Any]) -> str:
    headings = ["Stage", "metered", "basis", "facility", "CO2e", "cost", "J/token", "pJ/FLOP", "lost"]
    rows = [[name, *_stage(row)] for name, row in document["stages"].items()]
    blocks = [
        "\n".join(text_table(headings, rows)),
        "\n".join(_parts(document)),
        "\n".join(_scope(document)),
        "\n".join(_plan(document["plan"])),
        "\n".join(_likeness(document)),
    ]
    return "\n\n".join(block for block in blocks if block)


def _stage(row: dict[str, Any]) -> list[str]:
    bands, flop = row["bands"], row["joules_per_flop"]
    return [
        _banded(row["energy_j"], _energy),
        row["energy_j"]["basis"],
        _banded(bands["kwh_facility"], lambda kwh: _energy(kwh * J_PER_KWH)),
        _banded(bands["kg_co2e"], _mass),
        _banded(bands["usd"], lambda usd: f"${_short(usd)}"),
        _or_unknown(row["joules_per_token"], _short),
        _or_unknown(None if flop is None else flop * 1e12, _short),
        _or_unknown(row["lost_j"]["value"], lambda joules: _energy(joules) if joules else "none"),
    ]


def _parts(document: dict[str, Any]) -> list[str]:
    """Components of each stage, where the rows have them, and what no meter told."""
    lines = []
    for name, row in document["stages"].items():
        told = [
            f"{part} {_banded(values, _energy)} ({values['basis']})"
            for part, values in (row["parts_j"] or {}).items()
        ]
        lines += [f"{name}: {', '.join(told)}"] if told else []
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
    if scope["missing_hours"]:
        hours = scope["missing_hours"]
        lines.append(f"gaps      {len(hours)} hours are not in the hourly file, the first {hours[0]}")
    return lines


def _plan(plan: dict[str, Any] | None) -> list[str]:
    if plan is None:
        return []
    texts = {
        "kwh_facility": lambda kwh: _energy(kwh * J_PER_KWH),
        "kg_co2e": lambda kg: f"{_mass(kg)} CO2e",
        "usd": lambda usd: f"${_short(usd)}",
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
        f"as much as {_short(row['count'])} {row['what']} ({row['source']})"
        for row in document["equivalents"]
    ]
    rows = [
        [row["model"], _energy(row["kwh"] * J_PER_KWH), f"{row['scope']}, {row['basis']}", row["source"]]
        for row in document["published"]
    ]
    headings = ["Published trainings", "energy", "scope and basis", "source"]
    return [*lines, *([""] if lines else []), *text_table(headings, rows, left=4)]


def _banded(values: dict[str, Any], text: Any) -> str:
    if values["value"] is None:
        return "unknown"
    if values["low"] == values["high"]:
        return str(text(values["value"]))
    return f"{text(values['value'])} ({text(values['low'])} to {text(values['high'])})"


def _or_unknown(value: float | None, text: Any) -> str:
    return "unknown" if value is None else str(text(value))


def _energy(joules: float) -> str:
    for unit, scale in (("GWh", 3.6e12), ("MWh", 3.6e9), ("kWh", J_PER_KWH), ("Wh", 3.6e3), ("J", 1.0)):
        if abs(joules) >= scale:
            return f"{_short(joules / scale)} {unit}"
    return f"{_short(joules)} J"


def _mass(kg: float) -> str:
    for unit, scale in (("t", 1e3), ("kg", 1.0), ("g", 1e-3)):
        if kg >= scale:
            return f"{_short(kg / scale)} {unit}"
    return f"{_short(kg * 1e6)} mg"


def _short(value: float) -> str:
    """Three digits, without powers of ten where people would write none."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def validation(document: dict[str, Any]) -> str:
    rows = [
        [
            str(row["row"]),
            row["model"][:36],
            row["how"] or "skipped",
            _kwh(row["predicted_kwh"]["value"]),
            _kwh(row["actual_kwh"]),
            _percent(row["kwh_error"]),
            _percent(row["tco2e_error"]),
        ]
        for row in document["rows"]
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
    skipped = [
        f"Row {row['row']} skipped: {row['skipped_because']}" for row in document["rows"] if not row["how"]
    ]
    return "\n".join([*text_table(headings, rows, left=3), "", *lines, *skipped])


def _kwh(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
