"""Partial sums, ties, norm and clipping of made-up gradients; and the types that gradients travel in."""

import zlib
from collections import Counter
from typing import Any

import pytest
import torch
import torch.distributed as dist
from making_layouts import CONTEXT, SHAPES, layout_of
from making_ranks import Pool, Result
from making_steps import Step, batches, make_engine
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bessemer.formulas.shape import ModelShape
from bessemer.formulas.tensors import tensor_table
from bessemer.model.pieces import Piece, local
from bessemer.parallel.apply import build_parts, joined, materialise
from bessemer.parallel.gradients import Gradients, clip_gradients
from bessemer.parallel.mesh import Mesh
from bessemer.parallel.pieces import held_pieces

CASES = [
    ("dense", "tensor=2"),
    ("threes", "tensor=3"),
    ("dense", "shard=3"),
    ("dense", "replicate=2,shard=2"),
    ("tied", "pipeline=2"),  # its ends on two ranks
    ("tied", "pipeline=2,schedule=zbv"),  # and on one
    ("tied", "pipeline=2,tensor=2"),
    ("tied", "pipeline=2,shard=2"),
    ("moe", "shard=4,expert=2"),
    ("moe", "replicate=2,expert=2"),
    ("moe", "shard=2,tensor=2,expert=2"),
    ("glm", "context=2,shard=2,expert=4"),
]


def whole_gradient(name: str, size: tuple[int, ...]) -> Tensor:
    """Of a stored tensor, over all ranks: random, and the same everywhere."""
    return torch.randn(size, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def true_norm(shape: ModelShape) -> float:
    trained = [spec for spec in tensor_table(shape) if spec.trained]
    return (
        sum(float(whole_gradient(spec.name, spec.shape).double().square().sum()) for spec in trained) ** 0.5
    )


def share_of(name: str, number: int, shape: ModelShape, mesh: Mesh, models: nn.Module) -> float:
    """Which part of a gradient this rank finds; number: of the stage on this rank."""
    spec = {spec.name: spec for spec in tensor_table(shape)}[name]
    share = 1.0
    if spec.tensor_dim is None:  # 1/3 and 2/3 of two ranks: each has seen a part of the sequence
        ranks = mesh.degree["tensor"]
        share *= 2 * (mesh.place("tensor") + 1) / (ranks * (ranks + 1))
    if shape.tie_embeddings and "embed_tokens" in name and mesh.layout.pipeline > 1:
        model = models[number] if isinstance(models, nn.ModuleList) else models
        share *= 0.25 if model.part.first else 0.75
    return share


def finish_there(rank: int, shape: str, layout: str, most: float) -> Result:
    """Norm, and the largest errors of gradients after summing and after clipping."""
    chosen = SHAPES[shape]
    mesh = Mesh(layout_of(layout), torch.device("cpu"))
    models = joined(build_parts(chosen, torch.float32, mesh, context=CONTEXT))
    materialise(models, chosen, mesh, None)
    pieces = held_pieces(models, chosen, mesh)
    weights = dict(models.named_parameters())
    for name, weight in weights.items():
        weight.grad = torch.zeros_like(weight)
        number = int(name.split(".")[0]) if isinstance(models, nn.ModuleList) else 0
        for piece in pieces[name]:
            share = share_of(piece.name, number, chosen, mesh, models)
            piece.of(local(weight.grad)).copy_(_cut(piece) * share)
    gradients = Gradients(models, chosen, pieces, mesh)
    squares = gradients.finish()
    dist.all_reduce(squares)
    norm = float(squares) ** 0.5

    def error(scale: float) -> float:
        return max(
            float((piece.of(local(weight.grad)) - _cut(piece) * scale).abs().max())
            if _cut(piece).numel()
            else 0.0
            for name, weight in weights.items()
            for piece in pieces[name]
        )

    summed = error(1.0)
    gradients.clip(norm, 2 * norm)
    gradients.clip(norm, None)
    unclipped = error(1.0)
    gradients.clip(norm, most)
    return {"norm": norm, "summed": summed, "unclipped": unclipped, "clipped": error(most / norm)}


def _cut(piece: Piece) -> Tensor:
    place = tuple(slice(at, at + size) for at, size in zip(piece.offset, piece.size, strict=True))
    return whole_gradient(piece.name, piece.shape)[place]


@pytest.mark.parametrize(("shape", "layout"), CASES)
def test_every_element_is_summed_and_counts_once(shape: str, layout: str, ranks: Pool) -> None:
    found = ranks.run(finish_there, layout_of(layout).world, shape=shape, layout=layout, most=0.5)
    for each in found:
        assert each["norm"] == pytest.approx(true_norm(SHAPES[shape]), rel=1e-6)
        assert max(each["summed"], each["unclipped"], each["clipped"]) < 1e-6, each


@pytest.mark.parametrize("most", [None, 0.5, 1e9])
def test_in_one_process_clipping_is_torchs(most: float | None) -> None:
    weights = [nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(2))]
    for number, weight in enumerate(weights[:2]):  # the last has no gradient
        weight.grad = whole_gradient(str(number), tuple(weight.shape))
    before = torch.cat([weight.grad.flatten().clone() for weight in weights[:2]])
    norm = clip_gradients(weights, most)
    after = torch.cat([weight.grad.flatten() for weight in weights[:2]])
    assert float(norm) == pytest.approx(float(before.norm()))
    torch.testing.assert_close(after, before * (0.5 / before.norm() if most == 0.5 else 1.0))


# The types that weights and gradients travel in.


KINDS = {"c10d::_allgather_base_": "gathered", "c10d::_reduce_scatter_base_": "scattered"}


class Types(TorchDispatchMode):
    """Elements by kind of exchange and type, of what a rank gives."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = KINDS.get(func._schema.name)
        if kind is not None:
            self.count[f"{kind} {args[1].dtype}"] += args[1].numel()
        return func(*args, **(kwargs or {}))


def types_there(rank: int, step: dict[str, Any]) -> Result:
    chosen = Step(**step)
    layout = layout_of(chosen.layout)
    engine, shape = make_engine(chosen, layout, Mesh(layout, torch.device("cpu")))
    batch = batches(chosen, engine, shape).batch(0)
    total = engine.total(batch.num_targets)
    with Types() as types:
        engine.forward_backward(batch.micro_batches, total)
    gradients = {str(weight.grad.dtype) for weight in engine.parameters if weight.grad is not None}
    return {"count": dict(types.count), "gradients": sorted(gradients)}


def matrices_in_blocks(shape: ModelShape) -> tuple[int, int]:
    """Elements of what blocks multiply with, and of all else."""
    table = [spec for spec in tensor_table(shape) if spec.trained]
    inside = sum(
        spec.numel for spec in table if ".layers." in spec.name and spec.decay and "gate.w" not in spec.name
    )
    return inside, sum(spec.numel for spec in table) - inside


@pytest.mark.parametrize("shape", ["dense", "moe"])
def test_matrices_travel_in_the_compute_type_and_gradients_in_fp32(shape: str, ranks: Pool) -> None:
    """One micro-batch on two ranks: each gives half of every weight; blocks' twice, as they are freed between
    forward and backward."""
    step = Step(shape, "shard=2", dtype="bfloat16", rows=2, micro_batch=1)
    inside, outside = matrices_in_blocks(SHAPES[shape])
    for found in ranks.run(types_there, 2, step=step.__dict__):
        count = found["count"]
        assert count["gathered torch.bfloat16"] == inside
        assert outside / 2 <= count["gathered torch.float32"] <= outside
        assert (
            count["scattered torch.float32"] == inside + outside and "scattered torch.bfloat16" not in count
        )
        assert found["gradients"] == ["torch.float32"]


@pytest.mark.parametrize("layout", ["shard=2,pipeline=2,schedule=zbv", "shard=2"])
def test_fp32_stays_fp32_and_so_do_weights_whose_gradients_wait(layout: str, ranks: Pool) -> None:
    dtype = "bfloat16" if "zbv" in layout else "float32"
    step = Step("dense", layout, dtype=dtype, rows=4, micro_batch=1)
    for found in ranks.run(types_there, layout_of(layout).world, step=step.__dict__):
        assert {key.split()[1] for key in found["count"]} == {"torch.float32"}
