"""Our predictions for published runs, beside what was measured.

The error of a time is max(predicted / actual, actual / predicted) - 1: twice as slow and twice as fast count
alike. It is averaged within a group (stack, device, precision) and then over groups, so that a source with
two hundred rows does not hide one with three; memory's is |predicted / actual - 1|, of allocated bytes
where they are given, else of reserved ones or of nvidia-smi's.
False fits: rows that ran out of memory and that we say fit. False OOMs: rows that ran and that we say do
not fit, in no mode of recomputation where the row does not say which it used.
Device-hours of whole trainings have an error of their own, |predicted / actual - 1|, and are predicted for
rows without a layout too (hours.py).
Cost: about 1 ms a row.
"""

from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any

import numpy as np

from bessemer.hardware import GIB
from bessemer.planner.cost import memory
from bessemer.planner.cost.candidates import RECOMPUTE
from bessemer.planner.cost.time import StepTimes, step_times
from bessemer.planner.published.conventions import memory_stack_of
from bessemer.planner.published.hours import WITHIN, DeviceHours, device_hours
from bessemer.planner.published.runs import PublishedRun


@dataclass(frozen=True)
class Prediction:
    """Of one run. Memory is of the kind that the row measured; where it measured none, the device's."""

    run: PublishedRun
    step_time_s: float
    memory_bytes: float
    fits: bool

    @property
    def tokens_per_s_per_device(self) -> float:
        return self.run.batch_rows * self.run.context / self.step_time_s / self.run.devices

    @property
    def time_error(self) -> float | None:
        """None: no time was published."""
        if self.run.actual_tokens_per_s_per_device is None and self.run.actual_step_time_s is None:
            return None
        if self.run.actual_step_time_s is not None:
            ratio = self.step_time_s / self.run.actual_step_time_s
        else:
            assert self.run.actual_tokens_per_s_per_device is not None
            ratio = self.run.actual_tokens_per_s_per_device / self.tokens_per_s_per_device
        return max(ratio, 1.0 / ratio) - 1.0

    @property
    def memory_error(self) -> float | None:
        actual = actual_memory_gib(self.run)
        return None if actual is None else abs(self.memory_bytes / GIB / actual - 1.0)


def validate(runs: list[PublishedRun]) -> dict[str, Any]:
    """The document of `bessemer plan validate`: rows, groups and their summary."""
    predictions = {run.row: predict(run) for run in runs if run.skipped_because is None}
    predicted = list(predictions.values())
    hours = {run.row: found for run in runs if (found := device_hours(run)) is not None}
    return {
        "rows": [_row(run, predictions.get(run.row)) | _hours_row(run, hours.get(run.row)) for run in runs],
        "groups": groups(predicted),
        "summary": {
            "rows": len(predicted),
            "skipped": len(runs) - len(predicted),
            **_summary(predicted),
            **_hours_summary(list(hours.values())),
        },
    }


def predict(run: PublishedRun) -> Prediction:
    """Time and memory of a run that is not skipped."""
    assert run.shape is not None and run.candidates is not None
    assert run.cluster is not None and run.device is not None, f"row {run.row} is skipped"
    times = step_times(run.shape, run.context, run.candidates, run.cluster, run.stack)
    stack = memory_stack_of(run.stack, run.source, run.notes)
    columns = memory.stage_bytes(run.shape, run.context, run.candidates, stack, run.stage)
    return Prediction(
        run=run,
        step_time_s=float(_seconds(times, run.job)),
        memory_bytes=float(getattr(columns, memory_kind(run))[0]),
        fits=_fits(run, stack),
    )


def actual_memory_gib(run: PublishedRun) -> float | None:
    """Allocated where it is given, else reserved, else what nvidia-smi showed."""
    for actual in (run.actual_allocated_gib, run.actual_reserved_gib, run.actual_device_gib):
        if actual is not None:
            return actual
    return None


def groups(predicted: list[Prediction]) -> list[dict[str, Any]]:
    """Errors of each stack, device and precision, those with most rows first."""
    found: dict[tuple[str, str, str], list[Prediction]] = {}
    for prediction in predicted:
        found.setdefault(prediction.run.group, []).append(prediction)
    rows = []
    for (stack, device, precision), members in found.items():
        errors = _known(member.time_error for member in members)
        rows.append(
            {
                "stack": stack,
                "device": device,
                "precision": precision,
                "rows": len(members),
                "time_mape": fmean(errors) if errors else None,
                "time_worst": max(errors, default=None),
                "predicted_over_actual": _bias(members),
            }
        )
    return sorted(rows, key=lambda row: -row["rows"])


def _summary(predicted: list[Prediction]) -> dict[str, Any]:
    times = _known(prediction.time_error for prediction in predicted)
    memories = _known(prediction.memory_error for prediction in predicted)
    by_group = _known(row["time_mape"] for row in groups(predicted))
    ran = [row for row in predicted if not row.run.out_of_memory and _ran(row.run)]
    return {
        "time_mape": fmean(times) if times else None,
        "time_median_ape": median(times) if times else None,
        "time_error_over_groups": fmean(by_group) if by_group else None,
        "worst_group_time_mape": max(by_group, default=None),
        "memory_mape": fmean(memories) if memories else None,
        "memory_worst": max(memories, default=None),
        "false_fits": sum(row.fits for row in predicted if row.run.out_of_memory),
        "false_ooms": sum(not row.fits for row in ran),
    }


def _fits(run: PublishedRun, stack: str) -> bool:
    """Whether its fullest rank fits; where the row is silent about recomputation, with any of its modes."""
    assert run.shape is not None and run.candidates is not None and run.device is not None
    modes = [int(run.candidates.recompute[0])] if run.recompute_published else range(len(RECOMPUTE))
    for mode in modes:
        tried = replace(run.candidates, recompute=np.array([mode]))
        columns = memory.stage_bytes(run.shape, run.context, tried, stack)
        if memory.fits(columns, run.device)[0]:
            return True
    return False


def _row(run: PublishedRun, prediction: Prediction | None) -> dict[str, Any]:
    actual_memory = actual_memory_gib(run)
    return {
        "row": run.row,
        "source": run.source,
        "model": run.model,
        "stack": run.stack,
        "shape_assumed": run.shape_assumed,
        "predicted_step_time_s": prediction.step_time_s if prediction else None,
        "actual_step_time_s": run.actual_step_time_s,
        "predicted_tokens_per_s_per_device": prediction.tokens_per_s_per_device if prediction else None,
        "actual_tokens_per_s_per_device": run.actual_tokens_per_s_per_device,
        "predicted_memory_gib": prediction.memory_bytes / GIB if prediction else None,
        "predicted_memory_kind": memory_kind(run) if prediction else None,
        "actual_memory_gib": actual_memory,
        "predicted_fits": prediction.fits if prediction else None,
        "out_of_memory": run.out_of_memory,
        "time_error": prediction.time_error if prediction else None,
        "memory_error": prediction.memory_error if prediction else None,
        "skipped_because": run.skipped_because,
    }


def _hours_row(run: PublishedRun, hours: DeviceHours | None) -> dict[str, Any]:
    return {
        "predicted_device_hours": hours.predicted if hours else None,
        "actual_device_hours": run.gpu_hours,
        "device_hours_error": hours.error if hours else None,
        "device_hours_devices": hours.devices if hours else None,
        "device_hours_assumed": hours.assumed if hours else None,
        "device_hours_note": hours.note if hours else None,
    }


def _hours_summary(hours: list[DeviceHours]) -> dict[str, Any]:
    finished = [row.error for row in hours if not row.projected]
    over = [row.actual / row.predicted for row in hours if not row.projected]
    low, middle, high = np.quantile(over, (0.1, 0.5, 0.9)).tolist() if over else (None, None, None)
    return {
        "device_hours_rows": len(hours),
        "device_hours_mape": fmean(row.error for row in hours) if hours else None,
        "device_hours_within_15_percent": sum(row.error <= WITHIN for row in hours),
        "device_hours_finished_rows": len(finished),
        "device_hours_finished_mape": fmean(finished) if finished else None,
        "device_hours_finished_within_15_percent": sum(error <= WITHIN for error in finished),
        # Published over predicted: nine tenths of the rows have more, half, one tenth.
        "device_hours_finished_over_low": low,
        "device_hours_finished_over_median": middle,
        "device_hours_finished_over_high": high,
    }


def _seconds(times: StepTimes, job: str) -> float:
    """Of a step; adapters need no gradients of the weights: a third of the matrix products, and no update."""
    total = float(times.total_s[0])
    if job != "lora":
        return total
    products = float((times.matmul_s + times.bubble_s)[0])
    return total - products / 3.0 - float((times.data_s + times.optimizer_s)[0])


def memory_kind(run: PublishedRun) -> str:
    """allocated, reserved or device: what the row measured; where it measured none, what must fit."""
    if run.actual_allocated_gib is not None:
        return "allocated"
    return "device" if run.actual_reserved_gib is None else "reserved"


def _ran(run: PublishedRun) -> bool:
    """Whether the row proves that it fitted."""
    return run.actual_tokens_per_s_per_device is not None or actual_memory_gib(run) is not None


def _bias(members: list[Prediction]) -> float | None:
    """Predicted over actual step time, the median: 1.1 is ten per cent too slow."""
    ratios = [
        member.run.actual_tokens_per_s_per_device / member.tokens_per_s_per_device
        for member in members
        if member.run.actual_tokens_per_s_per_device is not None
    ]
    return median(ratios) if ratios else None


def _known(values: Any) -> list[float]:
    return [value for value in values if value is not None]
