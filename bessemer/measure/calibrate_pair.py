"""One of two processes that a calibration starts: exchanges between them, and speeds while both compute.

`python -m bessemer.measure.calibrate_pair FOLDER`, as a rank of launch/local.py; the first one writes
answer.json.
On accelerators each has a device of its own, which nobody shares, so only exchanges are timed.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bessemer.data.loader import MicroBatch
from bessemer.durable import write_json
from bessemer.measure.probes import COMPUTE, Probes, best_s, small_shape, step_of
from bessemer.model.device import this_device
from bessemer.parallel.apply import build_parts, joined, materialise
from bessemer.parallel.collectives import all_gather, reduce_scatter
from bessemer.parallel.engine import Ranks, summed_loss
from bessemer.parallel.mesh import Mesh
from bessemer.parallel.vocabulary import split_head
from bessemer.planner.calibrated.tables import ANCHOR_LAYOUTS, EXCHANGES, Anchor, Table
from bessemer.planner.layout import parse_layout

_BYTES = {"cpu": (2**8, 2**14, 2**18, 2**21, 2**24)}
_BYTES_ACCELERATOR = (2**10, 2**16, 2**20, 2**24, 2**28)
_LEAST, _ENOUGH_S = 4, 0.03
_WIDTHS = {layout: (256,) if "expert" in layout else (128, 512) for layout in ANCHOR_LAYOUTS}
_EXPERTS = {"experts": 8, "experts_per_token": 2, "expert_ffn": 256}


def main(folder: Path) -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = this_device()
    if device.type != "cpu":
        torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(dist.get_default_backend_for_device(device.type), rank=rank, world_size=world)
    answer: dict[str, Any] = {"speeds": [], "exchanges": {}}
    for kind in EXCHANGES:
        answer["exchanges"][kind] = asdict(exchange_table(kind, device, rank))
    if device.type == "cpu":
        for dtype in COMPUTE:
            dist.barrier()
            found = Probes(device, dtype).speeds(world, torch.get_num_threads())
            more = [
                layout_anchor(layout, hidden, dtype)
                for layout in ANCHOR_LAYOUTS
                for hidden in _WIDTHS[layout]
            ]
            answer["speeds"].append(asdict(replace(found, anchors=(*found.anchors, *more))))
    dist.barrier()
    if rank == 0:
        write_json(folder / "answer.json", answer)
    dist.destroy_process_group()


def layout_anchor(layout: str, hidden: int, dtype: str) -> Anchor:
    """Whole steps of a small model in a layout of both: what exchanging costs beyond the exchange."""
    context, rows = 256, 4
    mesh = Mesh(parse_layout(layout), torch.device("cpu"))
    experts = _EXPERTS if mesh.layout.expert > 1 else {}
    shape = small_shape(hidden, heads=max(2, hidden // 64), context=context, layers=2, **experts)
    rows *= mesh.layout.data
    parts = build_parts(shape, COMPUTE[dtype], mesh, context=context)
    materialise(joined(parts), shape, mesh, 0)
    loss = partial(summed_loss, head=split_head(mesh, shape.vocab))
    engine = Ranks(parts, loss, mesh, shape, micro_batch=4, context=context)
    tokens = torch.randint(shape.vocab, (4, context))
    step = step_of(engine, [MicroBatch(tokens, tokens, torch.zeros_like(tokens))])
    step()  # makes the optimizer's state
    seconds = _agreed_s(step, torch.device("cpu"), least=2, enough_s=0.0)
    return Anchor(2, hidden, shape.heads, shape.ffn, shape.vocab, rows, context, seconds, layout, **experts)


def exchange_table(kind: str, device: torch.device, rank: int) -> Table:
    """Seconds by bytes, as formulas/traffic/step.py counts them: of the whole that is gathered or
    scattered."""
    sizes = _BYTES.get(device.type, _BYTES_ACCELERATOR)
    times = []
    for size in sizes:
        dtype = torch.bfloat16 if kind.endswith("bf16") else torch.float32
        whole = torch.zeros(size // dtype.itemsize, dtype=dtype, device=device)
        work = _exchange(kind.split()[0], whole, rank)
        times.append(_agreed_s(work, device))
    return Table((tuple(map(float, sizes)),), tuple(times), (1,))


def _agreed_s(
    work: Callable[[], object], device: torch.device, least: int = _LEAST, enough_s: float = _ENOUGH_S
) -> float:
    """The best of a number of repetitions on which both agree."""
    once = torch.tensor([best_s(work, device, 0.0, least=least)], dtype=torch.float64, device=device)
    dist.all_reduce(once, op=dist.ReduceOp.MAX)
    if not enough_s:
        return float(once)
    more = max(1, min(200, int(enough_s / max(1e-6, float(once)))))
    again = torch.tensor([best_s(work, device, 0.0, least=more)], dtype=torch.float64, device=device)
    dist.all_reduce(again, op=dist.ReduceOp.MAX)
    return min(float(once), float(again))


def _exchange(kind: str, whole: Tensor, rank: int) -> Callable[[], object]:
    part, world = torch.empty_like(whole[: len(whole) // 2]), dist.group.WORLD
    assert world is not None
    if kind == "all_reduce":
        return lambda: dist.all_reduce(whole)
    if kind == "all_gather":
        return lambda: all_gather(part, world)
    if kind == "reduce_scatter":
        return lambda: reduce_scatter(whole, world)
    if kind == "all_to_all":
        received = torch.empty_like(whole)
        return lambda: dist.all_to_all_single(received, whole)

    def there_and_back() -> None:
        if rank == 0:
            dist.send(whole, 1)
        else:
            dist.recv(whole, 0)

    return there_and_back


if __name__ == "__main__":
    main(Path(sys.argv[1]))
