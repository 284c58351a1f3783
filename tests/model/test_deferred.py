"""Weight gradients that wait, against autograd's own."""

import gc
import weakref

import pytest
import torch
from making_runs import TinyRows, tiny_model
from torch import Tensor

from bessemer.data.loader import micro_batch
from bessemer.model.deferred import Deferral, is_deferring, set_deferring
from bessemer.model.layers import Linear, fused_linear
from bessemer.parallel.engine import summed_loss

SIZES = {1: (5,), 2: (6, 4), 3: (3, 5, 2)}


@pytest.fixture(autouse=True)
def _switched_off_after() -> object:
    yield
    set_deferring(False)


def layers(sizes: tuple[int, ...]) -> list[Linear]:
    found = [Linear(7, size) for size in sizes]
    for number, layer in enumerate(found):
        torch.nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(number))
    return found


def run(x: Tensor, parts: list[Linear], deferral: Deferral | None = None) -> None:
    """One forward and backward pass; with a deferral, its backward pass without weights."""
    set_deferring(deferral is not None)
    out = torch.cat(fused_linear(x, *parts), -1)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out.dtype)
    if deferral is None:
        out.backward(grad)
        return
    with deferral:
        out.backward(grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_parts", [1, 2, 3])
def test_gradients_are_those_of_autograd_and_come_in_two_turns(num_parts: int, dtype: torch.dtype) -> None:
    x = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(3)).to(dtype)
    wanted, found = layers(SIZES[num_parts]), layers(SIZES[num_parts])
    x_wanted, x_found = x.clone().requires_grad_(), x.clone().requires_grad_()
    for _ in range(2):  # the second adds to the first
        run(x_wanted, wanted)
        deferral = Deferral()
        before = [layer.weight.grad.clone() if layer.weight.grad is not None else None for layer in found]
        run(x_found, found, deferral)
        after = [layer.weight.grad for layer in found]
        assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(before, after, strict=True))
        torch.testing.assert_close(x_found.grad, x_wanted.grad, rtol=1e-6, atol=1e-6)
        deferral.run()
        for one, other in zip(found, wanted, strict=True):
            assert one.weight.grad is not None and one.weight.grad.dtype == torch.float32
            assert not one.weight.grad._is_view(), "a view would keep the other parts' gradients alive"
            torch.testing.assert_close(one.weight.grad, other.weight.grad, rtol=1e-6, atol=1e-6)


def test_a_whole_model_gets_the_same_gradients() -> None:
    part = micro_batch(TinyRows(4), range(4))
    wanted, found = tiny_model(), tiny_model()
    summed_loss(wanted, part).backward()
    set_deferring(True)
    loss, deferral = summed_loss(found, part), Deferral()
    with deferral:
        loss.backward()
    waiting = {name for name, weight in found.named_parameters() if weight.grad is None}
    assert waiting == {name for name, _ in found.named_parameters() if "_proj" in name}
    deferral.run()
    for (name, one), other in zip(found.named_parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-7, msg=name)


def test_a_backward_pass_outside_a_deferral_is_complete() -> None:
    set_deferring(True)
    x, parts, whole = torch.randn(3, 7), layers((4, 2)), layers((4, 2))
    torch.cat(fused_linear(x, *parts), -1).sum().backward()
    set_deferring(False)
    torch.cat(fused_linear(x, *whole), -1).sum().backward()
    for one, other in zip(parts, whole, strict=True):
        torch.testing.assert_close(one.weight.grad, other.weight.grad)


def test_an_input_that_wants_no_gradient_gets_none() -> None:
    x, parts, deferral = torch.randn(3, 7), layers((4,)), Deferral()
    run(x, parts, deferral)
    deferral.run()
    assert x.grad is None and parts[0].weight.grad is not None


def test_what_waits_is_freed_when_it_was_run() -> None:
    x, parts, deferral = torch.randn(3, 7).mul(1.0), layers((4,)), Deferral()
    seen = weakref.ref(x)
    run(x, parts, deferral)
    del x
    gc.collect()
    assert seen() is not None, "its weight gradient waits for it"
    deferral.run()
    assert seen() is None
    grad = parts[0].weight.grad
    assert grad is not None
    before = grad.clone()
    deferral.run()  # nothing is left
    assert torch.equal(grad, before)


def test_without_gradients_nothing_is_built() -> None:
    set_deferring(True)
    assert is_deferring()
    with torch.no_grad():
        assert not is_deferring()
        model, part = tiny_model(), micro_batch(TinyRows(2), range(2))
        set_deferring(False)
        plain = summed_loss(model, part)
        set_deferring(True)
        assert torch.equal(summed_loss(model, part), plain)
    set_deferring(False)
    assert not is_deferring()


def test_two_deferrals_at_once_are_a_mistake_of_ours() -> None:
    with Deferral(), pytest.raises(AssertionError, match="two backward passes"), Deferral():
        pass
    with Deferral():  # the first was left in order
        pass
