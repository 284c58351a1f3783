"""What every peer does alike: read the task, take batches from the token file, note each step's end.

The task is a JSON file that benchmarks/cpu_pretrain.py writes (fields: see `Task`). It is the only thing
that a peer is told, as it runs in its own environment and cannot import Bessemer.
Dims: B rows, T tokens in a row.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Task:
    layers: int
    hidden: int
    heads: int
    ffn: int
    vocab: int
    context: int
    rows: int  # micro-batch, which is the batch too
    steps: int  # warm-up included
    lr: float
    weight_decay: float
    betas: tuple[float, float]
    grad_clip: float
    compiled: bool
    tokens: str  # a .npy file of uint16
    result: str  # where to write what was measured

    def windows(self) -> np.ndarray:
        """[N, T + 1] of the token file, mapped and not read: neighbours share one token."""
        tokens = np.load(self.tokens, mmap_mode="r")
        windows = np.lib.stride_tricks.sliding_window_view(tokens, self.context + 1)
        return windows[:: self.context]


class StepClock:
    """Losses and ends of steps. The first end is that of step 1: what came before is start-up."""

    def __init__(self) -> None:
        self.ends_s: list[float] = []
        self.losses: list[float] = []

    def step_ended(self, loss: float | None = None) -> None:
        self.ends_s.append(time.perf_counter())
        if loss is not None:
            self.losses.append(loss)


def read_task() -> Task:
    values = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    return Task(**{**values, "betas": tuple(values["betas"])})


def batches(task: Task) -> Iterator[tuple[Tensor, Tensor]]:
    """tokens_BT and targets_BT of each step, read as it is trained."""
    windows = task.windows()
    for step in range(task.steps):
        rows = windows[step * task.rows : (step + 1) * task.rows].astype(np.int64)
        window = torch.from_numpy(rows)
        yield window[:, :-1].contiguous(), window[:, 1:].contiguous()


def write_result(task: Task, clock: StepClock, model: torch.nn.Module, package: str) -> None:
    assert len(clock.ends_s) == task.steps, (len(clock.ends_s), task.steps)
    result = {
        "ends_s": clock.ends_s,
        "losses": clock.losses,
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "threads": torch.get_num_threads(),
        "versions": {name: metadata.version(name) for name in (package, "torch")},
    }
    Path(task.result).write_text(json.dumps(result), encoding="utf-8")
