"""A pipeline as it runs: what it keeps in memory, any number of micro-batches, what it leaves behind."""

import weakref
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from making_layouts import CONTEXT, DENSE, SHAPES, as_rank, layout_of
from making_ranks import Pool, Result
from making_steps import Step, assert_same, batches, make_engine, on_ranks, one_process, run_step
from torch import Tensor

from bessemer.formulas.passes import LONGER, pass_lengths
from bessemer.formulas.schedule import EQUAL, Lengths, most_in_flight, pipeline_order
from bessemer.model import deferred
from bessemer.model.decoder import Decoder
from bessemer.parallel import pipeline as pipelines
from bessemer.parallel.apply import build_parts
from bessemer.parallel.mesh import Mesh
from bessemer.parallel.pipeline import Pipeline

# What a rank keeps.


class Held:
    """Which micro-batches' activations are alive: by what autograd saved for them, and by outputs."""

    def __init__(self) -> None:
        self.alive: dict[tuple[int, int], int] = {}
        self.most = 0
        self.most_together = 0  # with those whose weights wait

    def saving(self, key: tuple[int, int]) -> Any:
        def pack(tensor: Tensor) -> "_Saved":
            saved = _Saved(tensor)
            self.count(key, saved)
            return saved

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor)

    def count(self, key: tuple[int, int], kept: object) -> None:
        """Counts as long as `kept` lives."""
        self.alive[key] = self.alive.get(key, 0) + 1
        weakref.finalize(kept, self._drop, key)

    def note(self) -> None:
        """After a forward pass."""
        self.most = max(self.most, len(self.alive))
        self.most_together = max(self.most_together, len(self.alive) + Waiting.now)

    def _drop(self, key: tuple[int, int]) -> None:
        self.alive[key] -= 1
        if not self.alive[key]:
            del self.alive[key]


class _Saved:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Waiting(deferred.Deferral):
    """Counts deferrals that have work."""

    now = most = 0

    def add(self, work: Callable[[], None]) -> None:
        if not self._waiting:
            Waiting.now += 1
            Waiting.most = max(Waiting.most, Waiting.now)
        super().add(work)

    def run(self) -> None:
        Waiting.now -= bool(self._waiting)
        super().run()


def held_there(rank: int, layout: str, micro_batches: int) -> Result:
    """The most micro-batches whose graph a rank held, whose weights waited, and what was left at the end."""
    step = Step("deep", layout, rows=micro_batches, micro_batch=1)
    chosen = layout_of(layout)
    engine, shape = make_engine(step, chosen, Mesh(chosen, torch.device("cpu")))
    batch = batches(step, engine, shape).batch(0)
    held, real = Held(), Pipeline._forward

    def forward(self: Pipeline, action: Any, function: Any) -> Any:
        with held.saving((action.stage, action.micro_batch)):
            kept = real(self, action, function)
        held.count((action.stage, action.micro_batch), kept.output)
        held.note()
        return kept

    Waiting.now = Waiting.most = 0
    with mock.patch.object(Pipeline, "_forward", forward), mock.patch.object(pipelines, "Deferral", Waiting):
        engine.forward_backward(batch.micro_batches, engine.total(batch.num_targets))
    left = len(held.alive) + Waiting.now
    return {"graphs": held.most, "waiting": Waiting.most, "together": held.most_together, "left": left}


@pytest.mark.parametrize("micro_batches", [2, 8])
@pytest.mark.parametrize(
    "layout",
    ["pipeline=2", "pipeline=4", "pipeline=2,schedule=interleaved,interleave=2", "pipeline=2,schedule=zbv",
     "pipeline=4,schedule=zbv"],
)  # fmt: skip
def test_a_rank_keeps_as_many_micro_batches_as_its_order_says(
    layout: str, micro_batches: int, ranks: Pool
) -> None:
    chosen = layout_of(layout)
    if chosen.schedule == "interleaved" and micro_batches % chosen.pipeline:
        pytest.skip("not a whole group")
    order = pipeline_order(chosen, micro_batches, pass_lengths(SHAPES["deep"], CONTEXT, "none"))
    for rank, found in enumerate(
        ranks.run(held_there, chosen.world, layout=layout, micro_batches=micro_batches)
    ):
        assert found["graphs"] == most_in_flight(order[rank])
        assert found["waiting"] == most_waiting(order[rank]) if "zbv" in layout else found["waiting"] == 0
        assert found["left"] == 0
        limit = {"1f1b": chosen.pipeline - rank, "zbv": 2 * chosen.pipeline}
        assert found["together"] <= limit.get(chosen.schedule, found["graphs"])


def most_waiting(actions: list[Any]) -> int:
    """Backward passes whose weights have not been done, at the worst."""
    waits, most = 0, 0
    for action in actions:
        waits += (action.kind == "B") - (action.kind == "W")
        most = max(most, waits)
    return most


# Any number of micro-batches.


@pytest.mark.parametrize("micro_batches", [1, 3, 5])
@pytest.mark.parametrize(
    "layout", ["pipeline=3,split=1+2+1", "pipeline=2,schedule=zbv", "pipeline=2,schedule=dualpipev"]
)
def test_any_number_of_micro_batches_gives_the_gradients_of_one_process(
    layout: str, micro_batches: int, ranks: Pool
) -> None:
    step = Step("tied", layout, rows=micro_batches, micro_batch=1)
    assert_same(on_ranks(step, ranks), one_process(Step("tied", rows=micro_batches, micro_batch=1)))


def in_order_of(rank: int, step: dict[str, Any], lengths: list[int]) -> Result:
    with mock.patch.object(pipelines, "pass_lengths", return_value=Lengths(*lengths)):
        return run_step(rank, step)


@pytest.mark.parametrize("lengths", [EQUAL, LONGER], ids=["equal", "longer"])
def test_gradients_of_other_passes_order_are_those_of_one_process(lengths: Lengths, ranks: Pool) -> None:
    """The models of these tests are so narrow that all other runs have the third order."""
    step = Step("tied", "pipeline=2,schedule=zbv", rows=5, micro_batch=1)
    found = on_ranks(step, ranks, in_order_of, lengths=list(lengths))
    assert_same(found, one_process(Step("tied", rows=5, micro_batch=1)))


@pytest.mark.parametrize("micro_batches", [1, 2, 6])
def test_interleaved_runs_less_than_a_group_or_whole_ones(micro_batches: int, ranks: Pool) -> None:
    step = Step("dense", "pipeline=2,schedule=interleaved,interleave=2", rows=micro_batches, micro_batch=1)
    assert_same(on_ranks(step, ranks), one_process(Step("dense", rows=micro_batches, micro_batch=1)))


def losses_there(rank: int, step: dict[str, Any]) -> Result:
    """Of rows without gradients, before a step and after it, and with another number of micro-batches."""
    chosen = Step(**step)
    layout = layout_of(chosen.layout)
    engine, shape = make_engine(chosen, layout, Mesh(layout, torch.device("cpu")))
    parts = batches(chosen, engine, shape).batch(0).micro_batches
    with torch.no_grad():
        losses = [
            float(engine.summed(engine.forward(parts))),
            float(engine.summed(engine.forward(parts[:1]))),
        ]
        untouched = all(weight.grad is None for weight in engine.parameters)
    for count in (len(parts), 1):
        engine.forward_backward(parts[:count], engine.total(10))
    with torch.no_grad():
        losses.append(float(engine.summed(engine.forward(parts))))
    gradients = {
        str(tuple(weight.shape)): float(weight.grad.double().square().sum()) for weight in engine.parameters
    }
    return {"losses": losses, "untouched": untouched, "gradients": sum(gradients.values())}


@pytest.mark.parametrize("layout", ["pipeline=2", "pipeline=2,schedule=zbv"])
def test_validation_between_steps_is_that_of_one_process_and_leaves_no_gradient(
    layout: str, ranks: Pool
) -> None:
    step = Step("dense", layout, rows=4, micro_batch=1)
    found = ranks.run(losses_there, 2, step=step.__dict__)
    wanted = _losses_of_one(Step("dense", rows=4, micro_batch=1))
    for each in found:
        assert each["losses"] == pytest.approx(wanted, rel=1e-6)
        assert each["losses"][0] == each["losses"][2] and each["untouched"]


def _losses_of_one(step: Step) -> list[float]:
    layout = layout_of(step.layout)
    engine, shape = make_engine(step, layout, Mesh(layout, torch.device("cpu")))
    parts = batches(step, engine, shape).batch(0).micro_batches
    with torch.no_grad():
        whole, first = (
            float(engine.summed(engine.forward(parts))),
            float(engine.summed(engine.forward(parts[:1]))),
        )
    return [whole, first, whole]


# What travels, and mistakes.


def types_there(rank: int, layout: str) -> Result:
    step, chosen, seen = Step("dense", layout, dtype="bfloat16", rows=2, micro_batch=1), layout_of(layout), []
    engine, shape = make_engine(step, chosen, Mesh(chosen, torch.device("cpu")))
    batch, real = batches(step, engine, shape).batch(0), dist.isend

    def isend(tensor: Tensor, *args: Any, **names: Any) -> Any:
        seen.append([str(tensor.dtype), list(tensor.shape), tensor.requires_grad])
        return real(tensor, *args, **names)

    with mock.patch.object(dist, "isend", isend):
        engine.forward_backward(batch.micro_batches, engine.total(batch.num_targets))
    return {"seen": seen}


@pytest.mark.parametrize(
    ("layout", "tokens"), [("pipeline=2", 16), ("pipeline=2,context=2", 8), ("pipeline=2,tensor=2", 8)]
)
def test_each_rank_sends_its_own_tokens_in_the_compute_type(layout: str, tokens: int, ranks: Pool) -> None:
    for found in ranks.run(types_there, layout_of(layout).world, layout=layout):
        assert found["seen"] == [["torch.bfloat16", [1, tokens, DENSE.hidden], False]] * 2


def test_a_step_that_fails_leaves_linear_layers_as_they_were() -> None:
    layout = layout_of("pipeline=2,schedule=zbv")

    def forward(model: Decoder, number: int, hidden_BTD: Tensor | None) -> Tensor:
        assert deferred.is_deferring()
        raise ZeroDivisionError

    with as_rank(layout, 0) as mesh:
        stages = build_parts(DENSE, torch.float32, mesh, context=CONTEXT)
        pipeline = Pipeline(stages, mesh, 1, CONTEXT)
        with pytest.raises(ZeroDivisionError):
            pipeline.forward_backward(forward, 2, torch.ones(()))
    assert not deferred.is_deferring()
