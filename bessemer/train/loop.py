"""The training loop. Read this file top to bottom; nothing important hides elsewhere.

Order inside one step is fixed and visible here: data, forward-backward, clip, update, then (when due)
validate, log, save. No hook changes it. Everything built, compiled or chosen before step 0 arrives
ready-made in `job` (train/build.py), and where the data comes from follows from the step's number.

The loss is summed over target tokens and divided once by their count in the whole step, before
clipping: 32 rows at once, 8 times 4 or 32 times 1 give the same gradient, on any number of ranks.
How ranks share the work is `job.engine`'s (parallel/engine.py); every rank runs this loop, and they agree
on losses, norms and when to stop. One device-host sync a step: loss and norm are read together before the
update, so that a step that is not finite changes no weight.
"""

import math
import time
from typing import Any

from bessemer.data.loader import Batch
from bessemer.errors import DataError, NumericsError, StoppedError
from bessemer.evaluate.loss import validation_loss
from bessemer.train.job import Job
from bessemer.train.optimizer import learning_rate
from bessemer.train.pause import Pause
from bessemer.train.state import StepStats, TrainState


def train(job: Job, state: TrainState) -> TrainState:
    """Run from `state` to `job.plan.steps`.

    Raises NumericsError when a step is not finite (it changed no weight; the checkpoints stay), and
    StoppedError when the run was asked to stop (it has saved). The last step is always saved.
    """
    saved = state.step
    stopping = job.engine.any(job.stop.asked)
    while state.step < job.plan.steps and not stopping:
        if job.pause is not None and job.pause.is_due(state.step, job.plan.log_every):
            saved, stopping = pause(job, job.pause, state, saved)
            continue
        if not job.batches.is_made(state.samples):
            with job.record.phase("sampling"):
                job.batches.make(state.samples)
        with job.record.evidence.loading():
            batch = job.batches.batch(state.samples)
        stats = train_step(job, state, batch)
        state.step += 1
        state.samples += job.plan.batch_rows
        state.tokens += stats.tokens
        state.loss = stats.loss
        job.record.end_of_step(state, stats)
        if job.tune is not None:
            job.tune.after_step(job.engine, state.step)
        stopping = stats.stop or job.stops_alone
        validated = job.is_due(job.plan.validate_every, state.step) and job.validation is not None
        if validated or stopping or job.is_due(job.plan.log_every, state.step):
            found: dict[str, Any] = {}
            if validated:
                with job.record.phase("validation"):
                    found = validate(job, state)
            job.record.write(state, stats, found)
        job.record.saved(job.saver.finished(), state.step)
        if job.is_due(job.plan.save_every, state.step):
            saved = write_checkpoint(job, state)
        stopping = stopping or job.stops_alone
    finish(job, state, saved)
    return state


def train_step(job: Job, state: TrainState, batch: Batch) -> StepStats:
    """One optimizer update from one batch."""
    num_targets = job.engine.total(batch.num_targets)
    loss = job.engine.forward_backward(batch.micro_batches, num_targets)
    mean, norm, stop = job.engine.finish(loss, num_targets, job.plan.grad_clip, job.stop.asked)
    lr = learning_rate(job.plan, state.step)
    for group in job.optimizer.param_groups:
        group["lr"] = lr
    if not (math.isfinite(mean) and math.isfinite(norm)):
        if not float(num_targets):
            raise nothing_to_learn(job, state.step + 1)
        problem = f"step {state.step + 1} is not finite, so it was not taken"
        raise not_finite(job, state.step + 1, problem, loss=mean, grad_norm=norm)
    job.optimizer.step()
    job.optimizer.zero_grad(set_to_none=True)
    job.engine.after_update()
    rows = job.plan.batch_rows if batch.rows is None else batch.rows
    return StepStats(loss=mean, grad_norm=norm, lr=lr, tokens=rows * job.plan.context, stop=stop)


def validate(job: Job, state: TrainState) -> dict[str, Any]:
    """Loss on the first held-out rows; and what the model writes by now, as an event."""
    assert job.validation is not None
    loss, _ = validation_loss(
        job.engine, job.validation, micro_batch=job.plan.micro_batch, max_rows=job.validation_rows
    )
    if not math.isfinite(loss):  # this step was finite, and blew up the weights
        problem = f"the validation loss is not finite after step {state.step}, which was not saved"
        raise not_finite(job, state.step, problem, validation_loss=loss)
    state.validation_loss = loss
    if job.sample is not None:
        job.record.samples(state.step, job.sample())
    return {"validation_loss": state.validation_loss}


def write_checkpoint(job: Job, state: TrainState) -> int:
    """Save, and in time remove what is older than the newest `keep`. The save may go on in the background."""
    job.record.sync()
    with job.record.phase("saving"):
        job.saver.save(
            state.step,
            job.engine.model,
            job.optimizer,
            state.to_json(),
            job.plan.layout.to_json(),
            job.engine.pieces,
        )
    job.record.saved(job.saver.finished(), state.step)
    return state.step


def finish(job: Job, state: TrainState, saved: int) -> None:
    """After the last step of this attempt: all of it saved, and told. StoppedError where steps are left."""
    if job.pause is not None:
        job.pause.look(state.step)  # the last step may have ended in another hour than any before
    if saved < state.step:
        write_checkpoint(job, state)
    with job.record.phase("saving"):
        job.saver.wait()
    job.record.saved(job.saver.finished(), state.step)
    if state.step < job.plan.steps:
        raise stopped(job, state)
    job.record.ended("done", state.step)


def pause(job: Job, grid: Pause, state: TrainState, saved: int) -> tuple[int, bool]:
    """Saved, then standing still until the grid is clean: (the step that is saved, whether to stop)."""
    began_s = time.monotonic()
    if saved < state.step:
        saved = write_checkpoint(job, state)
    with job.record.phase("saving"):
        job.saver.wait()
    job.record.saved(job.saver.finished(), state.step)
    stopping = grid.wait(state.step)
    job.record.resume(time.monotonic() - began_s)
    return saved, stopping


def stopped(job: Job, state: TrainState) -> StoppedError:
    reason = job.stop.reason or "another rank was asked to stop"
    job.record.ended("stop", state.step, reason=reason)
    return job.record.out_of_budget(state.step) or StoppedError(
        f"at step {state.step} of {job.plan.steps}, and saved",
        found=reason,
        wanted=f"{job.plan.steps - state.step} more steps",
        fix="run the same command again to go on",
    )


def nothing_to_learn(job: Job, step: int) -> DataError:
    """A mean over nothing is no loss of 0: it would be taken for a solved task."""
    return DataError(
        f"step {step} has nothing to learn",
        found=f"{job.plan.batch_rows} rows in which no token has a loss",
        wanted="a loss on some token of every step",
        fix="look at the rows with `bessemer data inspect`, or take larger steps (batch_tokens)",
    )


def not_finite(job: Job, step: int, problem: str, **found: float) -> NumericsError:
    """`step`: whose update was refused, or did it."""
    job.record.event("diverged", step, **{name: str(value) for name, value in found.items()})
    values = ", ".join(f"{name} {value}" for name, value in found.items())
    return NumericsError(
        problem,
        found=f"{values}, at a learning rate of {learning_rate(job.plan, step - 1):.3g}",
        wanted="finite numbers",
        fix="go on from an earlier step with a lower rate: --from RUN@STEP --run NEW "
        f"--set {job.folder.name.split('-')[0]}.lr={job.plan.lr / 3:.1e}",
    )
