"""The update: AdamW on fp32 weights, clipping by the global norm, the learning rate of every step."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bessemer.planner.plan import StagePlan

_FUSED = {"cpu", "cuda", "mps", "xpu"}


def make_optimizer(model: nn.Module, plan: StagePlan) -> torch.optim.AdamW:
    """Weight decay on matrices only: norms and other vectors are scales, not directions.

    fused: one kernel for all tensors, where torch has one; elsewhere torch's own choice.
    Source: arXiv:1711.05101.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": plan.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = True if all(parameter.device.type in _FUSED for parameter in trained) else None
    return torch.optim.AdamW(groups, lr=plan.lr, betas=plan.betas, eps=plan.eps, fused=fused)


def clip_gradients(parameters: Sequence[Tensor], most: float | None) -> Tensor:
    """Scale all gradients so that their global L2 norm is at most `most`. Returns the norm before."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if most is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return norm


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
