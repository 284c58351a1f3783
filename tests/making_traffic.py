"""Real processes that run a step of many layouts, one after the other, and say what they sent.

`measure` starts one process a rank; each layout takes the first of them that it needs.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bessemer.data.loader import MicroBatch
from bessemer.formulas.layout import Layout
from bessemer.formulas.memory import Workload
from bessemer.formulas.shape import ModelShape
from bessemer.formulas.traffic import Collective
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


def measure(cases: list[Case], timeout_s: float = 120.0) -> list[list[Rehearsal]]:
    """What each rank did: by case, by rank."""
    world = max(layout.world for _, layout, _ in cases)
    with tempfile.TemporaryDirectory() as folder:
        described = [[shape.to_json(), layout.to_json(), asdict(work)] for shape, layout, work in cases]
        (Path(folder) / "cases.json").write_text(json.dumps(described))
        path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        ranks = [
            subprocess.Popen(
                [sys.executable, __file__, folder, str(rank), str(world)],
                env=environment,
                stderr=subprocess.PIPE,
            )
            for rank in range(world)
        ]
        try:
            errors = [each.communicate(timeout=timeout_s)[1].decode() for each in ranks]
        finally:
            for each in ranks:
                each.kill()
        codes = [each.returncode for each in ranks]
        assert codes == [0] * world, f"{codes}\n" + "\n".join(error[-3000:] for error in errors)
        found = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(world)]
    return [
        [_read(found[rank][number]) for rank in range(layout.world)]
        for number, (_, layout, _) in enumerate(cases)
    ]


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


def _main(folder: Path, rank: int, world: int) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world)
    found: list[Any] = []
    for number, (shape, layout, work) in enumerate(json.loads((folder / "cases.json").read_text())):
        chosen = Layout.from_json(layout)
        found.append(None)
        if rank < chosen.world:
            dist.init_process_group(
                "gloo", store=dist.PrefixStore(str(number), store), rank=rank, world_size=chosen.world,
                timeout=timedelta(seconds=60),
            )  # fmt: skip
            found[-1] = _run(ModelShape.from_json(shape), chosen, Workload(**work)).to_json()
            dist.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps(found))
    os._exit(0)  # the store's file goes with the folder; nobody waits for the others


if __name__ == "__main__":
    _main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
