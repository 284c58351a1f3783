"""From a stage to a job: the only place that knows all parts.

Order: this rank's part of the model on the meta device (parallel/apply.py), memory, first values
(train/first_weights.py), optimizer, then the newest good checkpoint over all of it.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from bessemer.checkpoint.folder import Manifest, newest_good, read_manifest
from bessemer.checkpoint.load import COMPUTE, restore
from bessemer.checkpoint.saver import Saver
from bessemer.data.loader import Batches
from bessemer.data.mixture import Mixture
from bessemer.data.prepared import PreparedTask
from bessemer.data.rows import Rows
from bessemer.energy.accounting.readings import newest_reading
from bessemer.energy.grid.pausing import PauseRule
from bessemer.evaluate.answers import continuations
from bessemer.formulas.flops import train_flops_per_token
from bessemer.formulas.objective import WITH_REFERENCE
from bessemer.log import Console
from bessemer.model.decoder import Decoder
from bessemer.model.device import this_device
from bessemer.model.loss import loss_chunk
from bessemer.parallel.apply import build_parts, joined, materialise
from bessemer.parallel.engine import Engine, Loss, Ranks
from bessemer.parallel.mesh import Mesh
from bessemer.planner.machine.facts import Facts
from bessemer.planner.plan import StagePlan
from bessemer.planner.speed import peak_tflops
from bessemer.rundir import read_rows
from bessemer.train.budget import budget_watch, check_metered
from bessemer.train.columns import check_columns, columns_of
from bessemer.train.compiling import compile_blocks
from bessemer.train.expect import Expected, expected_of
from bessemer.train.first_weights import set_first_weights
from bessemer.train.gauge import Gauge
from bessemer.train.job import Feed, Job
from bessemer.train.levers import begin_tune
from bessemer.train.metering import Metering, seconds_after_last_row
from bessemer.train.objective import loss_of
from bessemer.train.optimizer import make_optimizer
from bessemer.train.pause import Pause
from bessemer.train.ranks import ALONE, Company
from bessemer.train.record import Recorder
from bessemer.train.reference import keep_reference
from bessemer.train.silence import Silence
from bessemer.train.stage import Stage
from bessemer.train.state import TrainState
from bessemer.train.stop import Stop

FeedOf = Callable[[Stage, Engine, Console, Company], Feed]  # as `prepared_feed`
_SAMPLE_TOKENS = 24
_VALIDATION_TOKENS = 65536
_VALIDATION_SHARE = 0.3  # of the tokens trained on since the last validation


@dataclass(frozen=True)
class Machine:
    """What must be known of a device to turn times into figures."""

    kind: str
    cores: int
    peak_flops: float | None  # of one device; on a CPU of all its cores
    expected: dict[str, Any] | None = None  # of a step: train/expect.py, as JSON
    device_name: str | None = None  # of its accelerators, by which their power is known
    power_command: list[str] = field(default_factory=list)  # that prints the node's watts
    tune: dict[str, Any] | None = None  # levers: train/levers.py
    pause: dict[str, Any] | None = None  # a PauseRule (energy/grid/pausing.py)


def machine_of(
    stage: Stage,
    facts: Facts,
    power_command: Sequence[str] = (),
    *,
    tune: dict[str, Any] | None = None,
    pause: dict[str, Any] | None = None,
) -> Machine:
    peak = peak_tflops(facts, stage.plan.dtype)
    # With answers to sample a step's time is another matter, and would teach the planner what is not so.
    expected = expected_of(stage, facts) if stage.plan.objective.rollouts is None else None
    return Machine(
        facts.kind,
        facts.cores,
        None if peak is None else peak * 1e12,
        None if expected is None else expected.to_json(),
        None if facts.kind == "cpu" else facts.device,
        list(power_command),
        tune=tune,
        pause=pause,
    )


def prepared_feed(stage: Stage, engine: Engine, console: Console, company: Company) -> Batches:
    """The rows of the stage's data, which is there before training."""
    mixture = None if stage.mixture is None else Mixture(stage.mixture.kept)
    plan, rank, ranks = stage.plan, engine.data_rank, engine.data_ranks
    rows = _rows(stage, "train")
    return Batches(rows, stage.seed, plan.batch_rows, plan.micro_batch, rank, ranks, mixture)


def build(
    stage: Stage,
    machine: Machine,
    console: Console,
    stop: Stop,
    company: Company = ALONE,
    feed_of: FeedOf = prepared_feed,
) -> tuple[Job, TrainState]:
    """This rank's job of a stage that has begun, at the state where its newest good checkpoint left it."""
    plan, shape = stage.plan, stage.shape
    mesh = Mesh(plan.layout, this_device())
    gauge = _gauge(stage, machine, mesh, company)
    metering = _metering(stage, gauge, company)  # first: what follows draws, too
    with ExitStack() as on_failure:
        on_failure.callback(metering.close)
        company.first_does("metered", lambda: check_metered(stage.folder, metering.missing))
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
        engine = _engine(stage, parts, loss, mesh)
        set_first_weights(stage, engine, company)
        if plan.objective.kind in WITH_REFERENCE:
            keep_reference(stage, engine, mesh, company, console)
        check_columns(stage, company)
        validation = _rows(stage, "validation")
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
            validation_rows=_validation_rows(stage),
            gauge=gauge,
            metering=metering,
            sample=_sampler(stage, parts[0], validation) if engine.world == 1 else None,
        )
        on_failure.callback(job.abandon)
        if isinstance(job.record, Recorder):
            job.record.budget = budget_watch(stage.folder, plan, engine.world, stop)
        if machine.pause is not None:
            pause = Pause(PauseRule(**machine.pause), job.engine, job.record, stop, console)
            on_failure.callback(pause.close)
            company.first_does("grid", pause.open)
            job = replace(job, pause=pause)
        if machine.tune is not None:
            job = replace(job, tune=begin_tune(machine.tune, job, state.step, company, console))
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
    found = _newest(folder, console, company)
    state = TrainState()
    if found is not None:
        restore(engine.model, optimizer, found[0], engine.pieces)
        state = TrainState.from_json({"step": found[1].step, **found[1].state})
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
        record.begin("resume", state.step, checkpoint=None if found is None else found[0].name)
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


def _newest(folder: Path, console: Console, company: Company) -> tuple[Path, Manifest] | None:
    """The first rank reads and hashes every file; the others believe it."""

    def find() -> dict[str, Any]:
        found = newest_good(folder, console.line)
        return {"folder": None if found is None else str(found[0])}

    chosen = company.first_does("checkpoint", find)["folder"]
    return None if chosen is None else (Path(chosen), read_manifest(Path(chosen)))


def _engine(stage: Stage, parts: list[Decoder], loss: Loss, mesh: Mesh) -> Engine:
    plan = stage.plan
    balance = 0.0 if stage.shape.adapter else plan.router_balance  # routers are frozen beside adapters
    if mesh.layout.world == 1:
        return Engine(parts[0], loss, balance)
    return Ranks(
        parts,
        loss,
        mesh,
        stage.shape,
        micro_batch=plan.micro_batch,
        context=plan.context,
        balance=balance,
    )


def _gauge(stage: Stage, machine: Machine, mesh: Mesh, company: Company) -> Gauge:
    on_cpu = machine.kind == "cpu"
    devices = company.hosts if on_cpu else mesh.layout.world
    return Gauge(
        device=mesh.device,
        flops_per_token=train_flops_per_token(stage.shape, stage.plan.context),
        peak_flops=None if machine.peak_flops is None else machine.peak_flops * devices,
        cores=machine.cores,
        accelerators=None if on_cpu else company.accelerators(mesh.device),
        hosts=company.hosts,
        fellows=company.fellows,
        expected=None if machine.expected is None else Expected.from_json(machine.expected),
        device_name=machine.device_name,
        power_command=tuple(machine.power_command),
    )


def _metering(stage: Stage, gauge: Gauge, company: Company) -> Metering:
    earlier = None
    if company.rank == 0:
        names = ("metrics.jsonl", "events.jsonl")
        earlier = newest_reading(*(read_rows(stage.folder / name) for name in names))
    unrecorded_s = seconds_after_last_row(stage.folder) if earlier else None
    return Metering(gauge, earlier, has_meter=company.leads, unrecorded_s=unrecorded_s)


def _rows(stage: Stage, split: Any) -> Rows:
    if stage.kind == "finetune":
        examples = stage.examples if split == "train" else None
        assert isinstance(stage.data, PreparedTask)
        return stage.data.rows(split, stage.plan.context, examples, columns_of(stage, split))
    return stage.data.rows(split, stage.plan.context)


def _validation_rows(stage: Stage) -> int:
    """Held-out rows that are measured during training; `evaluate` measures all of them.

    A validation costs a third of a step's FLOPs per token, so in pre-training the share keeps all of them
    under a tenth of the run. A task's are all measured: stages that are compared must see the same ones.
    """
    plan = stage.plan
    most = _VALIDATION_TOKENS // plan.context
    if stage.kind == "pretrain":
        most = min(most, round(_VALIDATION_SHARE * plan.validate_every * plan.batch_rows))
    return max(1, most)


def _sampler(stage: Stage, model: Decoder, validation: Rows) -> Callable[[], list[dict[str, Any]]] | None:
    """What the model writes after held-out beginnings, at each validation of pre-training."""
    if stage.kind != "pretrain" or not len(validation):
        return None
    tokenizer = Tokenizer.from_file(str(stage.folder / "tokenizer.json"))
    return partial(continuations, model, validation, tokenizer, stage.shape.eos_id, _SAMPLE_TOKENS)
