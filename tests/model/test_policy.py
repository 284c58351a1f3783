"""GRPO's loss against TRL's own lines (GRPOTrainer._compute_loss, 1.16, loss_type "dapo")."""

import numpy as np
import pytest
import torch
from torch import Tensor

from bessemer.model.policy import advantages, policy_losses

A, T = 6, 9  # answers, tokens of the longest


def trls(logps: Tensor, old: Tensor, ref: Tensor, adv: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Its names and order; padded answers, advantages one an answer."""
    clip = 0.2
    coef_1 = torch.exp(logps - old)
    coef_2 = torch.clamp(coef_1, 1 - clip, 1 + clip)
    per_token_loss = -torch.min(coef_1 * adv.unsqueeze(1), coef_2 * adv.unsqueeze(1))
    per_token_kl = torch.exp(ref - logps) - (ref - logps) - 1
    per_token_loss = per_token_loss + beta * per_token_kl
    return (per_token_loss * mask).sum() / mask.sum()


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_loss_and_gradients_are_trls(beta: float) -> None:
    random = torch.Generator().manual_seed(0)
    logps, old, ref = (-2.0 * torch.rand(A, T, generator=random) for _ in range(3))
    old = logps + 0.3 * torch.randn(A, T, generator=random)  # some inside the clip, some beyond either end
    adv = torch.randn(A, generator=random)
    lengths = torch.tensor([9, 1, 4, 7, 9, 2])
    mask = (torch.arange(T) < lengths[:, None]).float()
    results = []
    for packed in (False, True):
        leaf = logps.clone().requires_grad_()
        if packed:  # as our rows hold them: one token after the other, advantages one a token
            kept = mask.bool()
            adv_AT = adv[:, None].expand(A, T)
            losses = policy_losses(leaf[kept], old[kept], adv_AT[kept], 0.2, ref[kept], beta)
            loss = losses.sum() / kept.sum()
        else:
            loss = trls(leaf, old, ref, adv, mask, beta)
        results.append([loss, *torch.autograd.grad(loss, leaf)])
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)
    clipped = ((logps - old).exp() - 1).abs() > 0.2
    assert 0.1 < clipped.float().mean() < 0.9


def test_advantages_are_trls() -> None:
    rewards = np.array([[1.0, 0.0, 0.0, 1.0], [0.5, 0.5, 0.5, 0.5], [0.0, 0.0, 0.0, 1.0]])
    grouped = torch.tensor(rewards)
    std = grouped.std(dim=1, keepdim=True)  # TRL's nanstd: with n - 1
    wanted = (grouped - grouped.mean(dim=1, keepdim=True)) / (std + 1e-4)
    np.testing.assert_allclose(advantages(rewards), wanted.numpy(), rtol=1e-12)
    assert (advantages(rewards)[1] == 0).all()  # equal rewards teach nothing
