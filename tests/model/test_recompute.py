"""Activations that are made again: the same numbers, without what was promised not to be repeated."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from making_layouts import DENSE, SHAPES
from making_runs import TinyRows
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.checkpoint import set_checkpoint_early_stop

from bessemer.data.loader import MicroBatch, micro_batch
from bessemer.model import frozen
from bessemer.model.attention import choose
from bessemer.model.decoder import Decoder
from bessemer.model.init import initialise
from bessemer.model.moe import MoE
from bessemer.parallel.engine import summed_loss
from bessemer.parallel.traffic import TensorMemory

MATMULS = ("mm", "addmm", "bmm", "_grouped_mm")
WIDE = replace(DENSE, head_dim=32)  # that our own CPU kernel takes, in bf16


class Operators(TorchDispatchMode):
    """Counts matmuls and attention that run while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        self.count["matmul" if name in MATMULS else name] += 1
        return func(*args, **(kwargs or {}))


def build(shape: str, dtype: torch.dtype, recompute: str, layers: int | None = None) -> Decoder:
    chosen = WIDE if shape == "wide" else SHAPES[shape]
    with torch.device("meta"):
        model = Decoder(chosen, dtype)
    initialise(model, chosen, 1, "cpu")
    model.model.recompute, model.model.recompute_layers = recompute, layers
    return model


def part_of(model: Decoder) -> MicroBatch:
    part = micro_batch(TinyRows(4, model.shape), range(3), 4)
    balance_B = torch.tensor([0.3, 0.1, 0.2, 0.0]) if model.shape.experts else None
    return replace(part, balance_B=balance_B)


def step(model: Decoder) -> tuple[Tensor, list[Tensor], Counter[str], Counter[str]]:
    """Loss, gradients, and the operators of the forward and of the backward pass."""
    part = part_of(model)
    with Operators() as forward:
        loss = summed_loss(model, part)
    with Operators() as backward:
        loss.backward()
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    assert len(gradients) == len(list(model.parameters()))
    return loss.detach(), gradients, forward.count, backward.count


@pytest.mark.parametrize("recompute", ["selective", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", ["dense", "wide", "moe", "glm"])
def test_loss_and_gradients_are_bit_for_bit_those_without(
    shape: str, dtype: torch.dtype, recompute: str
) -> None:
    if shape == "wide" and dtype == torch.bfloat16 and choose("cpu", dtype, 32) != "cpu":
        pytest.skip("our attention kernel needs AMX or AVX512_BF16")
    loss, gradients, *_ = step(build(shape, dtype, recompute))
    plain_loss, plain_gradients, *_ = step(build(shape, dtype, "none"))
    assert torch.equal(loss, plain_loss)
    assert all(torch.equal(one, other) for one, other in zip(gradients, plain_gradients, strict=True))


@pytest.mark.parametrize("shape", ["dense", "moe"])
def test_selective_repeats_no_matmul_but_attention(shape: str) -> None:
    counts = {name: step(build(shape, torch.float32, name))[2:] for name in ("none", "selective", "full")}
    plain, selective, full = (counts[name][1] for name in ("none", "selective", "full"))
    forward = counts["none"][0]
    assert counts["selective"][0]["matmul"] == counts["full"][0]["matmul"] == forward["matmul"]
    assert selective["matmul"] == plain["matmul"] > 0
    # All that the forward pass multiplies is repeated, but for the head with its two gradients, and for the
    # last matmul of a dense block, whose result nobody needs backwards.
    last = SHAPES[shape].layers if shape == "dense" else 0
    assert full["matmul"] == plain["matmul"] + forward["matmul"] - 3 - last
    attends = [name for name in forward if "scaled_dot_product" in name]
    repeated = {
        name: sum(count[each] for each in attends)
        for name, count in (("selective", selective), ("full", full))
    }
    layers = SHAPES[shape].layers
    assert attends and repeated == {"selective": layers, "full": layers}


@pytest.mark.parametrize("layers", [0, 1, 3, 4])
def test_the_first_layers_only(layers: int) -> None:
    """Each repeated block runs its attention once more in the backward pass."""
    loss, gradients, _, backward = step(build("dense", torch.float32, "full", layers))
    attends = [
        count for name, count in backward.items() if name == "_scaled_dot_product_flash_attention_for_cpu"
    ]
    plain = step(build("dense", torch.float32, "none"))
    assert sum(attends) == layers
    assert torch.equal(loss, plain[0])
    assert all(torch.equal(one, other) for one, other in zip(gradients, plain[1], strict=True))


@pytest.mark.parametrize("stops_early", [True, False])
@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_what_a_layer_counts_is_counted_once(recompute: str, stops_early: bool) -> None:
    """Even where torch repeats a block to its end: by itself it stops before a layer counts."""
    counts = []
    for name in (recompute, "none"):
        model = build("glm", torch.float32, name)
        with set_checkpoint_early_stop(stops_early):
            step(model)
        layers = [module for module in model.modules() if isinstance(module, MoE)]
        assert not any(layer.recomputing for layer in layers)
        counts.append([layer.chosen_E.tolist() for layer in layers])
    assert counts[0] == counts[1] and all(sum(each) > 0 for each in counts[0])


def test_full_keeps_less_than_selective_and_that_less_than_all() -> None:
    """Bytes that the graph holds between forward and backward, but for weights."""
    sizes = {}
    for name in ("none", "selective", "full"):
        model = build("dense", torch.float32, name)
        sizes[name] = _saved_bytes(model)
    assert sizes["full"] < sizes["selective"] < sizes["none"]


def test_without_gradients_nothing_is_wrapped() -> None:
    plain, full = build("dense", torch.float32, "none"), build("dense", torch.float32, "full")
    part = part_of(plain)
    with torch.no_grad(), Operators() as one:
        wanted = summed_loss(plain, part)
    with torch.no_grad(), Operators() as other:
        found = summed_loss(full, part)
    assert torch.equal(found, wanted) and one.count == other.count


def _saved_bytes(model: Decoder) -> int:
    part = part_of(model)
    with TensorMemory(model) as memory:
        before = memory.now
        loss = summed_loss(model, part)
        held = memory.now - before
    loss.backward()
    return held


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", ["nf4", "glm nf4", "threes nf4 dora"])
def test_nothing_is_unpacked_for_results_that_are_remembered(
    shape: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands in its place is never read: here it is no number."""
    unpacked: list[str] = []
    dequantise, unread = frozen.dequantise, frozen._unread

    def counted(packed: Tensor, packing: Any, dtype: torch.dtype) -> Tensor:
        unpacked.append("once")
        return dequantise(packed, packing, dtype)

    def poisoned(weight: Tensor, packing: Any, dtype: torch.dtype) -> Tensor:
        matrix = unread(weight, packing, dtype)
        with _disable_current_modes():  # which would ask for the same operators as in the forward pass
            return matrix if packing is None else matrix.fill_(torch.nan)

    monkeypatch.setattr(frozen, "dequantise", counted)
    monkeypatch.setattr(frozen, "_unread", poisoned)
    found: dict[str, tuple[list[Tensor], int]] = {}
    for recompute in ("none", "selective", "full"):
        model = build(shape, dtype, recompute)
        unpacked.clear()
        loss = summed_loss(model, part_of(model))
        loss.backward()
        learnt = [weight.grad for weight in model.parameters() if weight.grad is not None]
        found[recompute] = [loss.detach(), *learnt], len(unpacked)
    for tensors, _ in found.values():
        assert all(torch.equal(one, other) for one, other in zip(tensors, found["none"][0], strict=True))
    counts = {name: count for name, (_, count) in found.items()}
    assert counts["none"] <= counts["selective"] < counts["full"]
    if "dora" not in shape:  # whose norms are made again
        assert counts["selective"] == counts["none"]
