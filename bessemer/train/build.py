"""From a stage to a job: the only place that knows all parts.

Order: model on the meta device, memory and first values (or the origin's weights; neither where there is
a checkpoint), recompute, compile, optimizer, then the newest good checkpoint over all of it.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from bessemer.checkpoint.folder import listed, newest_good, verify
from bessemer.checkpoint.huggingface import load_into
from bessemer.checkpoint.load import COMPUTE, load_weights, restore
from bessemer.data.loader import Batches
from bessemer.data.store import Rows
from bessemer.evaluate.answers import continuations
from bessemer.evaluate.loss import Loss, summed_loss
from bessemer.formulas.flops import train_flops_per_token
from bessemer.log import Console
from bessemer.model.decoder import Decoder
from bessemer.model.device import this_device
from bessemer.model.init import initialise
from bessemer.model.loss import loss_chunk
from bessemer.planner.facts import Facts
from bessemer.planner.plan import StagePlan
from bessemer.planner.predict import peak_tflops
from bessemer.train.compiling import check_compiler, compile_blocks, settle_compile
from bessemer.train.job import Job
from bessemer.train.optimizer import make_optimizer
from bessemer.train.record import Gauge, Recorder
from bessemer.train.stage import Stage, write
from bessemer.train.state import TrainState
from bessemer.train.stop import Stop

_SAMPLE_TOKENS = 24
_VALIDATION_TOKENS = 65536
_VALIDATION_SHARE = 0.3  # of the tokens trained on since the last validation


def build(stage: Stage, facts: Facts, console: Console, stop: Stop) -> tuple[Job, TrainState]:
    """The job of a stage that has begun, at the state where its newest good checkpoint left it."""
    stage = _compile_settled(stage, facts, console)
    device = this_device()
    model = _model(stage, device)
    loss: Loss = summed_loss
    if stage.plan.compile:
        compile_blocks(model)
        loss = partial(summed_loss, chunk=torch.compile(loss_chunk, dynamic=False))
    rows = _rows(stage, "train")
    validation = _rows(stage, "validation")
    peak = peak_tflops(facts, stage.plan.dtype)
    gauge = Gauge(
        device=device,
        flops_per_token=train_flops_per_token(stage.shape, stage.plan.context),
        peak_flops=None if peak is None else peak * 1e12,
        cores=facts.cores,
    )
    return assemble(
        folder=stage.folder,
        plan=stage.plan,
        model=model,
        loss=loss,
        batches=Batches(rows, stage.seed, stage.plan.batch_rows, stage.plan.micro_batch),
        validation=validation if len(validation) else None,
        validation_rows=_validation_rows(stage),
        gauge=gauge,
        console=console,
        stop=stop,
        sample=_sampler(stage, model, validation),
    )


def assemble(
    *,
    folder: Path,
    plan: StagePlan,
    model: nn.Module,
    loss: Loss,
    batches: Batches,
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
    optimizer = make_optimizer(model, plan)
    found = newest_good(folder, console.line)
    state = TrainState()
    if found is not None:
        restore(model, optimizer, found[0])
        state = TrainState.from_json({"step": found[1].step, **found[1].state})
    gauge = gauge or Gauge(next(model.parameters()).device)
    record = Recorder(folder, plan, gauge, console)
    job = Job(
        plan=plan,
        model=model,
        optimizer=optimizer,
        loss=loss,
        batches=batches,
        validation=validation,
        folder=folder,
        record=record,
        stop=stop,
        validation_rows=validation_rows,
        sample=sample,
    )
    if record.attempt == 1:
        record.begin("start", state.step)
    else:
        record.begin("resume", state.step, checkpoint=None if found is None else found[0].name)
    return job, state


def _model(stage: Stage, device: torch.device) -> Decoder:
    with torch.device("meta"):
        model = Decoder(stage.shape, COMPUTE[stage.plan.dtype])
    model.model.recompute = stage.plan.recompute == "full"
    if listed(stage.folder):  # which sets every weight; the origin need not be there any more
        model.to_empty(device=device)
        return model
    if stage.origin is None:
        initialise(model, stage.shape, stage.seed, device)
        return model
    model.to_empty(device=device)
    if stage.origin.kind == "huggingface":
        load_into(model, Path(stage.origin.folder))
    else:
        assert stage.origin.checkpoint is not None
        checkpoint = Path(stage.origin.checkpoint)
        verify(checkpoint)
        load_weights(model, checkpoint)
    return model


def _compile_settled(stage: Stage, facts: Facts, console: Console) -> Stage:
    """ "auto" is decided once and kept: compiled and eager code differ in the last bits."""
    decided = stage.plan.compile
    if not isinstance(decided, bool):
        if stage.compiled is None:
            answer, reason = settle_compile(stage.plan, stage.shape, facts)
            console.line(f"compile: {'yes' if answer else 'no'}, {reason}")
            stage = replace(stage, compiled=answer)
        decided = bool(stage.compiled)
    elif decided:
        check_compiler(facts.kind)
    write(stage)
    return replace(stage, plan=replace(stage.plan, compile=decided))


def _rows(stage: Stage, split: Any) -> Rows:
    if stage.kind == "finetune":
        examples = stage.examples if split == "train" else None
        return stage.data.rows(split, stage.plan.context, examples)  # type: ignore[call-arg]
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
