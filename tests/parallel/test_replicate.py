"""Replicas without shards: their gradients are sums that travel while the backward pass goes on."""

import gc
import time
import weakref
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from making_layouts import as_rank, layout_of
from making_ranks import Pool, Result
from making_steps import CLIP, Outcome, Step, assert_same, batches, far, make_engine, on_ranks, one_process
from torch import Tensor, nn

from bessemer.formulas.layout import ONE_PROCESS
from bessemer.model.decoder import Decoder
from bessemer.parallel.engine import Engine
from bessemer.parallel.mesh import Mesh
from bessemer.parallel.traffic import TensorMemory

CPU = torch.device("cpu")
UPDATES, RATE = 3, 0.5  # so many, and so fast that a wrong one shows in the next


def engine_of(step: Step, layout: str) -> tuple[Engine, Callable[[int], Any]]:
    """And its batches, by number of the step."""
    chosen = layout_of(layout)
    engine, shape = make_engine(step, chosen, Mesh(chosen, CPU))
    rows = batches(step, engine, shape)
    return engine, lambda number: rows.batch(number * step.rows)


def run_backward(engine: Engine, batch: Any) -> Tensor:
    """Of a whole step; returns its summed loss on this rank."""
    return engine.forward_backward(batch.micro_batches, engine.total(batch.num_targets))


def decoder(engine: Engine) -> Decoder:
    assert isinstance(engine.model, Decoder)
    return engine.model


@pytest.mark.parametrize(
    ("shape", "layout", "rows"),
    [
        ("dense", "replicate=2", 8),  # two micro-batches on each
        ("tied", "replicate=2", 4),  # one
        ("tied", "replicate=2,tensor=2", 8),
        ("threes", "replicate=2,tensor=3", 8),
        ("moe", "replicate=2,tensor=2", 8),
        ("glm", "replicate=2", 8),
        ("dense", "replicate=3", 8),  # uneven
        ("dense", "replicate=3", 2),  # one rank has no row, only masked ones
    ],
)
def test_summed_gradients_are_those_of_one_process(shape: str, layout: str, rows: int, ranks: Pool) -> None:
    found = on_ranks(Step(shape, layout, rows=rows), ranks)
    wanted = one_process(Step(shape, rows=rows))
    assert_same(found, wanted)
    assert furthest(found, wanted) < 1e-6


def furthest(found: Outcome, wanted: Outcome) -> float:
    """Of clipped gradients: over the largest element of all."""
    most = max(float(each.abs().max()) for each in wanted.gradients.values())
    return max(
        float((found.gradients[name] - value).abs().max()) / most for name, value in wanted.gradients.items()
    )


def updates(layout: str, shape: str) -> Result:
    """Losses and weights of some updates, whose gradients are forgotten in between as in training."""
    engine, batch = engine_of(Step(shape), layout)
    optimizer = torch.optim.SGD(engine.parameters, lr=RATE)
    losses = []
    for number in range(UPDATES):
        one = batch(number)
        total = engine.total(one.num_targets)
        loss = engine.forward_backward(one.micro_batches, total)
        losses.append(engine.finish(loss, total, CLIP, False)[0])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    weights = {name: weight.detach() for name, weight in engine.model.named_parameters()}
    return {"losses": losses, **weights}


def updates_there(rank: int, layout: str, shape: str) -> Result:
    return updates(layout, shape)


@pytest.mark.parametrize("shape", ["dense", "tied"])
def test_updates_one_after_another_leave_the_weights_of_one_process_on_every_rank(
    shape: str, ranks: Pool
) -> None:
    wanted = updates("replicate=1", shape)
    first, second = ranks.run(updates_there, 2, layout="replicate=2", shape=shape)
    assert first["losses"] == pytest.approx(wanted["losses"], rel=1e-6)
    for name, value in wanted.items():
        if isinstance(value, Tensor):
            assert torch.equal(first[name], second[name]), f"replicas have grown apart: {name}"
            assert far(first[name], value) < 1e-6, name


def events_there(rank: int, shape: str) -> Result:
    """In order: blocks whose gradients ended, units that left or arrived. Of a step of two micro-batches."""
    engine, batch = engine_of(Step(shape), "replicate=2")
    events: list[str] = []
    send = dist.all_reduce

    class Noted:
        def __init__(self, work: Any) -> None:
            self._work = work

        def wait(self) -> None:
            self._work.wait()
            events.append("arrived")

    def all_reduce(tensor: Tensor, **how: Any) -> Any:
        if not how.get("async_op"):
            return send(tensor, **how)
        events.append("sent")
        return Noted(send(tensor, **how))

    for name, block in decoder(engine).model.layers.items():
        weight = block.input_layernorm.weight  # the last of a block to have its gradient
        weight.register_post_accumulate_grad_hook(lambda _, name=name: events.append(f"block {name}"))
    with mock.patch.object(dist, "all_reduce", all_reduce):
        run_backward(engine, batch(0))
    return {"events": events}


@pytest.mark.parametrize("shape", ["dense", "tied"])
def test_a_blocks_gradients_leave_before_those_of_the_next_are_known(shape: str, ranks: Pool) -> None:
    blocks = ["block 3", "block 2", "block 1", "block 0"]
    passing = [event for block in blocks for event in (block, "sent")]
    head = [] if shape == "tied" else ["sent"]
    last = ["sent"]  # the embedding, and the head with it where they are one
    units = len(blocks) + len(head) + len(last)
    for found in ranks.run(events_there, 2, shape=shape):
        # The first micro-batch sends nothing.
        assert found["events"] == blocks + head + passing + last + ["arrived"] * units


def missing_there(rank: int) -> Result:
    """Block 2 does nothing on the second rank, whose weights so have no gradient there."""
    engine, batch = engine_of(Step("dense", rows=4), "replicate=2")
    if rank == 1:
        decoder(engine).model.layers["2"].forward = lambda x_BTD, *_: x_BTD
    run_backward(engine, batch(0))
    gradients = {name: weight.grad for name, weight in engine.model.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    return gradients


def test_a_gradient_that_one_rank_has_not_is_the_others_and_keeps_nobody_waiting(ranks: Pool) -> None:
    first, second = ranks.run(missing_there, 2)
    for name, gradient in first.items():
        assert torch.equal(gradient, second[name]), name
        assert gradient.any(), name


def memory_there(rank: int) -> Result:
    engine, batch = engine_of(Step("dense"), "replicate=2")
    weights = sum(weight.nbytes for weight in engine.parameters)
    with TensorMemory(engine.model) as memory:
        before = memory.now
        loss = run_backward(engine, batch(0))
        with_gradients = memory.now - before - loss.nbytes
        engine.model.zero_grad(set_to_none=True)
        # gloo's own thread lets go of what it sent a moment after it has told that it is there.
        deadline = time.monotonic() + 10
        while (after := memory.now - before - loss.nbytes) and time.monotonic() < deadline:
            time.sleep(0.01)
    return {"weights": weights, "with_gradients": with_gradients, "after": after}


def test_gradients_take_their_memory_once_and_give_it_back(ranks: Pool) -> None:
    for found in ranks.run(memory_there, 2):
        assert found["with_gradients"] == found["weights"]
        assert found["after"] == 0


def test_an_engine_that_nobody_needs_goes_with_its_weights() -> None:
    """One process trains several stages, each with an engine of its own."""
    with as_rank(layout_of("replicate=2"), 0):
        engine, batch = engine_of(Step("dense"), "replicate=2")
        run_backward(engine, batch(0))
        gone: list[weakref.ref[nn.Module]] = [weakref.ref(engine), weakref.ref(engine.model)]  # type: ignore[arg-type,list-item]
        del engine, batch
        gc.collect()
        assert [each() for each in gone] == [None, None]


@pytest.mark.parametrize(
    ("layout", "repeats"),
    [
        ("replicate=2", True),
        ("replicate=2,tensor=2", True),
        ("replicate=2,shard=2", False),
        ("replicate=2,context=2", False),
        ("replicate=2,expert=2", False),
        ("replicate=2,pipeline=2", False),
        ("tensor=2", False),
    ],
)
def test_only_where_nothing_else_divides_weights_over_data_ranks(layout: str, repeats: bool) -> None:
    chosen = layout_of(layout)
    assert chosen.repeats_weights is repeats and not ONE_PROCESS.repeats_weights
    with as_rank(chosen, 0) as mesh:
        assert mesh.shards_weights is (not repeats and layout != "tensor=2")
