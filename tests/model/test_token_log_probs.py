"""Log-probabilities of tokens against torch's log_softmax, and the memory that they must never need."""

import pytest
import torch
from test_next_token_loss import LargestTensor, make_inputs, small_chunks
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bessemer.formulas.memory import parts as memory
from bessemer.model.loss import IGNORED
from bessemer.model.token_log_probs import token_log_probs


def torchs(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    log_probs_NV = (hidden_ND @ weight_VD.T).log_softmax(-1)
    targets_NK = targets_N if targets_N.dim() == 2 else targets_N.unsqueeze(-1)
    picked_NK = log_probs_NV.gather(1, targets_NK.clamp_min(0)).masked_fill(targets_NK == IGNORED, 0.0)
    return picked_NK.view(targets_N.shape)


@pytest.mark.parametrize("tokens", [1, 128, 300])
@pytest.mark.parametrize("several", [1, 5])
def test_values_and_gradients_are_those_of_log_softmax(
    tokens: int, several: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_chunks(monkeypatch)
    hidden_ND, weight_VD, targets = make_inputs(tokens)
    if several > 1:
        targets = torch.stack([(targets + 7 * place) % 100 for place in range(several)], dim=1)
        targets[::3, 1] = targets[::3, 0]  # a token may stand there twice
        targets[::4, 2] = IGNORED
    outward = torch.randn(targets.shape, generator=torch.Generator().manual_seed(1))
    results = []
    for run in (token_log_probs, torchs):
        values = run(hidden_ND, weight_VD, targets)
        results.append([values, *torch.autograd.grad((values * outward).sum(), (hidden_ND, weight_VD))])
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)


def test_an_ignored_target_has_neither_value_nor_gradient() -> None:
    hidden_ND, weight_VD, targets_N = make_inputs(4)
    targets_N[:] = IGNORED
    values = token_log_probs(hidden_ND, weight_VD, targets_N)
    gradients = torch.autograd.grad(values.sum(), (hidden_ND, weight_VD))
    assert not values.any() and not any(gradient.any() for gradient in gradients)


class Matmuls(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func is torch.ops.aten.mm.default
        return func(*args, **(kwargs or {}))


def test_a_frozen_head_costs_one_matmul_less() -> None:
    hidden_ND, weight_VD, targets_N = make_inputs(8)
    counts = []
    for weight in (weight_VD, weight_VD.detach()):
        with Matmuls() as matmuls:
            token_log_probs(hidden_ND, weight, targets_N).sum().backward()
        counts.append(matmuls.count)
    assert counts == [4, 3]


def test_memory_is_a_chunk_of_logits_and_never_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_LOSS_CHUNK_ELEMENTS", 1)
    hidden_ND, weight_VD, targets_N = make_inputs(2048, vocab=512)
    with LargestTensor() as largest:
        token_log_probs(hidden_ND, weight_VD, targets_N).sum().backward()
    assert largest.elements == 128 * 512
