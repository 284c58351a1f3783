"""One step under a layout, and all that came out of it, whole: what tests compare with one process.

A step is run by the engine that the training loop uses. Hidden states, counts of experts and gradients are
put together from the parts of all ranks, each element from exactly one of them.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import pytest
import torch
from making_answers import AnswerColumns
from making_layouts import CONTEXT, SHAPES, layout_of
from making_preferences import PairRows, TextRows
from making_ranks import Pool, Result
from making_runs import TinyRows
from torch import Tensor, nn

from bessemer.data.loader import Batches
from bessemer.data.rows import Rows
from bessemer.formulas.layout import Layout, split_evenly
from bessemer.formulas.objective import PREFERENCES, Objective
from bessemer.formulas.shape import ModelShape
from bessemer.formulas.tensors import tensor_table
from bessemer.model.adapter import begin_magnitudes
from bessemer.model.decoder import Decoder
from bessemer.model.init import initial_values
from bessemer.model.moe import MoE
from bessemer.model.pieces import Piece, local, stored, whole_pieces
from bessemer.parallel import engine as engines
from bessemer.parallel.apply import build_parts, joined, materialise
from bessemer.parallel.engine import Engine, Ranks
from bessemer.parallel.mesh import Mesh
from bessemer.parallel.pieces import held_pieces
from bessemer.train.objective import loss_of

CLOSE = 1e-5  # of the largest element
CLIP = 0.05  # under the norm of any of these models' gradients


@dataclass(frozen=True)
class Step:
    """What is run, as JSON carries it."""

    shape: str
    layout: str = "replicate=1"
    dtype: str = "float32"
    rows: int = 8
    micro_batch: int = 2
    balance: float = 0.5
    bias: list[float] | None = None  # of every router that has one, before the step
    recompute: str = "none"
    objective: str = "next_token"


@dataclass
class Outcome:
    """Of a step in one process, or put together from all ranks."""

    loss: float
    norm: float
    hidden_BTD: Tensor
    gradients: dict[str, Tensor] = field(default_factory=dict)  # clipped; and biases after the step
    chosen: list[Any] = field(default_factory=list)  # of each layer with a bias, in order


def one_process(step: Step) -> Outcome:
    found = _run(step, Layout(), Mesh(Layout(), torch.device("cpu")))
    return _together(step, [found])


def on_ranks(step: Step, ranks: Pool, run: Callable[..., Result] | None = None, **words: Any) -> Outcome:
    """run: in place of `run_step`, with more words."""
    world = layout_of(step.layout).world
    return _together(step, ranks.run(run or run_step, world, step=step.__dict__, **words))


def assert_same(found: Outcome, wanted: Outcome) -> None:
    """Hidden states, loss, norm, gradients, counts; and clipping did what it promised."""
    assert wanted.norm > CLIP, "nothing to clip"
    assert found.loss == pytest.approx(wanted.loss, rel=1e-6)
    assert found.norm == pytest.approx(wanted.norm, rel=CLOSE)
    assert found.chosen == wanted.chosen
    assert far(found.hidden_BTD, wanted.hidden_BTD) < CLOSE
    assert found.gradients.keys() == wanted.gradients.keys()
    distances = {name: far(found.gradients[name], value) for name, value in wanted.gradients.items()}
    wrong = {name: distance for name, distance in distances.items() if not distance < CLOSE}
    assert not wrong
    clipped = torch.stack(
        [value.norm() for name, value in found.gradients.items() if "correction_bias" not in name]
    )
    assert float(clipped.norm()) == pytest.approx(CLIP, rel=1e-4)


def far(found: Tensor, wanted: Tensor) -> float:
    """The largest difference over the largest element."""
    most = float(wanted.abs().max())
    return float((found - wanted).abs().max()) / most if most else float(found.abs().max())


def run_step(rank: int, step: dict[str, Any]) -> Result:
    chosen = Step(**step)
    layout = layout_of(chosen.layout)
    return _run(chosen, layout, Mesh(layout, torch.device("cpu")))


def make_engine(step: Step, layout: Layout, mesh: Mesh) -> tuple[Engine, ModelShape]:
    shape = SHAPES[step.shape]
    parts = build_parts(shape, getattr(torch, step.dtype), mesh, context=CONTEXT, recompute=step.recompute)
    materialise(joined(parts), shape, mesh, 1)
    if shape.adapter is not None:
        begin_magnitudes(joined(parts), parts[0].compute)
        _move_adapters(joined(parts), shape, mesh)
    weights = (0.5, 2.0, 1.5) if step.objective == "classify" else ()
    loss = loss_of(Objective(step.objective, class_weights=weights), shape, mesh, None)
    if layout.world == 1:
        return Engine(parts[0], loss, step.balance), shape
    sizes = {"micro_batch": step.micro_batch, "context": CONTEXT}
    return Ranks(parts, loss, mesh, shape, balance=step.balance, **sizes), shape


def batches(step: Step, engine: Engine, shape: ModelShape) -> Batches:
    rows = make_rows(step.objective, shape)
    return Batches(rows, 0, step.rows, step.micro_batch, engine.data_rank, engine.data_ranks)


def make_rows(objective: str, shape: ModelShape) -> Rows:
    if objective in PREFERENCES:
        return PairRows(20, shape)
    if objective in ("distill", "grpo"):
        return AnswerColumns(20, shape)
    return TextRows(20, shape) if objective == "classify" else TinyRows(20, shape)


def _run(step: Step, layout: Layout, mesh: Mesh) -> Result:
    engine, shape = make_engine(step, layout, mesh)
    _set_biases(engine.model, step.bias)
    batch = batches(step, engine, shape).batch(0)
    counts: list[Any] = []
    note = mock.patch.object(engines, "update_bias", side_effect=_noting(counts))
    with _Hidden(engine) as hidden, note if shape.router == "sigmoid_bias" else nullcontext():
        total = engine.total(batch.num_targets)
        loss = engine.forward_backward(batch.micro_batches, total)
        mean, norm, _ = engine.finish(loss, total, CLIP, False)
        engine.after_update()
    tensors = dict(stored(engine.model))
    pieces = engine.pieces or whole_pieces(engine.model)
    found: Result = {
        "loss": mean,
        "norm": norm,
        "chosen": counts,
        "pieces": [],
        "data_rank": engine.data_rank,
    }
    for name, each in pieces.items():
        value = tensors[name].grad if isinstance(tensors[name], nn.Parameter) else tensors[name]
        if not tensors[name].requires_grad and isinstance(tensors[name], nn.Parameter):
            assert value is None, f"{name} is frozen"
            continue
        for piece in each:
            found[f"piece {len(found['pieces'])}"] = piece.of(local(value)).clone()
            found["pieces"].append(piece.__dict__)
    if hidden.seen:
        found["hidden"], found["index"] = torch.cat(hidden.seen), hidden.index
    return found


class _Hidden:
    """Notes what comes out of the final norm, micro-batch by micro-batch."""

    def __init__(self, engine: Engine) -> None:
        self.seen: list[Tensor] = []
        self.index = torch.zeros(0)
        self._hooks = [
            module.register_forward_hook(self._note)
            for module in engine.model.modules()
            if isinstance(module, Decoder) and module.part.last
        ]

    def _note(self, model: nn.Module, inputs: Any, output: Tensor) -> None:
        self.seen.append(output.detach().float())
        self.index = model.model.rows.index(CONTEXT, output.device)

    def __enter__(self) -> "_Hidden":
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()


def _move_adapters(model: nn.Module, shape: ModelShape, mesh: Mesh) -> None:
    """As after some training, when every part of an adapter counts."""
    tensors = dict(stored(model))
    specs = {spec.name: replace(spec, init_std=0.1) for spec in tensor_table(shape)}
    for name, parts in held_pieces(model, shape, mesh).items():
        for piece in parts:
            if "lora_B" in name or "magnitude" in name:
                ranges = [slice(o, o + n) for o, n in zip(piece.offset, piece.size, strict=True)]
                with torch.no_grad():
                    piece.of(local(tensors[name])).add_(initial_values(specs[piece.name], 1)[tuple(ranges)])


def _noting(counts: list[Any]) -> Any:
    real = engines.update_bias

    def update_bias(moe: MoE, chosen_E: Tensor, rate: float) -> None:
        counts.append([moe.layer_name, chosen_E.tolist()])
        real(moe, chosen_E, rate)

    return update_bias


def _set_biases(model: nn.Module, bias: list[float] | None) -> None:
    for name, module in model.named_modules():
        if isinstance(module, MoE):
            module.layer_name = name[name.index("model.layers") :]
            if bias is not None:
                assert module.gate.e_score_correction_bias is not None
                module.gate.e_score_correction_bias.copy_(torch.tensor(bias))


def _together(step: Step, results: list[Result]) -> Outcome:
    first, layout = results[0], layout_of(step.layout)
    shape = SHAPES[step.shape]
    for result in results:
        assert (result["loss"], result["norm"]) == (first["loss"], first["norm"]), "ranks disagree"
    whole = Outcome(first["loss"], first["norm"], _hidden(step, shape, results, layout))
    whole.chosen = sorted({str(each) for result in results for each in result["chosen"]})
    times: dict[str, Tensor] = {}
    copies: list[tuple[Piece, Tensor]] = []
    for result in results:
        for number, values in enumerate(result["pieces"]):
            piece, value = Piece(**values), result[f"piece {number}"]
            if not piece.saved:
                copies.append((piece, value))
                continue
            target = whole.gradients.setdefault(piece.name, torch.zeros(tuple(piece.shape)))
            count = times.setdefault(piece.name, torch.zeros(tuple(piece.shape)))
            target[_place(piece)] = value
            count[_place(piece)] += 1
    assert all((count == 1).all() for count in times.values()), "not every element once"
    for piece, value in copies:
        assert torch.equal(value, whole.gradients[piece.name][_place(piece)]), f"copies differ: {piece}"
    return whole


def _hidden(step: Step, shape: ModelShape, results: list[Result], layout: Layout) -> Tensor:
    shares = split_evenly(step.rows, layout.data)
    whole_BTD = torch.full((step.rows, CONTEXT, shape.hidden), float("nan"))
    for result in results:
        if "hidden" in result:
            share = shares[result["data_rank"]]
            whole_BTD[share.start : share.stop, result["index"]] = result["hidden"][: len(share)]
    return whole_BTD


def _place(piece: Piece) -> tuple[slice, ...]:
    return tuple(slice(at, at + size) for at, size in zip(piece.offset, piece.size, strict=True))
