"""Run a training step of one rank of a large layout on this machine, without data and without the others.

The very code that would train is run (mesh, model parts, pipeline, exchanges, gradients, optimizer), on
tensors that have a shape and no memory (FakeTensorMode), in a process group that sends nothing (torch's
"fake" backend). What is learnt: every exchange with its bytes, the parts of weights that the rank holds,
and the most memory that its tensors take at once.

What differs from training: losses and norms have no value, so what the ranks agree on is made up; the loss is
that of next words or of classes; routers choose nothing, so experts are taken to get equal shares; attention
is that of torch without a mask, whose memory is like that of a fused kernel, and not compiled.
Needs no accelerator. Nothing else may use torch.distributed in the process at the same time.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import FakeWork
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from bessemer.data.loader import MicroBatch
from bessemer.formulas.layout import Layout, split_evenly
from bessemer.formulas.memory.parts import Workload
from bessemer.formulas.objective import Objective
from bessemer.formulas.shape import ModelShape
from bessemer.formulas.traffic.step import Collective
from bessemer.model import moe
from bessemer.model.attention import Mask
from bessemer.model.decoder import Block, Decoder
from bessemer.model.moe import MoE
from bessemer.model.pieces import local
from bessemer.parallel.apply import build_parts, joined, materialise
from bessemer.parallel.collectives import exchange
from bessemer.parallel.documents import neighbours_of
from bessemer.parallel.engine import Engine, Loss, Ranks, summed_loss
from bessemer.parallel.mesh import Group, Mesh
from bessemer.parallel.objectives import ClassLoss
from bessemer.parallel.shard import sharded_over
from bessemer.parallel.traffic import TensorMemory, Traffic
from bessemer.parallel.vocabulary import split_head

_TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Rehearsal:
    """What one optimizer step does on one rank."""

    exchanges: dict[str, Collective]  # by kind: formulas/traffic/step.py
    peak_bytes: int  # of tensors: weights, gradients, optimizer, activations, buffers of exchanges
    parameters: dict[str, tuple[int, ...]]  # local shapes, by name

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def rehearse(shape: ModelShape, work: Workload, layout: Layout, rank: int, *, context: int) -> Rehearsal:
    """One step of `rank`. work.tokens: of a micro-batch of whole rows, each `context` tokens long."""
    assert 0 <= rank < layout.world, f"rank {rank} in a layout of {layout.world}"
    with _fake_group(rank, layout.world), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch has to say, it says when the layout trains
        mesh = Mesh(layout, _CPU)
        parts = build_parts(
            shape,
            _TYPES[work.dtype],
            mesh,
            context=context,
            recompute=work.recompute,
            recompute_layers=work.recompute_layers,
        )
        model = joined(parts)
        # Real and meta tensors are met too: indices that the layers made, and what FSDP keeps.
        with (
            FakeTensorMode(allow_non_fake_inputs=True),
            patch.object(moe, "grouped_linear", _grouped_shapes),
            patch.object(moe, "in_blocks", _whole_blocks),
        ):
            materialise(model, shape, mesh, seed=None)
            for part in parts:
                _without_values(part, mesh)
            rows = work.tokens // context
            loss = _loss(shape, mesh)
            engine = _Blind(parts, loss, mesh, shape, micro_batch=rows, context=context, balance=0.01)
            optimizer = make_adamw(engine.parameters)
            batch = [_micro_batch(rows, context) for _ in range(work.micro_batches)]
            return watched(engine, optimizer, batch, rows * context * work.micro_batches)


def _loss(shape: ModelShape, mesh: Mesh) -> Loss:
    """Of next words, or of classes where the model has a head of them."""
    if not shape.labels:
        return partial(summed_loss, head=split_head(mesh, shape.vocab))
    return ClassLoss(Objective("classify"), neighbours_of(mesh, shape.vocab, whole_head=True))


def make_adamw(weights: Sequence[nn.Parameter]) -> torch.optim.AdamW:
    """As train/optimizer.py makes it, without its settings: weights sharded alike are a group."""
    groups: dict[Any, list[nn.Parameter]] = {}
    for weight in weights:
        groups.setdefault(sharded_over(weight), []).append(weight)
    return torch.optim.AdamW([{"params": group} for group in groups.values()], fused=True)


def watched(
    engine: Engine, optimizer: torch.optim.Optimizer, parts: Sequence[MicroBatch], num_targets: int
) -> Rehearsal:
    """The second of two steps: the first one also makes the optimizer's state."""
    _step(engine, optimizer, parts, num_targets)
    with Traffic() as traffic, TensorMemory(engine.model, optimizer) as memory:
        _step(engine, optimizer, parts, num_targets)
    shapes = {name: tuple(local(weight).shape) for name, weight in engine.model.named_parameters()}
    return Rehearsal(traffic.by_kind, memory.peak, shapes)


def _step(
    engine: Engine, optimizer: torch.optim.Optimizer, parts: Sequence[MicroBatch], num_targets: int
) -> None:
    """As train/loop.py does it."""
    targets = engine.total(num_targets)
    loss = engine.forward_backward(parts, targets)
    engine.finish(loss, targets, 1.0, False)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    engine.after_update()


class _Blind(Ranks):
    """Ranks that cannot read what they agreed on."""

    def _read(self, values: Tensor) -> list[float]:
        return [1.0] * values.numel()


def _micro_batch(rows: int, context: int) -> MicroBatch:
    empty = partial(torch.zeros, (rows, context), dtype=torch.int64)
    return MicroBatch(empty(), empty(), empty())


def _without_values(model: Decoder, mesh: Mesh) -> None:
    """Replace what looks at values: masks, and the routers' counts."""
    rows = model.model.rows
    rows.kind = lambda chosen: "sdpa"  # type: ignore[method-assign]
    rows.mask = lambda kind, starts_BT: Mask()  # type: ignore[method-assign]
    for block in model.model.layers.values():
        assert isinstance(block, Block)
        if isinstance(block.feed_forward, MoE):
            layer = block.feed_forward
            layer.compute = _EvenExperts(layer.experts, mesh.group("expert"))


class _EvenExperts:
    """As parallel/expert.py and `MoE.compute`, where every expert gets the same number of rows."""

    def __init__(self, experts: nn.Module, group: Group | None) -> None:
        self._experts, self._group = experts, group

    def __call__(self, sorted_SD: Tensor, counts_E: Tensor) -> Tensor:
        pairs, experts = sorted_SD.shape[0], len(counts_E)
        group = self._group
        if group is None:
            return self._experts(sorted_SD, counts_E)  # type: ignore[no-any-return]
        ranks = group.size()
        here = [experts // ranks] * ranks
        exchange(counts_E, here, here, group)
        sent = [len(part) for part in split_evenly(pairs, ranks)]
        received = [sent[dist.get_rank(group)]] * ranks
        rows_SD = exchange(sorted_SD, sent, received, group)
        order_S = torch.arange(sum(received)).argsort(stable=True)
        out_SD = self._experts(rows_SD[order_S], counts_E)
        return exchange(out_SD[order_S], received, sent, group)


def _whole_blocks(counts_E: Tensor, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """In place of `moe.in_blocks`, as even shares mostly are: nothing is padded."""
    row_S = torch.arange(num_rows)
    return counts_E, row_S, row_S


class _ExpertShapes(torch.autograd.Function):
    """In place of `moe.grouped_linear`: its results' shapes. torch's own wants values, or bf16."""

    @staticmethod
    def forward(ctx: Any, x_SI: Tensor, weight_EOI: Tensor) -> Tensor:
        learns = ctx.needs_input_grad[1]  # frozen beside adapters: then its input is not kept
        ctx.rows = x_SI.shape[0]
        ctx.save_for_backward(x_SI if learns else None, weight_EOI)
        # A matmul, whose result selective recomputation keeps as the real one's.
        return x_SI @ weight_EOI[0].T

    @staticmethod
    def backward(ctx: Any, grad_SO: Tensor) -> tuple[Tensor, Tensor | None]:
        x_SI, weight_EOI = ctx.saved_tensors
        grad_SI = grad_SO.new_empty(ctx.rows, weight_EOI.shape[2])
        return grad_SI, None if x_SI is None else torch.empty_like(weight_EOI)


def _grouped_shapes(x_SI: Tensor, weight_EOI: Tensor, counts_E: Tensor) -> Tensor:
    return _ExpertShapes.apply(x_SI, weight_EOI.to(x_SI.dtype))  # type: ignore[no-any-return]


@contextmanager
def _fake_group(rank: int, world: int) -> Iterator[None]:
    assert not dist.is_initialized(), "a rehearsal wants torch.distributed for itself"
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        # Its messages never say that they have gone, and a pipeline would hold all that it sent in the step.
        with patch.object(FakeWork, "is_completed", lambda _: True, create=True):
            yield
    finally:
        dist.destroy_process_group()
