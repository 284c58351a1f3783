"""`bessemer energy validate ROWS.csv`: the energy model against published trainings."""

import argparse
from pathlib import Path
from typing import Any

from bessemer.cli.columns import text_table
from bessemer.cli.unbuilt import refusal
from bessemer.errors import RecipeError

HELP = "check the energy model on published trainings: energy validate ROWS.csv"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", metavar="validate", help="what to do")
    parser.add_argument("rows", nargs="?", metavar="ROWS.csv", help="published trainings, a row each")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from bessemer.energy.published import read_published, validate

    if args.what != "validate":
        raise refusal("energy RUN")
    if args.rows is None:
        raise RecipeError(
            "no file of published trainings named",
            found="energy validate",
            wanted="`bessemer energy validate ROWS.csv`",
            fix="name a CSV file with columns such as model, gpu_type, gpu_hours, PUE, kWh",
        )
    return validate(read_published(Path(args.rows)))


def show(document: dict[str, Any]) -> str:
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
