"""`bessemer compare RUN RUN …`: runs side by side."""

import argparse
from pathlib import Path
from typing import Any

from bessemer.cli.columns import figure, text_table
from bessemer.units import format_joules, format_seconds

_STEP_FIGURES = ("loss", "validation_loss", "tokens_per_s")

HELP = "compare runs: loss and pace at shared steps, differences of recipe, final figures"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories or stages of runs")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page with overlaid curves")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from bessemer.durable import write_text
    from bessemer.report.compare import compare, comparison_page

    document = compare(args.runs)
    if args.html is not None:
        write_text(args.html, comparison_page(args.runs, document))
    return {**document, "html": None if args.html is None else str(args.html)}


def show(document: dict[str, Any]) -> str:
    parts = [_steps(document), _final(document), _differences(document)]
    if document["html"]:
        parts.append(f"curves: {document['html']}")
    return "\n\n".join(parts)


def _steps(document: dict[str, Any]) -> str:
    lines = ["At shared steps"]
    rows = [
        [str(row["step"]), figures["run"], *(_or_dash(figures[key]) for key in _STEP_FIGURES)]
        for row in document["rows"]
        for figures in row["runs"]
    ]
    if not rows:
        return "These runs share no step."
    return "\n".join([*lines, *text_table(["step", "run", "loss", "validation", "tokens/s"], rows, left=2)])


def _final(document: dict[str, Any]) -> str:
    headings = ["run", "step", "tokens", "loss", "validation", "tokens/s", "time in steps"]
    headings += ["energy", "J/token"]
    rows = [
        [
            row["run"],
            *(figure(row[key], digits=0) for key in ("step", "tokens")),
            *(figure(row[key]) for key in _STEP_FIGURES),
            "not measured" if row["time_s"] is None else format_seconds(row["time_s"]),
            "not measured"
            if row["energy_j"] is None
            else f"{format_joules(row['energy_j'])} {row['energy_basis']}",
            figure(row["joules_per_token"]),
        ]
        for row in document["final"]
    ]
    return "\n".join(["In the end", *text_table(headings, rows)])


def _differences(document: dict[str, Any]) -> str:
    rows = [
        [change["key"], " → ".join(change["runs"]), *map(str, change["values"]), change["affects"]]
        for change in document["recipe_differences"]
    ]
    if not rows:
        return "Recipes: no difference that has an effect."
    headings = ["key", "runs", "first", "second", "affects"]
    return "\n".join(["Differences of recipe", *text_table(headings, rows, left=5)])


def _or_dash(value: float | None) -> str:
    """A step without a validation is nothing that somebody forgot to measure."""
    return "–" if value is None else figure(value)
