"""Losses of distillation and of sampled answers on packed rows, in one process and on many ranks."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from making_answers import AnswerColumns
from making_layouts import SHAPES
from making_ranks import Pool
from making_runs import tiny_model
from making_steps import Step, assert_same, on_ranks, one_process
from torch import Tensor
from torch.nn import functional

from bessemer.data.loader import MicroBatch, micro_batch
from bessemer.data.rows import NO_LOSS
from bessemer.formulas.objective import Objective
from bessemer.model.decoder import Decoder
from bessemer.parallel.documents import Neighbours
from bessemer.parallel.token_losses import PolicyLoss, TeacherLoss

reference = cache(one_process)
SHAPE = SHAPES["dense"]
LAYOUTS = [
    *("shard=2", "tensor=2", "pipeline=2", "context=2"),
    pytest.param("replicate=2,tensor=2", marks=pytest.mark.slow),
]


def part_and_log_probs(model: Decoder, temperature: float = 1.0) -> tuple[MicroBatch, Tensor]:
    """Some rows, the last of them empty, and the model's log-probabilities [B, T, V]."""
    part = micro_batch(AnswerColumns(4, SHAPE), range(3), 4)
    logits_BTV = model.logits(model(part.tokens_BT, part.starts_BT)).float()
    return part, (logits_BTV / temperature).log_softmax(-1)


def assert_same_loss(ours: Tensor, theirs: Tensor, model: Decoder) -> None:
    weights = list(model.parameters())
    found, wanted = ([loss, *torch.autograd.grad(loss, weights)] for loss in (ours, theirs))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-5)


def test_a_teachers_loss_on_packed_rows_is_that_of_each_token_alone() -> None:
    model = tiny_model(SHAPE)
    part, log_probs_BTV = part_and_log_probs(model)
    theirs = torch.zeros(())
    for row, place in (part.targets_BT != NO_LOSS).nonzero().tolist():
        ids, teacher = (part.columns[f"teacher_{name}"][row, place] for name in ("ids", "log_probs"))
        others = torch.ones(SHAPE.vocab, dtype=torch.bool).scatter(0, ids, False)
        student = log_probs_BTV[row, place]
        student = torch.cat([student[ids], student[others].logsumexp(0, keepdim=True)])
        teacher = torch.cat([teacher, (1.0 - teacher.exp().sum()).log()[None]])
        theirs = theirs + functional.kl_div(student, teacher, reduction="sum", log_target=True)
    assert_same_loss(TeacherLoss(Neighbours(), SHAPE.vocab)(model, part), theirs, model)


@pytest.mark.parametrize(("beta", "temperature"), [(0.0, 1.0), (0.04, 0.7)])
def test_a_policys_loss_on_packed_rows_is_trls_formula(beta: float, temperature: float) -> None:
    """GRPOTrainer._compute_loss of TRL 1.16 with loss_type "dapo", not yet divided."""
    model = tiny_model(SHAPE)
    part, log_probs_BTV = part_and_log_probs(model, temperature)
    mask = part.targets_BT != NO_LOSS
    logps_BT = log_probs_BTV.gather(-1, part.targets_BT.clamp_min(0)[..., None])[..., 0]
    moved_BT = logps_BT.detach() + part.columns["advantage"].flip(0) * 0.3  # some beyond the clip, some not
    part = replace(part, columns={**part.columns, "old_log_probs": moved_BT})
    logps = logps_BT[mask]
    old, ref, adv = (
        part.columns[name][mask] for name in ("old_log_probs", "reference_log_probs", "advantage")
    )
    coef_1 = torch.exp(logps - old)
    coef_2 = torch.clamp(coef_1, 1 - 0.2, 1 + 0.2)
    per_token_loss = -torch.min(coef_1 * adv, coef_2 * adv)
    per_token_loss = per_token_loss + beta * (torch.exp(ref - logps) - (ref - logps) - 1)
    assert 0.1 < (coef_1 != coef_2).float().mean() < 0.9
    objective = Objective("grpo", beta=beta, clip=0.2, temperature=temperature)
    assert_same_loss(PolicyLoss(objective, Neighbours())(model, part), per_token_loss.sum(), model)


@pytest.mark.parametrize("objective", ["distill", "grpo"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_the_loss_and_gradients_of_one_process(
    objective: str, layout: str, ranks: Pool
) -> None:
    wanted = reference(Step("dense", objective=objective))
    assert_same(on_ranks(Step("dense", layout, objective=objective), ranks), wanted)
