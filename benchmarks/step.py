"""Bessemer's own training step without its data and files: to take apart, and to time on a GPU.

It is made of what train/build.py makes a job of, and run by the loop's `train_step`; what a job has
besides (rows, records, checkpoints) is left out, as a step does not touch it.
Dims: B rows, T tokens in a row.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bessemer.data.loader import Batch, MicroBatch
from bessemer.measure.facts import gather
from bessemer.model.decoder import Decoder
from bessemer.model.init import initialise
from bessemer.model.loss import loss_chunk
from bessemer.parallel.engine import Engine, Loss, summed_loss
from bessemer.planner.plan import Plan
from bessemer.planner.resolve import resolve
from bessemer.recipe.load import parse
from bessemer.train.compiling import compile_blocks
from bessemer.train.job import Job
from bessemer.train.loop import train_step
from bessemer.train.optimizer import make_optimizer
from bessemer.train.state import TrainState
from bessemer.train.stop import Stop

_COMPUTE = {"bf16": torch.bfloat16, "fp32": torch.float32}


def plan_of(
    recipe_toml: str, device: torch.device, *, vocab: int | None = None, overrides: Sequence[str] = ()
) -> Plan:
    """What Bessemer would do with this recipe here. vocab: of a ready tokenizer that the recipe names."""
    recipe = parse(recipe_toml, "the benchmark's recipe", list(overrides))
    return resolve(recipe, gather(recipe, Path(), device, vocab=vocab))


class BessemerStep:
    """A model under training: each call is one update."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        stage = plan.pretrain
        with torch.device("meta"):
            model = Decoder(plan.shape, _COMPUTE[stage.dtype])
        initialise(model, plan.shape, plan.seed, device)
        loss: Loss = summed_loss
        if stage.compile:
            compile_blocks(model)
            loss = partial(summed_loss, chunk=torch.compile(loss_chunk, dynamic=False))
        unused: Any = None
        self._state = TrainState()
        self.job = Job(
            plan=stage,
            engine=Engine(model, loss, stage.router_balance),
            optimizer=make_optimizer(model, stage),
            batches=unused,
            validation=None,
            folder=unused,
            saver=unused,
            record=unused,
            stop=Stop(),
        )

    def __call__(self, window_BT: Tensor) -> float:
        """The loss. window_BT: [B, T + 1] token ids on the CPU, one document a row."""
        stats = train_step(self.job, self._state, batch_of(window_BT, self.job.plan.micro_batch))
        self._state = replace(self._state, step=self._state.step + 1)
        return stats.loss


def batch_of(window_BT: Tensor, micro_batch: int) -> Batch:
    parts = [
        MicroBatch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), torch.zeros_like(rows[:, 1:]))
        for rows in window_BT.split(micro_batch)
    ]
    return Batch(parts, sum(part.targets_BT.numel() for part in parts))
