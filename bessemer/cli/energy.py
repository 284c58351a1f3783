"""`bessemer energy RUN`: the account of a run; `bessemer energy validate ROWS.csv`: a check of the model."""

import argparse
from pathlib import Path
from typing import Any

from bessemer.errors import RecipeError

HELP = "what a run drew: joules, carbon, money; energy validate ROWS.csv checks the model"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", metavar="RUN", help='a run directory, or "validate"')
    parser.add_argument(
        "rows", nargs="?", metavar="ROWS.csv", help="validate: published trainings, a row each"
    )
    parser.add_argument("--region", metavar="CODE", help="grid region, e.g. DEU; instead of the recipe's")
    parser.add_argument(
        "--pue", type=float, metavar="F", help="facility over IT energy; instead of the recipe's"
    )
    parser.add_argument(
        "--intensity", type=Path, metavar="FILE", help="carbon by the hour: CSV with time (UTC), g_per_kwh"
    )
    parser.add_argument(
        "--prometheus", type=Path, metavar="FILE", help="also write it for node_exporter: a file *.prom"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    if args.what == "validate":
        return _validate(args)
    from bessemer.energy.accounting.account import account
    from bessemer.energy.accounting.prometheus import write_prometheus

    if args.rows is not None:
        raise _useless(args.rows, "with a run")
    document = account(Path(args.what), region=args.region, pue=args.pue, intensity=args.intensity)
    if args.prometheus is not None:
        write_prometheus(args.prometheus, document)
    return document


def show(document: dict[str, Any]) -> str:
    from bessemer.cli import energy_tables

    tables = energy_tables.validation if "rows" in document else energy_tables.account
    return tables(document)


def _validate(args: argparse.Namespace) -> dict[str, Any]:
    from bessemer.energy.published import read_published, validate

    for name in ("region", "pue", "intensity", "prometheus"):
        if getattr(args, name) is not None:
            raise _useless(f"--{name}", "with validate")
    if args.rows is None:
        raise RecipeError(
            "no file of published trainings named",
            found="energy validate",
            wanted="`bessemer energy validate ROWS.csv`",
            fix="name a CSV file with columns such as model, gpu_type, gpu_hours, PUE, kWh",
        )
    return validate(read_published(Path(args.rows)))


def _useless(word: str, where: str) -> RecipeError:
    return RecipeError(
        f"{word} has no effect {where}",
        found=word,
        wanted="`bessemer energy RUN [--region CODE] …`, or `bessemer energy validate ROWS.csv`",
        fix="leave it out",
    )
