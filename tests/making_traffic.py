"""Steps of tiny models on real ranks, watched: what they send, and the memory of their tensors."""

from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from making_ranks import Pool

from bessemer.data.loader import MicroBatch
from bessemer.formulas.layout import Layout
from bessemer.formulas.memory.parts import Workload
from bessemer.formulas.shape import ModelShape
from bessemer.formulas.traffic.step import Collective
from bessemer.measure.rehearse import Rehearsal, make_adamw, summed_loss, watched
from bessemer.parallel.apply import build_parts, joined, materialise
from bessemer.parallel.engine import Ranks
from bessemer.parallel.mesh import Mesh
from bessemer.parallel.vocabulary import split_head

CONTEXT, ROWS = 16, 4
DENSE = ModelShape(
    "llama", 4, 32, heads=4, kv_heads=4, head_dim=8, ffn=72, vocab=64, context=CONTEXT,
    tie_embeddings=False, qk_norm=True,
)  # fmt: skip


ROUTED = replace(DENSE, family="qwen3-moe", experts=4, experts_per_token=2, expert_ffn=24)
BIASED = replace(ROUTED, family="glm4-moe", router="sigmoid_bias", shared_ffn=16, dense_layers=1)


def workload(layout: Layout, dtype: str = "fp32", recompute: str = "none") -> Workload:
    """A step of ROWS rows in all, one in a micro-batch."""
    return Workload(CONTEXT, dtype, recompute, compiled=False, micro_batches=max(1, ROWS // layout.data))


Case = tuple[ModelShape, Layout, Workload]


def measure(pool: Pool, case: Case) -> list[Rehearsal]:
    """What each rank did, in real processes."""
    shape, layout, work = case
    arguments = {"shape": shape.to_json(), "layout": layout.to_json(), "work": asdict(work)}
    return [_read(found) for found in pool.run(one_rank, layout.world, **arguments)]


def one_rank(
    rank: int, shape: dict[str, Any], layout: dict[str, Any], work: dict[str, Any]
) -> dict[str, Any]:
    """Called in a process of the pool."""
    found = _run(ModelShape.from_json(shape), Layout.from_json(layout), Workload(**work))
    return found.to_json()


def _read(values: dict[str, Any]) -> Rehearsal:
    exchanges = {kind: Collective(**each) for kind, each in values["exchanges"].items()}
    shapes = {name: tuple(size) for name, size in values["parameters"].items()}
    return Rehearsal(exchanges, values["peak_bytes"], shapes)


def _run(shape: ModelShape, layout: Layout, work: Workload) -> Rehearsal:
    mesh = Mesh(layout, torch.device("cpu"))
    parts = build_parts(
        shape,
        torch.bfloat16 if work.dtype == "bf16" else torch.float32,
        mesh,
        context=CONTEXT,
        recompute=work.recompute,
        recompute_layers=work.recompute_layers,
    )
    materialise(joined(parts), shape, mesh, 1)
    rows = work.tokens // CONTEXT
    loss = partial(summed_loss, head=split_head(mesh, shape.vocab))
    engine = Ranks(parts, loss, mesh, shape, micro_batch=rows, context=CONTEXT, balance=0.01)
    maker = torch.Generator().manual_seed(engine.data_rank)
    batch = []
    for _ in range(work.micro_batches):
        tokens_BT = torch.randint(shape.vocab, (rows, CONTEXT), generator=maker)
        batch.append(MicroBatch(tokens_BT, tokens_BT.roll(-1, 1), torch.zeros_like(tokens_BT)))
    num_targets = rows * CONTEXT * work.micro_batches
    return watched(engine, make_adamw(engine.parameters), batch, num_targets)
