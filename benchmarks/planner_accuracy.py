"""How well the planner predicts published runs: errors per group and per source, and a picture of them.

    python benchmarks/planner_accuracy.py ROWS.csv … [--held-out TEXT] [--json FILE] [--svg FILE]

Rows are those of `bessemer plan validate`. `--held-out TEXT` (repeatable) names sources, by a part of
their text, or files, by their name, that were not used to fit the profiles: their errors are told apart
from the others'. A run that several files have counts once, in the first of them that gives its time.
Results: benchmarks/results/planner.json and docs/images/planner-published.svg.
Cost: some seconds.
"""

import argparse
import json
import math
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean, median
from typing import Any

from planner_picture import Point, picture

from bessemer import __version__
from bessemer.planner.published.runs import PublishedRun, read_runs
from bessemer.planner.published.validate import Prediction, groups, predict

HERE = Path(__file__).parent
JSON = HERE / "results" / "planner.json"
SVG = HERE.parent / "docs" / "images" / "planner-published.svg"

# Source, as far as it takes to know it: how the picture and the table call it.
NAMES = {
    "megatron-bridge": "Megatron-Bridge", "llm-foundry": "llm-foundry", "bigscience": "BLOOM",
    "simumax": "SimuMax (Megatron)", "maxtext": "MaxText", "sc21": "Megatron SC21",
    "model_table": "Megatron weak scaling", "modelzoo": "Megatron MoE", "torchtitan": "torchtitan",
    "olmo": "OLMo", "deepseek": "DeepSeek",
}  # fmt: skip


@dataclass(frozen=True)
class Judged:
    """A prediction and which part of the account it belongs to."""

    prediction: Prediction
    source: str
    held_out: bool


def main() -> int:
    args = _arguments()
    judged = _judged(args.files, args.held_out)
    parts = {"in_sample": [row for row in judged if not row.held_out],
             "held_out": [row for row in judged if row.held_out]}  # fmt: skip
    document: dict[str, Any] = {
        "date": datetime.now().date().isoformat(),
        "bessemer": __version__,
        "command": shlex.join([Path(sys.argv[0]).name, *(Path(word).name for word in sys.argv[1:])]),
        **{part: _account(rows) for part, rows in parts.items() if rows},
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(document, indent=1) + "\n")
    args.svg.parent.mkdir(parents=True, exist_ok=True)
    args.svg.write_text(picture([point for row in judged if (point := _point(row)) is not None]))
    for part, rows in parts.items():
        if rows:
            print(_told(part, document[part]))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="ROWS.csv")
    parser.add_argument("--held-out", action="append", default=[], metavar="TEXT")
    parser.add_argument("--json", type=Path, default=JSON, metavar="FILE")
    parser.add_argument("--svg", type=Path, default=SVG, metavar="FILE")
    return parser.parse_args()


def _judged(files: list[Path], held_out: list[str]) -> list[Judged]:
    """Every row that can be predicted, but those that an earlier file has too."""
    found: list[Judged] = []
    seen: set[Any] = set()
    for file in files:
        runs = [run for run in read_runs(file) if run.skipped_because is None]
        for run in runs:
            if _identity(run) not in seen:
                out = any(text in run.source or text == file.name for text in held_out)
                found.append(Judged(predict(run), _name(run), out))
        seen |= {_identity(run) for run in runs}
    return found


def _identity(run: PublishedRun) -> Any:
    """Alike for one run in two files; measured stages of a pipeline stay apart."""
    assert run.candidates is not None and run.shape is not None
    columns = tuple(int(column[0]) for column in vars(run.candidates).values())
    speed = run.actual_tokens_per_s_per_device
    rounded = None if speed is None else float(f"{speed:.2g}")
    size = run.shape.layers, run.shape.hidden, run.shape.experts
    return size, run.context, run.device, columns, rounded, run.stage or 0, run.release, run.job


def _name(run: PublishedRun) -> str:
    source = run.source.lower()
    known = next((name for text, name in NAMES.items() if text in source), None)
    return known or run.source.split(" (")[0][:32]


def _account(rows: list[Judged]) -> dict[str, Any]:
    predictions = [row.prediction for row in rows]
    by_source: dict[str, list[Prediction]] = {}
    for row in rows:
        by_source.setdefault(row.source, []).append(row.prediction)
    by_group = groups(predictions)
    grouped = [row["time_mape"] for row in by_group if row["time_mape"] is not None]
    return {
        "rows": len(rows),
        "time_error_over_groups": _rounded(fmean(grouped)) if grouped else None,
        "worst_group": _rounded(max(grouped, default=None)),
        "groups": [{key: _rounded(value) for key, value in row.items()} for row in by_group],
        "sources": {source: _errors(members) for source, members in sorted(by_source.items())},
    }


def _errors(members: list[Prediction]) -> dict[str, Any]:
    out = [member for member in members if member.run.out_of_memory]
    ran = [member for member in members if not member.run.out_of_memory]
    return {
        "rows": len(members),
        **_spread("time", members, lambda member: member.time_error),
        **_spread("memory", members, lambda member: member.memory_error),
        "false_fits": sum(member.fits for member in out),
        "false_ooms": sum(not member.fits for member in ran),
    }


def _spread(
    what: str, members: list[Prediction], error: Callable[[Prediction], float | None]
) -> dict[str, Any]:
    errors = [value for member in members if (value := error(member)) is not None]
    if not errors:
        return {}
    values = {"mean": fmean(errors), "median": median(errors), "worst": max(errors)}
    return {f"{what}_rows": len(errors)} | {f"{what}_{key}": _rounded(each) for key, each in values.items()}


def _point(row: Judged) -> Point | None:
    """Step time of the row, its batch assumed where none was published: a ratio is a ratio."""
    run, speed = row.prediction.run, row.prediction.run.actual_tokens_per_s_per_device
    if speed is None:
        return None
    actual = run.actual_step_time_s or run.batch_rows * run.context / (speed * run.devices)
    return Point(row.source, actual, row.prediction.step_time_s, row.held_out)


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) and math.isfinite(value) else value


def _told(part: str, account: dict[str, Any]) -> str:
    lines = [f"{part.replace('_', ' ')}: {account['rows']} rows"]
    if account["time_error_over_groups"] is not None:
        mean, worst = account["time_error_over_groups"], account["worst_group"]
        lines[0] += f", step time {100 * mean:.1f} % over groups, worst group {100 * worst:.1f} %"
    for source, row in account["sources"].items():
        time = f"{100 * row['time_mean']:6.1f} %" if "time_mean" in row else "     none"
        memory = f"{100 * row['memory_mean']:6.1f} %" if "memory_mean" in row else "     none"
        lines.append(f"  {source:32} {row['rows']:4} rows  time {time}  memory {memory}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
