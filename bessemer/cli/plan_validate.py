"""`bessemer plan validate ROWS.csv`: how well the planner predicts published runs, row by row."""

import argparse
from pathlib import Path
from typing import Any

from bessemer.cli.columns import skipped_lines, text_table
from bessemer.errors import RecipeError

_WORST = 5
_NONE_GIVEN = "none given"


def validated(args: argparse.Namespace) -> dict[str, Any]:
    """The document. RecipeError for options that have no effect here and for a file that is no such table."""
    from bessemer.planner.published.columns import unread_columns
    from bessemer.planner.published.runs import read_runs
    from bessemer.planner.published.validate import validate

    _refuse_others(args)
    runs = read_runs(Path(args.rows))
    return {**validate(runs), "unread_columns": unread_columns(Path(args.rows))}


def show_validation(document: dict[str, Any]) -> str:
    """Errors of each group, the summary, the worst rows, and why rows were skipped."""
    parts = [_groups(document["groups"])] if document["groups"] else []
    parts += [_summary(document["summary"])]
    parts += [
        text
        for text in (
            _worst(document["rows"]),
            _hours(document["rows"]),
            _skipped(document["rows"]),
            _unread(document["unread_columns"]),
        )
        if text
    ]
    return "\n\n".join(parts)


def _refuse_others(args: argparse.Namespace) -> None:
    if not args.rows:
        raise RecipeError(
            "no file of published runs named",
            found="plan validate",
            wanted="`bessemer plan validate ROWS.csv`",
            fix="name a CSV file with columns such as model, seq, gpus, gpu_type, tp, pp, dp, step_time_s",
        )
    given = {"--cluster": args.cluster, "--layout": args.layout, "--rehearse": args.rehearse}
    given |= {"--set": getattr(args, "set", None), "--top": args.top}
    useless = [option for option, value in given.items() if value]
    if useless:
        raise RecipeError(
            f"{useless[0]} has no effect on `bessemer plan validate`",
            found=" ".join(useless),
            wanted="ROWS.csv alone: each row says its own cluster and layout",
            fix=f"leave out {useless[0]}",
        )


def _groups(groups: list[dict[str, Any]]) -> str:
    rows = [
        [
            row["stack"],
            row["device"],
            row["precision"],
            str(row["rows"]),
            _percent(row["time_mape"]),
            _percent(row["time_worst"]),
            "" if row["predicted_over_actual"] is None else f"{row['predicted_over_actual']:.2f}",
        ]
        for row in groups
    ]
    headings = ["Stack", "device", "precision", "rows", "time error", "worst", "predicted/actual"]
    return "\n".join(text_table(headings, rows, left=3))


def _summary(summary: dict[str, Any]) -> str:
    rows = [
        ["rows predicted", str(summary["rows"])],
        ["rows skipped", str(summary["skipped"])],
        ["step time, mean error", _percent(summary["time_mape"])],
        ["step time, median error", _percent(summary["time_median_ape"])],
        ["step time, mean of the groups", _percent(summary["time_error_over_groups"])],
        ["step time, worst group", _percent(summary["worst_group_time_mape"])],
        ["memory, mean error", _percent(summary["memory_mape"])],
        ["memory, worst", _percent(summary["memory_worst"])],
        ["device-hours, mean error", _percent(summary["device_hours_mape"])],
        ["device-hours, within 15 %", _within(summary, "device_hours")],
        ["of finished trainings, mean error", _percent(summary["device_hours_finished_mape"])],
        ["of finished trainings, within 15 %", _within(summary, "device_hours_finished")],
        ["of finished trainings, published over predicted", _times(summary)],
        ["said to fit, and did not", str(summary["false_fits"])],
        ["said not to fit, and did", str(summary["false_ooms"])],
    ]
    told = [row for row in rows if row[1] not in (_NONE_GIVEN, "0 of 0")]
    return "\n".join(text_table(["Predicted against published", ""], told))


def _worst(rows: list[dict[str, Any]]) -> str:
    known = [row for row in rows if row["time_error"] is not None]
    worst = sorted(known, key=lambda row: -row["time_error"])[:_WORST]
    lines = [
        [
            str(row["row"]),
            row["model"][:32],
            row["source"][:40],
            f"{row['predicted_tokens_per_s_per_device']:,.0f}",
            f"{row['actual_tokens_per_s_per_device']:,.0f}",
            _percent(row["time_error"]),
        ]
        for row in worst
    ]
    headings = ["Worst rows", "model", "source", "predicted tokens/s", "published", "error"]
    return "\n".join(text_table(headings, lines, left=3)) if lines else ""


def _hours(rows: list[dict[str, Any]]) -> str:
    """Device-hours of whole trainings, what was assumed for them, and why some are off."""
    known = [row for row in rows if row["device_hours_error"] is not None]
    lines = [
        [
            str(row["row"]),
            row["model"][:32],
            f"{row['device_hours_devices']:,}",
            f"{row['predicted_device_hours']:,.0f}",
            f"{row['actual_device_hours']:,.0f}",
            _percent(row["device_hours_error"]),
        ]
        for row in known
    ]
    if not lines:
        return ""
    headings = ["Device-hours", "model", "devices", "predicted", "published", "error"]
    reasons = {kind: _by_text(known, f"device_hours_{kind}") for kind in ("assumed", "note")}
    return "\n".join(
        [
            *text_table(headings, lines, left=2),
            *(f"Assumed for {numbers}: {text}" for text, numbers in reasons["assumed"].items()),
            *(f"Note on {numbers}: {text}" for text, numbers in reasons["note"].items()),
        ]
    )


def _by_text(rows: list[dict[str, Any]], key: str) -> dict[str, str]:
    """Rows that say the same, by what they say: "rows 1, 2"."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row[key]:
            found.setdefault(row[key], []).append(str(row["row"]))
    return {
        text: f"{'row' if len(numbers) == 1 else 'rows'} {', '.join(numbers)}"
        for text, numbers in found.items()
    }


def _skipped(rows: list[dict[str, Any]]) -> str:
    return "\n".join(skipped_lines(row["skipped_because"] for row in rows))


def _unread(columns: dict[str, str | None]) -> str:
    names = [name + (f" (was {meant} meant?)" if meant else "") for name, meant in columns.items()]
    return f"Columns that nothing is read from: {', '.join(names)}" if names else ""


def _within(summary: dict[str, Any], which: str) -> str:
    return f"{summary[f'{which}_within_15_percent']} of {summary[f'{which}_rows']}"


def _times(summary: dict[str, Any]) -> str:
    low, middle, high = (summary[f"device_hours_finished_over_{end}"] for end in ("low", "median", "high"))
    if middle is None:
        return _NONE_GIVEN
    return f"{middle:.2f} (the middle eight tenths: {low:.2f} to {high:.2f})"


def _percent(share: float | None) -> str:
    return _NONE_GIVEN if share is None else f"{100 * share:.1f} %"
