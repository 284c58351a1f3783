"""From a stage to a job: the only place that knows all parts.

Order: this rank's part of the model on the meta device (parallel/apply.py), memory, first values
(train/first_weights.py), optimizer, then the newest good checkpoint over all of it.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bessemer.checkpoint.folder import Manifest, newest_good, read_manifest
from bessemer.checkpoint.load import COMPUTE, restore
from bessemer.checkpoint.saver import Saver
from bessemer.data.rows import Rows
from bessemer.energy.accounting.readings import newest_reading
from bessemer.energy.grid.pausing import PauseRule
from bessemer.formulas.objective import WITH_REFERENCE
from bessemer.log import Console
from bessemer.model.decoder import Decoder
from bessemer.model.device import this_device
from bessemer.model.loss import loss_chunk
from bessemer.parallel.apply import build_parts, joined, materialise
from bessemer.parallel.engine import Engine, Loss, Ranks
from bessemer.parallel.mesh import Mesh
from bessemer.planner.plan import StagePlan
from bessemer.rundir import read_rows
from bessemer.train.budget import budget_watch, check_metered
from bessemer.train.columns import check_columns
from bessemer.train.compiling import compile_blocks
from bessemer.train.first_weights import set_first_weights
from bessemer.train.gauge import Gauge
from bessemer.train.job import Feed, Job
from bessemer.train.levers import begin_tune
from bessemer.train.machine import Machine, gauge_of
from bessemer.train.metering import Metering, seconds_after_last_row
from bessemer.train.objective import loss_of
from bessemer.train.optimizer import make_optimizer
from bessemer.train.pause import Pause
from bessemer.train.ranks import ALONE, Company
from bessemer.train.record import Recorder
from bessemer.train.reference import keep_reference
from bessemer.train.rows import num_validation_rows, prepared_feed, rows_of_split, sampler_of
from bessemer.train.silence import Silence
from bessemer.train.stage import Stage
from bessemer.train.state import TrainState
from bessemer.train.stop import Stop

FeedOf = Callable[[Stage, Engine, Console, Company], Feed]  # as `prepared_feed`


def build(
    stage: Stage,
    machine: Machine,
    console: Console,
    stop: Stop,
    company: Company = ALONE,
    feed_of: FeedOf = prepared_feed,
) -> tuple[Job, TrainState]:
    """This rank's job of a stage that has begun, at the state where its newest good checkpoint left it."""
    plan = stage.plan
    mesh = Mesh(plan.layout, this_device())
    gauge = gauge_of(stage, machine, mesh, company)
    metering = _metering(stage, gauge, company)  # first: what follows draws, too
    with ExitStack() as on_failure:
        on_failure.callback(metering.close)
        company.first_does("metered", lambda: check_metered(stage.folder, metering.missing))
        engine, parts = _engine(stage, mesh)
        set_first_weights(stage, engine, company)
        if plan.objective.kind in WITH_REFERENCE:
            keep_reference(stage, engine, mesh, company, console)
        check_columns(stage, company)
        validation = rows_of_split(stage, "validation")
        job, state = _assembled(
            stage.folder,
            plan,
            engine,
            feed_of(stage, engine, console, company),
            console,
            stop,
            company,
            # A held-out answer was not drawn by the model: it has no advantage.
            validation=validation if len(validation) and plan.objective.kind != "grpo" else None,
            validation_rows=num_validation_rows(stage),
            gauge=gauge,
            metering=metering,
            sample=sampler_of(stage, parts[0], validation) if engine.world == 1 else None,
        )
        on_failure.callback(job.abandon)
        job = _watched(job, machine, state.step, company, console, on_failure)
        on_failure.pop_all()
    return job, state


def assemble(
    *,
    folder: Path,
    plan: StagePlan,
    model: nn.Module,
    loss: Loss,
    batches: Feed,
    console: Console,
    stop: Stop,
    validation: Rows | None = None,
    validation_rows: int | None = None,
    gauge: Gauge | None = None,
    sample: Callable[[], list[dict[str, Any]]] | None = None,
) -> tuple[Job, TrainState]:
    """A job from parts of your own: any module, any loss. Goes on from the newest good checkpoint.

    gauge: None leaves MFU unknown, as nobody counted the FLOPs of your module.
    """
    return _assembled(
        folder,
        plan,
        Engine(model, loss, plan.router_balance),
        batches,
        console,
        stop,
        ALONE,
        validation=validation,
        validation_rows=validation_rows,
        gauge=gauge or Gauge(next(model.parameters()).device),
        sample=sample,
    )


def _assembled(
    folder: Path,
    plan: StagePlan,
    engine: Engine,
    batches: Feed,
    console: Console,
    stop: Stop,
    company: Company,
    *,
    gauge: Gauge,
    metering: Metering | None = None,
    **others: Any,
) -> tuple[Job, TrainState]:
    optimizer = make_optimizer(engine.model, plan)
    state, restored = _restored(folder, engine, optimizer, console, company)
    saver = Saver(
        folder,
        plan.keep,
        rank=engine.rank,
        world=engine.world,
        store=company.store,
        asynchronous=plan.async_save,
    )
    record: Recorder | Silence = Silence(gauge, engine, metering)
    if engine.rank == 0:
        record = Recorder(folder, plan, gauge, console, engine, metering)
    if record.attempt <= 1:
        record.begin("start", state.step)
    else:
        record.begin("resume", state.step, checkpoint=restored)
    job = Job(
        plan=plan,
        engine=engine,
        optimizer=optimizer,
        batches=batches,
        folder=folder,
        saver=saver,
        record=record,
        stop=stop,
        **others,
    )
    return job, state


def _watched(
    job: Job, machine: Machine, step: int, company: Company, console: Console, on_failure: ExitStack
) -> Job:
    """With what may stop it, hold it or turn it down: its budget, the grid, the search for a power limit."""
    if isinstance(job.record, Recorder):
        job.record.budget = budget_watch(job.folder, job.plan, job.engine.world, job.stop)
    if machine.pause is not None:
        pause = Pause(PauseRule(**machine.pause), job.engine, job.record, job.stop, console)
        on_failure.callback(pause.close)
        company.first_does("grid", pause.open)
        job = replace(job, pause=pause)
    if machine.tune is not None:
        job = replace(job, tune=begin_tune(machine.tune, job, step, company, console))
    return job


def _restored(
    folder: Path, engine: Engine, optimizer: torch.optim.Optimizer, console: Console, company: Company
) -> tuple[TrainState, str | None]:
    """Where the newest good checkpoint left it, and that one's name; None: there is none."""
    found = _newest(folder, console, company)
    if found is None:
        return TrainState(), None
    restore(engine.model, optimizer, found[0], engine.pieces)
    return TrainState.from_json({"step": found[1].step, **found[1].state}), found[0].name


def _newest(folder: Path, console: Console, company: Company) -> tuple[Path, Manifest] | None:
    """The first rank reads and hashes every file; the others believe it."""

    def find() -> dict[str, Any]:
        found = newest_good(folder, console.line)
        return {"folder": None if found is None else str(found[0])}

    chosen = company.first_does("checkpoint", find)["folder"]
    return None if chosen is None else (Path(chosen), read_manifest(Path(chosen)))


def _engine(stage: Stage, mesh: Mesh) -> tuple[Engine, list[Decoder]]:
    """This rank's parts of the model, in memory that has no values yet, and what computes with them."""
    plan, shape = stage.plan, stage.shape
    parts = build_parts(
        shape,
        COMPUTE[plan.dtype],
        mesh,
        context=plan.context,
        recompute=plan.recompute,
        recompute_layers=plan.recompute_layers,
        compile_blocks=compile_blocks if plan.compile else None,
    )
    chunk = torch.compile(loss_chunk, dynamic=False) if plan.compile else None
    loss = loss_of(plan.objective, shape, mesh, chunk)
    materialise(joined(parts), shape, mesh, None)
    balance = 0.0 if shape.adapter else plan.router_balance  # routers are frozen beside adapters
    if mesh.layout.world == 1:
        return Engine(parts[0], loss, balance), parts
    engine = Ranks(
        parts, loss, mesh, shape, micro_batch=plan.micro_batch, context=plan.context, balance=balance
    )
    return engine, parts


def _metering(stage: Stage, gauge: Gauge, company: Company) -> Metering:
    earlier = None
    if company.rank == 0:
        names = ("metrics.jsonl", "events.jsonl")
        earlier = newest_reading(*(read_rows(stage.folder / name) for name in names))
    unrecorded_s = seconds_after_last_row(stage.folder) if earlier else None
    return Metering(gauge, earlier, has_meter=company.leads, unrecorded_s=unrecorded_s)
