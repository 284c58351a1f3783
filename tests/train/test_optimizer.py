"""Schedules against closed forms, clipping against torch's, weight decay where it belongs."""

import math

import pytest
import torch
from making_runs import stage_plan, tiny_model
from torch import nn

from bessemer.parallel.gradients import clip_gradients
from bessemer.planner.plan import StagePlan
from bessemer.train.optimizer import learning_rate, make_optimizer


def rates(plan: StagePlan) -> list[float]:
    return [learning_rate(plan, step) for step in range(plan.steps)]


def test_constant_rate_is_constant_after_its_warm_up() -> None:
    assert rates(stage_plan(steps=3, lr=0.5)) == [0.5] * 3
    assert rates(stage_plan(steps=6, lr=1.0, warmup=4)) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_wsd_warms_up_stays_and_falls_in_a_line_to_a_step_above_zero() -> None:
    plan = stage_plan(steps=10, lr=1.0, schedule="wsd", warmup=2, decay_steps=4)
    assert rates(plan) == pytest.approx([0.5, 1, 1, 1, 1, 1, 4 / 5, 3 / 5, 2 / 5, 1 / 5])
    assert rates(stage_plan(steps=2, lr=1.0, schedule="wsd")) == [1.0, 1.0]  # no decay asked for


def test_cosine_falls_from_the_peak_to_its_last_share_at_the_last_step() -> None:
    plan = stage_plan(steps=12, lr=2.0, schedule="cosine", warmup=2, final_lr=0.1)
    expected = [1.0, 2.0] + [2.0 * (0.1 + 0.9 * (1 + math.cos(math.pi * n / 10)) / 2) for n in range(1, 11)]
    assert rates(plan) == pytest.approx(expected)
    assert rates(plan)[-1] == pytest.approx(0.2)


@pytest.mark.parametrize("schedule", ["wsd", "cosine", "constant"])
def test_every_rate_is_above_zero_and_at_most_the_peak(schedule: str) -> None:
    for steps in (1, 2, 7):
        plan = stage_plan(steps=steps, lr=0.3, schedule=schedule, decay_steps=steps // 2)
        assert all(0 < rate <= 0.3 for rate in rates(plan))


def test_weight_decay_is_decoupled_and_on_matrices_only() -> None:
    model = tiny_model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = make_optimizer(model, stage_plan(lr=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    vectors = 0
    for name, parameter in model.named_parameters():
        vectors += parameter.dim() < 2
        kept = 1.0 if parameter.dim() < 2 else 1.0 - 0.1 * 0.5
        torch.testing.assert_close(parameter.detach(), before[name] * kept, msg=name)
    assert vectors == 5  # two norms a layer, and the last


def test_update_is_that_of_torchs_plain_adamw() -> None:
    plan = stage_plan(lr=0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.0)
    ours, theirs = tiny_model(), tiny_model()
    optimizers = [
        make_optimizer(ours, plan),
        torch.optim.AdamW(theirs.parameters(), lr=0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.0),
    ]
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_device_without_a_fused_update_gets_torchs_own_choice() -> None:
    assert make_optimizer(tiny_model(), stage_plan()).defaults["fused"] is True
    assert make_optimizer(tiny_model().to("meta"), stage_plan()).defaults["fused"] is None


def test_frozen_weights_are_not_trained() -> None:
    model = tiny_model()
    model.model.embed_tokens.weight.requires_grad_(False)
    optimizer = make_optimizer(model, stage_plan())
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


@pytest.mark.parametrize("most", [0.5, 1e6, None])
def test_clipping_is_that_of_torch(most: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    ours = [nn.Parameter(torch.zeros(size)) for size in ((3, 4), (5,), (), (2,))]
    theirs = [nn.Parameter(torch.zeros(parameter.shape)) for parameter in ours]
    for one, other in zip(ours[:3], theirs[:3], strict=True):  # the last has no gradient
        one.grad = torch.randn(one.shape, generator=generator)
        other.grad = one.grad.clone()
    norm = clip_gradients(ours, most)
    expected = nn.utils.clip_grad_norm_(theirs, math.inf if most is None else most)
    assert torch.equal(norm, expected)
    for one, other in zip(ours[:3], theirs[:3], strict=True):
        assert one.grad is not None and other.grad is not None
        assert torch.equal(one.grad, other.grad)
