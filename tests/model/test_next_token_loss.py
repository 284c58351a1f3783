"""The chunked loss against torch's cross_entropy, and the memory that it must never need."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bessemer.formulas.memory import parts as memory
from bessemer.model.loss import IGNORED, loss_chunk, next_token_loss

HIDDEN = 24
VOCAB = 100
Inputs = tuple[Tensor, Tensor, Tensor]
Results = list[Tensor]  # loss and its gradients to hidden and weight


class LargestTensor(TorchDispatchMode):
    """Remembers the elements of the largest tensor that any operator gave back."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *sizes])
        return out


def make_inputs(tokens: int, vocab: int = VOCAB, hidden: int = HIDDEN, ignored: float = 0.3) -> Inputs:
    generator = torch.Generator().manual_seed(tokens)
    hidden_ND = torch.randn(tokens, hidden, generator=generator)
    weight_VD = torch.randn(vocab, hidden, generator=generator) * 0.5
    targets_N = torch.randint(0, vocab, (tokens,), generator=generator)
    targets_N[torch.rand(tokens, generator=generator) < ignored] = IGNORED
    return hidden_ND.requires_grad_(), weight_VD.requires_grad_(), targets_N


def torchs(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    return functional.cross_entropy(hidden_ND @ weight_VD.T, targets_N, reduction="sum")


def with_gradients(run: Callable[..., Tensor], inputs: Inputs, scale: float = 1.0) -> Results:
    loss = run(*inputs)
    return [loss.detach(), *torch.autograd.grad(loss * scale, inputs[:2])]


def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of the smallest size, 128 tokens."""
    monkeypatch.setattr(memory, "_LOSS_CHUNK_ELEMENTS", 1)


@pytest.mark.parametrize("tokens", [1, 127, 128, 129, 256, 300])
def test_loss_and_gradients_are_those_of_cross_entropy(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    small_chunks(monkeypatch)
    inputs = make_inputs(tokens, ignored=0.3 if tokens > 1 else 0.0)
    for got, want in zip(
        with_gradients(next_token_loss, inputs), with_gradients(torchs, inputs), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_scaled_loss_has_scaled_gradients() -> None:
    """As the training loop does: divided by the global number of targets."""
    inputs = make_inputs(300)
    got, want = (with_gradients(run, inputs, scale=1 / 77) for run in (next_token_loss, torchs))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7)


def test_chunks_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs(1000)
    whole = with_gradients(next_token_loss, inputs)
    for elements in (1, 128 * VOCAB, 300 * VOCAB, 1000 * VOCAB):
        monkeypatch.setattr(memory, "_LOSS_CHUNK_ELEMENTS", elements)
        torch.testing.assert_close(with_gradients(next_token_loss, inputs), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("elements", [1, 200 * VOCAB, 5000 * VOCAB])
@pytest.mark.parametrize("tokens", [0, 1, 128, 129, 511, 1000])
def test_chunks_cover_every_token_once_in_few_sizes(
    tokens: int, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_LOSS_CHUNK_ELEMENTS", elements)
    seen: list[Tensor] = []

    def spy(hidden_CD: Tensor, weight_VD: Tensor, targets_C: Tensor, learns: bool) -> tuple[Any, ...]:
        seen.append(hidden_CD)
        return loss_chunk(hidden_CD, weight_VD, targets_C, learns)

    hidden, weight, targets = make_inputs(tokens)
    got = next_token_loss(hidden, weight, targets, spy)
    torch.testing.assert_close(got, torchs(hidden, weight, targets), rtol=1e-5, atol=0)
    assert torch.equal(torch.cat([*seen, hidden[:0]]), hidden)
    sizes = [len(rows) for rows in seen]
    assert len(set(sizes[:-1])) <= 1 and sizes[-1:] <= sizes[:1]


@pytest.mark.parametrize("which", ["first chunk", "last chunk", "all"])
def test_rows_without_targets_give_zero_loss_and_gradient(
    which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_chunks(monkeypatch)
    hidden, weight, targets = make_inputs(300)
    rows = {"first chunk": slice(128), "last chunk": slice(256, 300), "all": slice(None)}[which]
    targets[rows] = IGNORED
    loss, grad_hidden, grad_weight = with_gradients(next_token_loss, (hidden, weight, targets))
    assert torch.equal(grad_hidden[rows], torch.zeros_like(hidden[rows]))
    if which == "all":
        assert loss == 0.0 and not grad_weight.any()
    else:
        torch.testing.assert_close(loss, torchs(hidden, weight, targets))


def test_large_logits_neither_overflow_nor_lose_the_loss() -> None:
    hidden, weight, targets = make_inputs(200)
    inputs = ((hidden.detach() * 300).requires_grad_(), weight, targets)
    got, want = (with_gradients(run, inputs) for run in (next_token_loss, torchs))
    assert got[0].isfinite() and got[0] > 1e4
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-3 * float(theirs.abs().max()))


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("ignored", [0.3, 1.1], ids=["some ignored", "all ignored"])
def test_without_gradients_the_loss_is_the_same(
    compute: torch.dtype, ignored: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_chunks(monkeypatch)
    hidden, weight, targets = make_inputs(300, ignored=ignored)
    trained = next_token_loss(hidden.to(compute), weight, targets)
    with torch.no_grad():
        evaluated = next_token_loss(hidden.to(compute), weight, targets)
    assert evaluated.dtype == torch.float32 and not evaluated.requires_grad
    torch.testing.assert_close(evaluated, trained.detach(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("weight_type", [torch.float32, torch.bfloat16], ids=str)
def test_bf16_is_near_fp32_and_gradients_keep_the_types_of_their_inputs(
    weight_type: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_chunks(monkeypatch)
    hidden, weight, targets = make_inputs(700)
    inputs = (
        hidden.detach().bfloat16().requires_grad_(),
        weight.detach().to(weight_type).requires_grad_(),
        targets,
    )
    loss, *grads = with_gradients(next_token_loss, inputs)
    exact, *wanted = with_gradients(torchs, (inputs[0].float(), inputs[1].float(), targets))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=2e-3, atol=0)
    for got, want, source in zip(grads, wanted, inputs[:2], strict=True):
        assert got.dtype == source.dtype
        assert (got.float() - want).norm() <= 0.01 * want.norm()


def test_bf16_weight_gradient_is_added_up_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 100 chunks, bf16 would lose each addend below 1/256 of the sum."""
    small_chunks(monkeypatch)
    part = make_inputs(128, ignored=0.0)
    hidden, targets = part[0].detach().repeat(100, 1), part[2].repeat(100)
    inputs = (hidden.bfloat16().requires_grad_(), part[1], targets)
    once = with_gradients(next_token_loss, (part[0].detach().bfloat16().requires_grad_(), part[1], part[2]))
    many = with_gradients(next_token_loss, inputs)
    torch.testing.assert_close(many[2], once[2] * 100, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_no_tensor_has_tokens_times_vocabulary_elements(
    training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, vocab, hidden = 2048, 512, 16
    monkeypatch.setattr(memory, "_LOSS_CHUNK_ELEMENTS", 128 * vocab)
    inputs = make_inputs(tokens, vocab, hidden)
    largest: dict[Callable[..., Tensor], int] = {}
    for run in (next_token_loss, torchs):
        with torch.set_grad_enabled(training), LargestTensor() as watched:
            loss = run(*inputs)
            if training:
                loss.backward()
        largest[run] = watched.elements
    assert largest[torchs] == tokens * vocab  # so the watch sees what it should
    assert largest[next_token_loss] == 128 * vocab


def test_second_backward_pass_is_refused_not_scaled_twice() -> None:
    hidden, weight, targets = make_inputs(50)
    loss = next_token_loss(hidden, weight, targets) * 0.5
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
