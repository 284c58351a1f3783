"""What a run writes while it goes: rows of metrics, events, and the line that a person watches.

Time and energy are counted from the run's beginning over all attempts, those of steps that were lost
to a kill included. Memory is the peak of this stage; but a CPU's is the largest resident set of this
process so far, which the kernel does not let a process lower, so it includes earlier stages.
"""

import resource
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bessemer.checkpoint.folder import step_of
from bessemer.energy.meter import (
    OTHER_MACHINES,
    ZERO,
    EnergyReading,
    NodeSources,
    PowerMeter,
    PowerReading,
    busy_seconds,
)
from bessemer.hardware import usable_cores
from bessemer.log import Console, bar
from bessemer.measure.facts import meter_name
from bessemer.parallel.engine import Engine
from bessemer.planner.plan import StagePlan
from bessemer.rundir import JsonLines, Row, read_rows
from bessemer.train.evidence import Evidence
from bessemer.train.expect import Expected
from bessemer.train.state import StepStats, TrainState
from bessemer.train.watch import Watch
from bessemer.units import format_seconds

_METER_S = 20.0  # counters of energy may wrap within minutes, so they are read at least so often


@dataclass(frozen=True)
class Gauge:
    """What turns a step's time into figures."""

    device: torch.device
    flops_per_token: float | None = None  # None: a model that nobody counted
    peak_flops: float | None = None  # of all ranks together; None: unknown device, no MFU
    cores: int = field(default_factory=usable_cores)
    accelerators: tuple[str, ...] | None = None  # of this machine's ranks; None: this process has its own
    device_name: str | None = None  # of the accelerators, as the catalogue or torch has it
    power_command: tuple[str, ...] = ()  # the recipe's energy.command, where --allow-code lets it run
    hosts: int = 1  # machines; energy is only known where there is one
    expected: Expected | None = None  # of a step, by the planner


class Silence:
    """The recorder of every rank but the first: it only gives its figures to the first one's rows."""

    attempt = 0

    def __init__(self, gauge: Gauge, engine: Engine) -> None:
        self._gauge, self._engine = gauge, engine
        self._start_s = busy_seconds()  # CPU time of imports and of building: no step's
        self.evidence = Evidence()

    def event(self, kind: str, step: int, **details: Any) -> None:
        pass

    def begin(self, kind: str, step: int, **details: Any) -> None:
        pass

    def samples(self, step: int, texts: list[dict[str, Any]]) -> None:
        pass

    def saved(self, folders: list[Path], step: int) -> None:
        pass

    def end_of_step(self, state: TrainState, stats: StepStats) -> None:
        pass

    def write(self, state: TrainState, stats: StepStats, more: Row) -> None:
        self._engine.each_rank([*_figures(self._gauge, self._start_s), *self.evidence.totals()])

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


class Recorder:
    """Writes one stage's files. One per run: the first rank's."""

    def __init__(self, stage: Path, plan: StagePlan, gauge: Gauge, console: Console, engine: Engine) -> None:
        earlier = read_rows(stage / "metrics.jsonl")
        events = read_rows(stage / "events.jsonl")
        self.attempt = 1 + sum(row["kind"] in ("start", "resume") for row in events)
        self._plan, self._gauge, self._console = plan, gauge, console
        self._rows, self._events = JsonLines(stage / "metrics.jsonl"), JsonLines(stage / "events.jsonl")
        last = earlier[-1] if earlier else {}
        self._time_s = float(last.get("time_s", 0.0))
        self._engine = engine
        self._others_s = 0.0  # CPU time of the other ranks since they began, when they last told
        accelerators = gauge.accelerators or ()
        if gauge.device.type != "cpu":
            if gauge.accelerators is None:
                accelerators = (meter_name(gauge.device),)
            torch.accelerator.reset_peak_memory_stats(gauge.device)  # an earlier stage's is not this one's
        if gauge.hosts > 1:
            accelerators += (OTHER_MACHINES,)  # which nobody reads: the sum is unknown
        start = _energy_of(last)
        self._meter = PowerMeter(
            start,
            cores=gauge.cores,
            accelerators=accelerators,
            others_s=lambda: self._others_s,
            node=NodeSources(command=gauge.power_command),
            device_name=gauge.device_name,
            earlier=last,
        )
        self._reading = PowerReading(None, start)
        self._last_s = self._row_s = self._metered_s = time.monotonic()
        self._since_row = self._steps_here = 0
        self._best_step_s: list[float] = []
        self.evidence = Evidence()
        self._watch = Watch(gauge.expected) if gauge.expected is not None else None

    def event(self, kind: str, step: int, **details: Any) -> None:
        self._events.append(
            {"time": time.time(), "attempt": self.attempt, "kind": kind, "step": step, **details}
        )

    def begin(self, kind: str, step: int, **details: Any) -> None:
        """The first event of an attempt: start or resume. The clock of the first step starts here."""
        self.event(kind, step, **details)
        self._last_s = self._row_s = time.monotonic()

    def samples(self, step: int, texts: list[dict[str, Any]]) -> None:
        for text in texts:
            self.event("sample", step, **text)

    def saved(self, folders: list[Path], step: int) -> None:
        """Checkpoints that have become whole since the last call."""
        for folder in folders:
            if self._watch is not None:
                self._watch.save_ended()
            self.event("checkpoint", step_of(folder) or step, folder=folder.name)

    def end_of_step(self, state: TrainState, stats: StepStats) -> None:
        """Take the time, and show the progress."""
        now_s = time.monotonic()
        step_s, self._last_s = now_s - self._last_s, now_s
        self._time_s += step_s
        self._since_row += 1
        self._steps_here += 1
        if self._steps_here > 1:  # the first compiles and warms up
            self._best_step_s = [*self._best_step_s[-19:], step_s]
        if self._watch is not None:
            self._watch.step(step_s)
        if now_s - self._metered_s > _METER_S:
            self._meter.keep_up()  # not read: the other ranks tell their CPU time with a row
            self._metered_s = now_s
        self._show(state, stats, step_s)

    def write(self, state: TrainState, stats: StepStats, more: Row) -> None:
        """The row of this step; step_time_s is the mean since the row before."""
        step_s = (self._last_s - self._row_s) / self._since_row
        self._row_s, self._since_row = self._last_s, 0
        own = _figures(self._gauge, 0.0)  # of its own CPU time the meter knows
        figures = self._engine.each_rank([*own, *self.evidence.totals()])
        self._others_s = sum(row[1] for row in figures[1:])
        self._reading, self._metered_s = self._meter.read(), time.monotonic()
        energy = self._reading.energy
        self._rows.append(
            {
                "attempt": self.attempt,
                "step": state.step,
                "tokens": state.tokens,
                "samples": state.samples,
                "time_s": round(self._time_s, 6),
                "loss": stats.loss,
                "grad_norm": stats.grad_norm,
                "lr": stats.lr,
                "tokens_per_s": self._plan.batch_tokens / step_s,
                "mfu": self._mfu(step_s),
                "step_time_s": step_s,
                "memory_bytes": int(max(row[0] for row in figures)),
                "power_w": self._reading.power_w,
                "energy_j": energy.joules,
                "energy_low_j": energy.low,
                "energy_high_j": energy.high,
                "energy_basis": energy.basis,
                **self._meter.columns,
                "layout": str(self._plan.layout),
                **more,
            }
        )
        if "validation_loss" in more:
            self._console.line(
                f"step {state.step:,}: loss {stats.loss:.4f}, validation {more['validation_loss']:.4f}"
            )

        self._compare(state.step, figures)

    def sync(self) -> None:
        """Before a save: its rows must outlive a power failure too."""
        self._rows.sync()
        self._events.sync()
        if self._watch is not None:
            self._watch.save_began()

    def close(self) -> None:
        self._meter.close()
        if self._watch is not None:
            why_not = self._watch.teach()
            if why_not is not None:
                self._console.line(f"step times are not kept for the next prediction: {why_not}")
            self._watch = None
        for file in (self._rows, self._events):
            with suppress(OSError):  # of a full disk: `append` has told, and closing tries the row again
                file.close()

    def _compare(self, step: int, figures: list[list[float]]) -> None:
        """With what the planner expected of a step: figures of each rank, memory and CPU time first."""
        if self._watch is None:
            return
        busy_s = busy_seconds() + self._others_s
        told = self._watch.row([row[2:] for row in figures], busy_s)
        if told is not None:
            self._console.line(f"step {step:,}: {told.line}")
            self.event(told.kind, step, **told.details)

    def _mfu(self, step_s: float) -> float | None:
        flops, peak = self._gauge.flops_per_token, self._gauge.peak_flops
        return None if flops is None or not peak else flops * self._plan.batch_tokens / step_s / peak

    def _show(self, state: TrainState, stats: StepStats, step_s: float) -> None:
        plan = self._plan
        typical_s = sorted(self._best_step_s)[len(self._best_step_s) // 2] if self._best_step_s else None
        pace = f"{plan.batch_tokens / (typical_s or step_s):,.0f} tokens/s"
        mfu = self._mfu(typical_s or step_s)
        power, basis = self._reading.power_w, self._reading.energy.basis
        left = format_seconds(typical_s * (plan.steps - state.step)) if typical_s else "…"
        if self._watch is not None:
            pace += f" (predicted {plan.batch_tokens / self._watch.expected.step_s:,.0f})"
        parts = [
            f"step {state.step:,}/{plan.steps:,} {bar(state.step / plan.steps)}",
            f"loss {stats.loss:.4f}",
            pace,
            "MFU unknown" if mfu is None else f"MFU {mfu:.0%}",
            "W unknown" if power is None else f"{power:.0f} W ({basis})",
            f"ETA {left}",
        ]
        self._console.progress("  ".join(parts), last=state.step == plan.steps)


def _figures(gauge: Gauge, start_s: float) -> list[float]:
    """Peak memory [bytes] of this rank, and its CPU time [s] beyond start_s."""
    busy_s = busy_seconds() - start_s
    if gauge.device.type != "cpu":
        return [float(torch.accelerator.max_memory_allocated(gauge.device)), busy_s]
    unit = 1 if sys.platform == "darwin" else 1024
    return [float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit), busy_s]


def _energy_of(row: Row) -> EnergyReading:
    if "energy_basis" not in row:
        return ZERO
    values = (row["energy_j"], row["energy_low_j"], row["energy_high_j"])
    return EnergyReading(*values, row["energy_basis"])
