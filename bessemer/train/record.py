"""What a run writes while it goes: rows of metrics, events, and the line that a person watches.

Time and energy are counted from the run's beginning over all attempts, those of steps that were lost
to a kill included. Memory is the peak of this stage; but a CPU's is the largest resident set of this
process so far, which the kernel does not let a process lower, so it includes earlier stages.
"""

import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from bessemer.checkpoint.folder import step_of
from bessemer.energy.accounting.readings import ENERGY_COLUMNS, newest_reading
from bessemer.energy.metering.phases import Phase
from bessemer.errors import StoppedError
from bessemer.log import Console, bar
from bessemer.parallel.engine import Engine
from bessemer.planner.plan import StagePlan
from bessemer.rundir import JsonLines, Row, read_rows
from bessemer.train.budget import BudgetWatch
from bessemer.train.evidence import Evidence
from bessemer.train.gauge import Gauge, forget_peak
from bessemer.train.metering import Metering
from bessemer.train.state import StepStats, TrainState
from bessemer.train.watch import Told, Watch
from bessemer.units import format_seconds


class Recorder:
    """Writes one stage's files. One per run: the first rank's."""

    def __init__(
        self,
        stage: Path,
        plan: StagePlan,
        gauge: Gauge,
        console: Console,
        engine: Engine,
        metering: Metering | None = None,
    ) -> None:
        """metering: begun before, as early as could be."""
        earlier = read_rows(stage / "metrics.jsonl")
        events = read_rows(stage / "events.jsonl")
        self.attempt = 1 + sum(row["kind"] in ("start", "resume") for row in events)
        self._plan, self._gauge, self._console = plan, gauge, console
        self._rows, self._events = JsonLines(stage / "metrics.jsonl"), JsonLines(stage / "events.jsonl")
        last = newest_reading(earlier, events)
        self._time_s = float(last.get("time_s", 0.0))
        self._engine = engine
        forget_peak(gauge.device)
        self._metering = metering or Metering(gauge, last)
        self._energy: Row = {}  # of the newest row
        self._waited_s = float(last.get("waiting_for_data_s") or 0.0)  # in the attempts before
        self._last_s = self._row_s = time.monotonic()
        self._since_row = self._tokens_since_row = self._steps_here = 0
        self._best_step_s: list[float] = []
        self.evidence = Evidence()
        self._watch = Watch(gauge.expected) if gauge.expected is not None else None
        self.budget: BudgetWatch | None = None

    def event(self, kind: str, step: int, **details: Any) -> None:
        event = {"time": time.time(), "attempt": self.attempt, "kind": kind, "step": step, **details}
        self._events.append(event)
        if self.budget is not None:
            self.budget.event(event)

    def begin(self, kind: str, step: int, **details: Any) -> None:
        """The first event of an attempt: start or resume. The clock of the first step starts here."""
        if self._metering.unrecorded_s is not None:
            details["unrecorded_s"] = round(self._metering.unrecorded_s, 3)
        self.event(kind, step, **details)
        self._metering.started()
        self._last_s = self._row_s = time.monotonic()

    def phase(self, name: str) -> AbstractContextManager[Phase]:
        """What is drawn within the block counts as `name`, one of energy/phases.PHASES."""
        return self._metering.phase(name)

    def ended(self, kind: str, step: int, **details: Any) -> None:
        """The last event of an attempt, with what the last save drew too: on all ranks at the same time."""
        energy = self._metering.row(self._engine)
        self.event(kind, step, **details, **{name: energy[name] for name in ENERGY_COLUMNS})

    def keep_up(self) -> None:
        """While no row is written, as often as one likes: counters of energy may wrap within minutes."""
        self._metering.keep_up()

    def waiting(self, step: int) -> None:
        """In a pause after `step`, as often as one likes: the budget's hours go on."""
        self._tell(step, [] if self.budget is None else self.budget.waiting(step))

    def resume(self, seconds: float) -> None:
        """After a pause: its time is no step's, and what was measured before it is kept first."""
        self._last_s += seconds
        self._row_s += seconds
        if self._watch is not None:
            self._teach(self._watch)
            self._watch.begin_again()

    def samples(self, step: int, texts: list[dict[str, Any]]) -> None:
        for text in texts:
            self.event("sample", step, **text)

    def saved(self, folders: list[Path], step: int) -> None:
        """Checkpoints that have become whole since the last call."""
        for folder in folders:
            if self._watch is not None:
                self._watch.save_ended()
            self.event("checkpoint", step_of(folder) or step, folder=folder.name)

    def limited(self, watts: float | None, how: str) -> None:
        """The accelerators have another power limit; None: what they had. how: asked, searching, found."""
        if self._watch is not None:
            self._watch.limited(watts, how)

    def governed(self, governor: str) -> None:
        """The CPUs have another frequency governor than they had."""
        if self._watch is not None:
            self._watch.governor = governor

    def end_of_step(self, state: TrainState, stats: StepStats) -> None:
        """Take the time, and show the progress."""
        now_s = time.monotonic()
        step_s, self._last_s = now_s - self._last_s, now_s
        self._time_s += step_s
        self._since_row += 1
        self._tokens_since_row += stats.tokens
        self._steps_here += 1
        if self._steps_here > 1:  # the first compiles and warms up
            self._best_step_s = [*self._best_step_s[-19:], step_s]
        if self._watch is not None:
            self._watch.step(step_s)
        self._metering.keep_up()
        self._show(state, stats, step_s)

    def write(self, state: TrainState, stats: StepStats, more: Row) -> None:
        """The row of this step; step_time_s is the mean since the row before."""
        step_s = (self._last_s - self._row_s) / self._since_row
        tokens = self._tokens_since_row / self._since_row
        self._row_s, self._since_row, self._tokens_since_row = self._last_s, 0, 0
        own = [self._gauge.peak_memory_bytes(), self._metering.cpu_s]
        figures = self._engine.each_rank([*own, *self.evidence.totals()])
        self._metering.fellows_told([row[1] for row in figures])
        self._energy = self._metering.row(self._engine)
        row = {
            "attempt": self.attempt,
            "step": state.step,
            "tokens": state.tokens,
            "samples": state.samples,
            "time_s": round(self._time_s, 6),
            "loss": stats.loss,
            "grad_norm": stats.grad_norm,
            "lr": stats.lr,
            "tokens_per_s": tokens / step_s,
            "mfu": self._mfu(tokens, step_s),
            "step_time_s": step_s,
            "memory_bytes": int(max(row[0] for row in figures)),
            **self._energy,
            "waiting_for_data_s": round(self._waited_s + max(row[2] for row in figures), 6),
            "layout": str(self._plan.layout),
            **more,
        }
        self._rows.append(row)
        if "validation_loss" in more:
            self._console.line(
                f"step {state.step:,}: loss {stats.loss:.4f}, validation {more['validation_loss']:.4f}"
            )

        self._compare(state.step, figures)
        self._tell(state.step, [] if self.budget is None else self.budget.row(row))

    def out_of_budget(self, step: int) -> StoppedError | None:
        """Where a limit of the run's budget has stopped it."""
        return None if self.budget is None else self.budget.error(step)

    def sync(self) -> None:
        """Before a save: its rows must outlive a power failure too."""
        self._rows.sync()
        self._events.sync()
        if self._watch is not None:
            self._watch.save_began()

    def close(self) -> None:
        self._metering.close()
        if self._watch is not None:
            self._teach(self._watch)
            self._watch = None
        for file in (self._rows, self._events):
            with suppress(OSError):  # of a full disk: `append` has told, and closing tries the row again
                file.close()

    def _teach(self, watch: Watch) -> None:
        why_not = watch.teach()
        if why_not is not None:
            self._console.line(f"step times are not kept for the next prediction: {why_not}")

    def _compare(self, step: int, figures: list[list[float]]) -> None:
        """With what the planner expected of a step: figures of each rank, memory and CPU time first."""
        if self._watch is None:
            return
        busy_s = self._metering.cpu_s + self._metering.fellows_s
        told = self._watch.row([row[2:] for row in figures], busy_s)
        self._tell(step, [] if told is None else [told])

    def _tell(self, step: int, all_told: list[Told]) -> None:
        for told in all_told:
            self._console.line(f"step {step:,}: {told.line}")
            self.event(told.kind, step, **told.details)

    def _mfu(self, tokens: float, step_s: float) -> float | None:
        flops, peak = self._gauge.flops_per_token, self._gauge.peak_flops
        return None if flops is None or not peak else flops * tokens / step_s / peak

    def _show(self, state: TrainState, stats: StepStats, step_s: float) -> None:
        plan = self._plan
        typical_s = sorted(self._best_step_s)[len(self._best_step_s) // 2] if self._best_step_s else None
        pace = f"{stats.tokens / (typical_s or step_s):,.0f} tokens/s"
        mfu = self._mfu(stats.tokens, typical_s or step_s)
        power, basis = self._energy.get("power_w"), self._energy.get("energy_basis")
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
