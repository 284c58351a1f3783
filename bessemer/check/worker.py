"""A rank of the pool that checks layouts, one after the other: `python -m bessemer.check.worker TASK`.

A pool, as starting a process for each rank of each layout would cost a second of torch's import every time.
Ranks that a layout does not have sit it out. What runs is training's own code: a stage that has begun is
read from its folder, built and stepped as `bessemer pretrain` does it. The first rank writes what came of
each layout to a file as it comes, so that a pool that dies loses one layout and no result.

Memory and traffic are watched in one more step after those that are compared: the watchers see every
operator, and what is compared should run without them.
"""

import gc
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed import Store  # type: ignore[attr-defined]

from bessemer.check.compare import Trace
from bessemer.evaluate.loss import validation_loss
from bessemer.launch.world import World, held_port, report_failure, world_of_environment
from bessemer.log import Console
from bessemer.parallel.traffic import TensorMemory, Traffic
from bessemer.rundir import JsonLines
from bessemer.train.build import build
from bessemer.train.job import Job
from bessemer.train.loop import train_step
from bessemer.train.machine import Machine
from bessemer.train.meeting import meet
from bessemer.train.ranks import ALONE, Company, joined
from bessemer.train.stage import Stage, read_stage
from bessemer.train.state import TrainState
from bessemer.train.stop import Stop

_PATIENCE = timedelta(days=7)  # of ranks that sit layouts out


@dataclass(frozen=True)
class Case:
    number: int
    folder: Path  # of a stage that has begun, in a layout


@dataclass(frozen=True)
class Task:
    """What a pool does."""

    cases: list[Case]
    of: int  # cases in all, of all pools
    results: Path  # rows of JSON, from the first rank
    machine: Machine
    steps: int
    timeout_s: float  # for a case of several ranks

    def to_json(self) -> dict[str, Any]:
        cases = [[case.number, str(case.folder)] for case in self.cases]
        return {**vars(self), "cases": cases, "results": str(self.results), "machine": asdict(self.machine)}

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Task":
        cases = [Case(number, Path(folder)) for number, folder in values["cases"]]
        machine, results = Machine(**values["machine"]), Path(values["results"])
        return Task(**{**values, "cases": cases, "results": results, "machine": machine})


def main(words: list[str]) -> int:
    """The exit code."""
    world = world_of_environment()
    assert world is not None and len(words) == 1, words
    try:
        run_cases(world, Task.from_json(json.loads(words[0])), Console(quiet=world.rank > 0))
    except BaseException as error:
        return report_failure(error)
    return 0


def run_cases(world: World, task: Task, console: Console) -> None:
    """This rank's part in each case that has it."""
    store = meet(world)
    results = JsonLines(task.results) if world.rank == 0 else None
    for case in task.cases:
        stage = read_stage(case.folder)
        layout = stage.plan.layout
        if world.rank >= layout.world:
            continue
        # One process waits for nobody: it takes what it takes.
        limit = _at_most(task.timeout_s) if layout.world > 1 else nullcontext()
        with _company(world, store, case.number, layout.world) as company, limit:
            trace = trace_of(stage, task, company)
        gc.collect()  # modules and their hooks are cycles: the next layout should not find them in its way
        if results is not None:
            results.append({"number": case.number, **trace.to_json()})
            what = layout if layout.world > 1 else "one process"
            console.line(f"[{case.number + 1}/{task.of}] {what}: {trace.time_s:.1f} s")


def trace_of(stage: Stage, task: Task, company: Company) -> Trace:
    """Train `task.steps` steps from the first values, then watch another."""
    began_s = time.monotonic()
    job, state = build(stage, task.machine, Console(quiet=True), Stop(), company)
    try:
        losses, norms, held_out = [], [], None
        for _ in range(task.steps):
            loss, norm = _step(job, state)
            losses.append(loss)
            norms.append(norm)
        if job.validation is not None:
            plan = stage.plan
            held_out, _ = validation_loss(
                job.engine, job.validation, micro_batch=plan.micro_batch, max_rows=plan.batch_rows
            )
        with Traffic() as traffic, TensorMemory(job.model, job.optimizer) as memory:
            _step(job, state)
        sent = sum(kind.sent_bytes for kind in traffic.by_kind.values())
        ranks = job.engine.each_rank([float(memory.peak), float(sent)])
    finally:
        job.close()
    peak, most = (int(max(column)) for column in zip(*ranks, strict=True))
    return Trace(losses, norms, held_out, peak, most, time.monotonic() - began_s)


def _step(job: Job, state: TrainState) -> tuple[float, float]:
    stats = train_step(job, state, job.batches.batch(state.samples))
    state.step += 1
    state.samples += job.plan.batch_rows
    return stats.loss, stats.grad_norm


@contextmanager
def _company(world: World, store: Store, number: int, size: int) -> Iterator[Company]:
    """The ranks of one layout: a world of its own, at a port that the first rank finds."""
    if size == 1:
        yield ALONE
        return
    key = f"port/{number}"
    with ExitStack() as stack:
        if world.rank == 0:
            store.set(key, str(stack.enter_context(held_port(world.host))))
        store.wait([key], _PATIENCE)
        port = int(store.get(key))
        with joined(World(world.rank, size, world.local_rank, size, world.host, port)) as company:
            yield company


@contextmanager
def _at_most(timeout_s: float) -> Iterator[None]:
    """End this process, with a word, when the block takes longer: an exchange that hangs raises nothing."""

    def end() -> None:
        report_failure(TimeoutError(f"no end after {timeout_s:g} s; where that is too short, give --timeout"))
        os._exit(1)

    timer = threading.Timer(timeout_s, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
