"""Layouts on this machine's CPU processes: speed, memory and saving, each against what it replaces.

    python benchmarks/parallel_cpu.py [--tiny] [--only ddp]

Everything in one run, as ratios, on whatever two cores there are; `--tiny` only tries the code, `--only` runs
one part and prints it. All of it is written to benchmarks/results/parallel_cpu.json. What is measured:

    speed    tokens/s of each layout on 2 processes of 1 thread, over 1 process of 2 threads
    ddp      replicate=2 against torch's DistributedDataParallel on the same model: the same two processes do
             a step of one and a step of the other in turns, so that what else runs slows both alike
    memory   peak of a rank's tensors, shard=4, over a quarter of the model's state and two blocks (gathered
             weights and whole gradients)
    pipeline peak of a rank's tensors, pipeline=4, for 4, 8 and 16 micro-batches: 1F1B holds no more
    save     seconds that training stands still for a checkpoint, written at once or in the background
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from operator import truediv
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bessemer.checkpoint.saver import Saver
from bessemer.data.loader import Batches, MicroBatch
from bessemer.data.rows import Row, Rows
from bessemer.formulas.layout import Layout
from bessemer.formulas.parameters import total_params
from bessemer.formulas.shape import ModelShape
from bessemer.launch.local import run_workers
from bessemer.launch.world import world_of_environment
from bessemer.parallel.apply import build_parts, joined, materialise
from bessemer.parallel.engine import Engine, Ranks, summed_loss
from bessemer.parallel.mesh import Mesh
from bessemer.parallel.traffic import TensorMemory
from bessemer.parallel.vocabulary import split_head
from bessemer.planner.layout import parse_layout
from bessemer.planner.plan import StagePlan
from bessemer.train.optimizer import make_optimizer
from bessemer.train.ranks import joined as joined_world

RESULT = Path(__file__).parent / "results" / "parallel_cpu.json"
SHAPE = ModelShape(
    family="llama", layers=8, hidden=256, heads=8, kv_heads=8, head_dim=32, ffn=704, vocab=4096,
    context=256, tie_embeddings=False, qk_norm=False,
)  # fmt: skip
TINY = replace(SHAPE, layers=4, hidden=64, heads=4, kv_heads=4, head_dim=16, ffn=160, vocab=256, context=64)
LAYOUTS = ("replicate=2", "shard=2", "shard=2,reshard=no", "tensor=2", "context=2", "pipeline=2",
           "pipeline=2,schedule=interleaved", "pipeline=2,schedule=zbv")  # fmt: skip
PARTS = ("speed", "ddp", "memory", "pipeline", "save")
ROWS = 16  # of a step
DATE = time.strftime("%F")


class RandomRows(Rows):
    """Two documents a row, made anew at each call."""

    def __init__(self, shape: ModelShape) -> None:
        self._shape = shape

    def __len__(self) -> int:
        return 4096

    def row(self, index: int) -> Row:
        length = self._shape.context
        tokens = np.random.default_rng(index).integers(0, self._shape.vocab, length + 1).astype(np.int32)
        starts = np.where(np.arange(length) < length // 3, 0, length // 3).astype(np.int32)
        return Row(tokens[:-1], tokens[1:], starts)

    def documents(self, index: int) -> list[tuple[int, int, int]]:
        return []


def engine_of(layout: Layout, shape: ModelShape, micro_batch: int) -> Engine:
    mesh = Mesh(layout, torch.device("cpu"))
    parts = build_parts(shape, torch.float32, mesh, context=shape.context)
    materialise(joined(parts), shape, mesh, 0)
    if layout.world == 1:
        return Engine(parts[0], summed_loss)
    loss = partial(summed_loss, head=split_head(mesh, shape.vocab))
    return Ranks(parts, loss, mesh, shape, micro_batch=micro_batch, context=shape.context)


class Step:
    """One update a call."""

    def __init__(self, layout: Layout, shape: ModelShape, rows: int, micro_batch: int) -> None:
        self.engine = engine_of(layout, shape, micro_batch)
        self.optimizer = make_optimizer(self.engine.model, PLAN)
        self._batches = Batches(
            RandomRows(shape), 0, rows, micro_batch, self.engine.data_rank, self.engine.data_ranks
        )
        self._rows, self._done = rows, 0

    def __call__(self) -> None:
        batch = self._batches.batch(self._done * self._rows)
        self._done += 1
        targets = self.engine.total(batch.num_targets)
        loss = self.engine.forward_backward(batch.micro_batches, targets)
        self.engine.finish(loss, targets, 1.0, False)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class DdpStep:
    """The same update with torch's DistributedDataParallel."""

    def __init__(self, shape: ModelShape, rows: int, micro_batch: int) -> None:
        world = world_of_environment()
        assert world is not None
        model = engine_of(Layout(), shape, micro_batch).model

        class Whole(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = model

            def forward(self, part: MicroBatch) -> Tensor:
                return summed_loss(self.inner, part)

        self._model = DistributedDataParallel(Whole())
        self._optimizer = make_optimizer(self._model, PLAN)
        self._batches = Batches(RandomRows(shape), 0, rows, micro_batch, world.rank, world.size)
        self._rows, self._done, self._world = rows, 0, world.size

    def __call__(self) -> None:
        batch = self._batches.batch(self._done * self._rows)
        self._done += 1
        targets = batch.num_targets * self._world  # each rank has as many here
        for number, part in enumerate(batch.micro_batches):
            last = number == len(batch.micro_batches) - 1
            with nullcontext() if last else self._model.no_sync():
                (self._model(part) * (self._world / targets)).backward()  # it averages over ranks
        nn.utils.clip_grads_with_norm_(
            self._model.parameters(), 1.0, nn.utils.get_total_norm([p.grad for p in self._model.parameters()])
        )
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


PLAN = StagePlan(steps=1000, context=SHAPE.context, batch_rows=ROWS, micro_batch=4, lr=1e-4)


def work(task: dict[str, Any]) -> dict[str, Any]:
    """What one worker measures; every rank runs it, the first one's answer counts."""
    shape, layout = ModelShape.from_json(task["shape"]), Layout.from_json(task["layout"])
    rows, micro_batch = task["rows"], task["micro_batch"]
    step = Step(layout, shape, rows, micro_batch)
    if task["memory"]:
        step()
        with TensorMemory(step.engine.model, step.optimizer) as memory:
            step()
        return {"peak_bytes": memory.peak}
    if task["ddp"]:
        ours, theirs = times_in_turns([step, DdpStep(shape, rows, micro_batch)], task["steps"])
        return {"our_step_s": ours, "ddp_step_s": theirs}
    return {"step_s": statistics.median(times_in_turns([step], task["steps"])[0])}


def times_in_turns(steps: Sequence[Callable[[], None]], count: int) -> list[list[float]]:
    """Seconds of `count` calls of each, after three that do not count. Every rank begins each at once."""
    times: list[list[float]] = [[] for _ in steps]
    for number in range(3 + count):
        for step, own in zip(steps, times, strict=True):
            if dist.is_initialized():
                dist.barrier()
            begin_s = time.perf_counter()
            step()
            if number >= 3:
                own.append(time.perf_counter() - begin_s)
    return times


def measured(task: dict[str, Any], world: int, threads: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path, answer = Path(folder) / "task.json", Path(folder) / "answer.json"
        path.write_text(json.dumps(task))
        run_workers([sys.executable, __file__, "--worker", str(path)], world, logs=None, threads=threads)
        return json.loads(answer.read_text())  # type: ignore[no-any-return]


def worker(path: Path) -> None:
    world = world_of_environment()
    assert world is not None
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with joined_world(world):
        answer = work(json.loads(path.read_text()))
    if world.rank == 0:
        path.with_name("answer.json").write_text(json.dumps(answer))


def task(shape: ModelShape, layout: Layout, **changes: Any) -> dict[str, Any]:
    given = {"rows": ROWS, "micro_batch": 4, "steps": 15, "memory": False, "ddp": False}
    return {"shape": shape.to_json(), "layout": layout.to_json(), **given, **changes}


def speeds(shape: ModelShape, steps: int) -> dict[str, Any]:
    tokens = ROWS * shape.context
    alone = tokens / measured(task(shape, Layout(), steps=steps), 1, 2)["step_s"]
    rows: dict[str, Any] = {"one process, 2 threads": {"tokens_per_s": alone, "ratio": 1.0}}
    for text in LAYOUTS:
        speed = tokens / measured(task(shape, parse_layout(text), steps=steps), 2, 1)["step_s"]
        rows[text] = {"tokens_per_s": speed, "ratio": speed / alone}
        say(f"{text}: {speed:,.0f} tokens/s, {speed / alone:.2f} of one process with two threads")
    return rows


def against_ddp(shape: ModelShape, steps: int, rounds: int) -> dict[str, Any]:
    ours, theirs = [], []
    for _ in range(rounds):
        found = measured(task(shape, parse_layout("replicate=2"), steps=steps, ddp=True), 2, 1)
        ours.append(found["our_step_s"])
        theirs.append(found["ddp_step_s"])
    # Of neighbours in time: what else runs on the machine changes more slowly than a step takes.
    ratios = [statistics.median(map(truediv, theirs[i], ours[i])) for i in range(rounds)]
    ratio = statistics.median(ratios)
    each = ", ".join(f"{one:.3f}" for one in ratios)
    say(f"replicate=2: {ratio:.3f} of DistributedDataParallel's speed (rounds: {each})")
    return {"our_step_s": ours, "ddp_step_s": theirs, "speed_ratios": ratios, "speed_ratio": ratio}


def memory_of_shards(shape: ModelShape) -> dict[str, Any]:
    small = replace(shape, vocab=256, context=16)  # so that weights are what fills memory
    layout = parse_layout("shard=4")
    peak = measured(task(small, layout, rows=4, micro_batch=1, memory=True), 4, 1)["peak_bytes"]
    block = total_params(replace(small, layers=2)) - total_params(replace(small, layers=1))
    bound = 16 * total_params(small) / 4 + 2 * 8 * block
    say(f"shard=4: {peak / 2**20:.1f} MiB of tensors, bound {bound / 2**20:.1f} MiB")
    return {
        "peak_bytes": peak,
        "state_quarter_and_two_blocks_bytes": bound,
        "with_weights_of_two_blocks_alone_bytes": bound - 2 * 4 * block,
        "ratio": peak / bound,
    }


def memory_of_pipeline(shape: ModelShape) -> dict[str, Any]:
    layout, peaks = parse_layout("pipeline=4"), {}
    for count in (4, 8, 16):
        found = measured(task(shape, layout, rows=count, micro_batch=1, memory=True), 4, 1)
        peaks[count] = found["peak_bytes"]
    say("pipeline=4: " + ", ".join(f"{size / 2**20:.1f} MiB with {n}" for n, size in peaks.items()))
    return {"peak_bytes_by_micro_batches": peaks}


def stalls(shape: ModelShape) -> dict[str, Any]:
    """In this process: three saves each way, the first of which makes buffers and is left out."""
    step = Step(Layout(), shape, 4, 4)
    step()
    found = {}
    for name, asynchronous in (("sync", False), ("async", True)):
        with tempfile.TemporaryDirectory() as folder:
            saver = Saver(Path(folder), 2, asynchronous=asynchronous)
            stalled = []
            for number in range(3):
                saver.save(number + 1, step.engine.model, step.optimizer, {}, {})
                stalled.append(saver.stalled_s)
                saver.wait()
            saver.close()
            found[name] = statistics.median(stalled[1:])
    size = 12 * total_params(shape)
    say(f"save of {size / 1e6:.0f} MB: {found['sync']:.3f} s at once, {found['async']:.3f} s in background")
    return {"bytes": size, "stalled_s": found, "ratio": found["async"] / found["sync"]}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="try the code; figures mean nothing")
    parser.add_argument("--only", choices=PARTS, help="one part, not recorded")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker)
        return
    shape, steps, rounds = (TINY, 2, 1) if args.tiny else (SHAPE, 10, 3)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "speed": lambda: speeds(shape, steps),
        "ddp": lambda: against_ddp(shape, steps, rounds),
        "memory": lambda: memory_of_shards(shape),
        "pipeline": lambda: memory_of_pipeline(shape),
        "save": lambda: stalls(shape if args.tiny else replace(shape, layers=24)),
    }
    result = {
        "date": DATE,
        "command": " ".join(["python", "benchmarks/parallel_cpu.py", *sys.argv[1:]]),
        "torch": torch.__version__,
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "shape": asdict(shape),
        **{name: part() for name, part in parts.items() if args.only in (None, name)},
    }
    if not (args.tiny or args.only):
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
