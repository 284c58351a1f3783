"""Checkpoints of a tiny model for the tests of what is written, found and put together."""

from pathlib import Path

import torch
from making_runs import stage_plan, tiny_model

from bessemer.checkpoint.write import save
from bessemer.model.decoder import Decoder
from bessemer.train.optimizer import make_optimizer

PLAN = stage_plan()
FILES = ("model-00000.safetensors", "optimizer-00000.safetensors")


def parts(seed: int = 1) -> tuple[Decoder, torch.optim.AdamW]:
    model = tiny_model(seed=seed)
    return model, make_optimizer(model, PLAN)


def trained(seed: int = 1) -> tuple[Decoder, torch.optim.AdamW]:
    """With an optimizer that has made one update."""
    model, optimizer = parts(seed)
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, 0.01 * (number + 1))
    optimizer.step()
    return model, optimizer


def saved(stage: Path, *steps: int) -> list[Path]:
    """Checkpoints of these steps, each of other weights."""
    return [save(stage, step, *trained(step), {"step": step}, {"replicate": 1}) for step in steps]
