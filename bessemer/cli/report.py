"""`bessemer report RUN`: one self-contained page about a run."""

import argparse
from pathlib import Path
from typing import Any

HELP = "write report.html: one self-contained page about a run"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=Path, metavar="RUN", help="a run directory")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from bessemer.report.build import write_report
    from bessemer.report.grades import grades
    from bessemer.report.overview import result_sentence

    path, record = write_report(args.target)
    return {
        "run": str(record.folder),
        "report": str(path),
        "bytes": path.stat().st_size,
        "result": result_sentence(record),
        "predictions": [grade.to_json() for grade in grades(record)],
    }


def show(document: dict[str, Any]) -> str:
    return str(document["report"])
