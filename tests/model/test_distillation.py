"""The divergence from a teacher's likeliest words against torch's kl_div, values and gradients."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bessemer.model.distillation import taught_words, teacher_divergence
from bessemer.model.loss import IGNORED
from bessemer.model.token_log_probs import token_log_probs

N, D, V = 40, 16, 50


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, head, and the teacher's logits."""
    random = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(N, D, generator=random, requires_grad=True)
    weight_VD = torch.randn(V, D, generator=random, requires_grad=True)
    return hidden_ND, weight_VD, 2.0 * torch.randn(N, V, generator=random)


def taught(hidden_ND: Tensor, weight_VD: Tensor, teacher_NV: Tensor, k: int) -> Tensor:
    teacher_NK, ids_NK = teacher_NV.log_softmax(-1).topk(k)
    student_NK = token_log_probs(hidden_ND, weight_VD, ids_NK)
    return teacher_divergence(student_NK, teacher_NK, has_rest=k < V)


def with_bucket(log_probs_NV: Tensor, ids_NK: Tensor) -> Tensor:
    """[N, K + 1] log-probabilities: of the words, and of all others together, summed one by one."""
    others_NV = torch.ones_like(log_probs_NV, dtype=torch.bool).scatter(1, ids_NK, False)
    rest_N1 = log_probs_NV.masked_fill(~others_NV, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([log_probs_NV.gather(1, ids_NK), rest_N1], dim=1)


def compare(got_N: Tensor, wanted_N: Tensor, inputs: tuple[Tensor, Tensor], tolerance: float) -> None:
    got = [got_N, *torch.autograd.grad(got_N.sum(), inputs)]
    wanted = [wanted_N, *torch.autograd.grad(wanted_N.sum(), inputs)]
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


def test_all_words_of_the_teacher_give_torchs_kl_div() -> None:
    hidden_ND, weight_VD, teacher_NV = inputs()
    student_NV = (hidden_ND @ weight_VD.T).log_softmax(-1)
    wanted_N = functional.kl_div(
        student_NV, teacher_NV.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    mean = taught(hidden_ND, weight_VD, teacher_NV, V).mean()
    torch.testing.assert_close(mean, wanted_N.mean(), rtol=1e-6, atol=1e-6)
    compare(taught(hidden_ND, weight_VD, teacher_NV, V), wanted_N, (hidden_ND, weight_VD), 2e-5)


@pytest.mark.parametrize("k", [1, 4, 12])
def test_all_other_words_are_one_outcome(k: int) -> None:
    hidden_ND, weight_VD, teacher_NV = inputs()
    ids_NK = teacher_NV.topk(k).indices
    student_NV = (hidden_ND @ weight_VD.T).log_softmax(-1)
    student, teacher = (with_bucket(rows, ids_NK) for rows in (student_NV, teacher_NV.log_softmax(-1)))
    wanted_N = functional.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    compare(taught(hidden_ND, weight_VD, teacher_NV, k), wanted_N, (hidden_ND, weight_VD), 1e-4)


def test_more_words_never_make_the_divergence_smaller() -> None:
    """Of coarser outcomes less can be told apart."""
    found = [taught(*inputs(), k).mean().item() for k in (1, 2, 5, 20, V)]
    assert found == sorted(found) and found[0] > 0


def test_a_student_like_its_teacher_has_no_loss_and_no_gradient() -> None:
    hidden_ND, weight_VD, _ = inputs()
    loss = taught(hidden_ND, weight_VD, (hidden_ND @ weight_VD.T).detach(), 3).sum()
    assert abs(loss.item()) < 1e-4
    assert torch.autograd.grad(loss, hidden_ND)[0].abs().max() < 1e-5


@pytest.mark.parametrize("sure_of", ["teacher", "student"])
def test_a_rest_that_is_rounded_away_gives_finite_gradients(sure_of: str) -> None:
    hidden_ND, weight_VD, teacher_NV = inputs()
    if sure_of == "teacher":
        teacher_NV = 100.0 * teacher_NV
    else:
        hidden_ND = (100.0 * hidden_ND).detach().requires_grad_()
    loss = taught(hidden_ND, weight_VD, teacher_NV, 4).sum()
    assert loss.isfinite() and torch.autograd.grad(loss, hidden_ND)[0].isfinite().all()


def test_places_without_a_target_have_no_words() -> None:
    words = taught_words(torch.tensor([[3, 4], [5, 6]]), torch.tensor([IGNORED, 1]))
    assert words.tolist() == [[IGNORED, IGNORED], [5, 6]]
