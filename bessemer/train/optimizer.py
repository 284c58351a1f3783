"""The update: AdamW on fp32 weights, and the learning rate of every step."""

import math
from typing import Any

import torch
from torch import nn

from bessemer.parallel.shard import sharded_over
from bessemer.planner.plan import StagePlan

_FUSED = {"cpu", "cuda", "mps", "xpu"}


def make_optimizer(model: nn.Module, plan: StagePlan) -> torch.optim.AdamW:
    """Weight decay on matrices only: norms and other vectors are scales, not directions.

    fused: one kernel for all tensors, where torch has one; elsewhere torch's own choice. Weights that are
    sharded over different ranks (dense ones and experts) are groups of their own, as a kernel wants.
    Source: arXiv:1711.05101.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    members: dict[tuple[bool, Any], list[nn.Parameter]] = {}
    for parameter in trained:
        members.setdefault((parameter.dim() >= 2, sharded_over(parameter)), []).append(parameter)
    groups = [
        {"params": each, "weight_decay": plan.weight_decay if is_matrix else 0.0}
        for (is_matrix, _), each in sorted(members.items(), key=lambda item: not item[0][0])
    ]
    fused = True if all(parameter.device.type in _FUSED for parameter in trained) else None
    return torch.optim.AdamW(groups, lr=plan.lr, betas=plan.betas, eps=plan.eps, fused=fused)


def learning_rate(plan: StagePlan, step: int) -> float:
    """Of the update that leads from `step` to `step` + 1.

    wsd: linear warm-up, flat, and over the last decay_steps linearly towards zero, which it would reach
    one step after the last (arXiv:2405.18392). cosine: down to final_lr at the last step.
    """
    number = step + 1
    if number < plan.warmup:
        return plan.lr * number / plan.warmup
    if plan.schedule == "cosine":
        progress = (number - plan.warmup) / max(1, plan.steps - plan.warmup)
        share = plan.final_lr + (1.0 - plan.final_lr) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
        return plan.lr * share
    left = plan.steps - step
    if plan.schedule == "wsd" and left <= plan.decay_steps:
        return plan.lr * left / (plan.decay_steps + 1)
    return plan.lr
