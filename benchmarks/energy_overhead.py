"""What metering energy takes of a step: a real pre-training here, with a row (so a reading) every step.

    python benchmarks/energy_overhead.py [--steps N] [--json FILE] [--tiny]

Timed from outside, in the training process: all time within train/metering.py, which reads the meters and
books phases. Two kinds of readers: those of a machine without counters, and RAPL of two packages with their
memory, as a tree of files in the kernel's form whose counters move. The target: 0.5 % of step time. Where
other work is on the machine, wall time is mostly waiting for a core: so CPU time is told as well, as a share
of what each thread of the training took.
Cost: half a minute.
"""

import argparse
import json
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from bessemer.launch.environment import arrange

TARGET = 0.005
RECIPE = """name = "overhead"
[model]
layers = {layers}
hidden = {hidden}
heads = 4
kv_heads = 4
ffn = {ffn}
context = 256
[tokenizer]
vocab = 1000
[data]
validation = 0.1
[[data.source]]
name = "texts"
kind = "text"
path = "texts"
[pretrain]
steps = {steps}
batch_tokens = 2048
lr = 1e-3
compile = false
log_every = 1
validate_every = 20
save_every = 20
"""
SIZES = {"layers": 4, "hidden": 256, "ffn": 768}
TINY = {"layers": 1, "hidden": 32, "ffn": 48}
ZONES = ("package-0", "package-1")


class Stopwatch:
    """Time within functions; one that is called by another of them counts once."""

    def __init__(self) -> None:
        self._depth = 0
        self.start()

    def start(self) -> None:
        self.seconds, self.cpu_s, self.process_s, self.calls = 0.0, 0.0, 0.0, 0

    def around(self, owner: Any, name: str) -> None:
        real: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **more: Any) -> Any:
            self._depth += 1
            begin_s, begin_cpu_s = time.perf_counter(), time.thread_time()
            begin_process_s = time.process_time()
            try:
                return real(*args, **more)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.perf_counter() - begin_s
                    self.cpu_s += time.thread_time() - begin_cpu_s
                    self.process_s += time.process_time() - begin_process_s
                    self.calls += 1

        setattr(owner, name, timed)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: its share says nothing")
    args = parser.parse_args(argv)
    arrange()
    found = measure(args.steps, TINY if args.tiny else SIZES)
    print(f"{'readers':20} {'step':>10} {'metering a step':>17} {'share':>8} {'CPU':>9} {'share':>8}")
    for name, row in found["readers"].items():
        print(
            f"{name:20} {1e3 * row['step_time_s']:7.1f} ms {1e6 * row['metering_s']:14.0f} µs "
            f"{row['share']:8.3%} {1e6 * row['metering_cpu_s']:6.0f} µs {row['share_of_cpu']:8.3%}"
        )
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if args.tiny or all(row["share"] <= TARGET for row in found["readers"].values()) else 1


def measure(steps: int, sizes: dict[str, int]) -> dict[str, Any]:
    # Not before `arrange`: the environment decides how torch allocates and how many threads it takes.
    import torch

    from bessemer.energy.metering.meter import PowerMeter
    from bessemer.energy.metering.phases import PhasedMeter
    from bessemer.train import metering

    watch = Stopwatch()
    for name in ("row", "keep_up", "fellows_told", "started"):
        watch.around(metering.Metering, name)
    watch.around(PhasedMeter, "_book")  # the borders of phases
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_texts(folder)
        (folder / "overhead.toml").write_text(RECIPE.format(steps=steps, **sizes))
        for readers in ("assumed", "RAPL, 2 packages"):
            with _counters(folder / "powercap", is_there=readers != "assumed") as powercap:
                setattr(metering, "PowerMeter", partial(PowerMeter, powercap=powercap))  # noqa: B010
                found[readers] = _trained(folder, readers.split(",")[0], watch)
    return {
        "date": time.strftime("%F"),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "steps": steps,
        "model": sizes,
        "readers": found,
    }


def _trained(folder: Path, name: str, watch: Stopwatch) -> dict[str, Any]:
    import torch

    from bessemer.log import Console
    from bessemer.recipe.load import load
    from bessemer.rundir import read_rows
    from bessemer.train import run as running
    from bessemer.train.pretrain import Place, pretrain

    training = Stopwatch()
    training.around(running, "train")
    watch.start()
    place = Place(folder / name, folder / "data", Console(quiet=True))
    pretrain(load(str(folder / "overhead.toml"), []), place)
    rows = read_rows(folder / name / "pretrain" / "metrics.jsonl")
    metering_s = watch.seconds / len(rows)
    return {
        "step_time_s": rows[-1]["time_s"] / len(rows),  # validation and saves included
        "median_step_time_s": median(row["step_time_s"] for row in rows),
        "metering_s": metering_s,
        "metering_cpu_s": watch.cpu_s / len(rows),
        "calls": watch.calls / len(rows),
        "share": metering_s * len(rows) / rows[-1]["time_s"],
        "share_of_cpu": watch.cpu_s * torch.get_num_threads() / training.process_s,
        "basis": rows[-1]["energy_basis"],
    }


@contextmanager
def _counters(folder: Path, *, is_there: bool) -> Iterator[Path]:
    """Packages and their memory, at 100 W each."""
    if not is_there:
        yield folder / "none"
        return
    zones = []
    for number, name in enumerate(ZONES):
        for zone, kind in ((f"intel-rapl:{number}", name), (f"intel-rapl:{number}:0", "dram")):
            (folder / zone).mkdir(parents=True)
            for file, text in (("name", kind), ("max_energy_range_uj", 10**15), ("energy_uj", 0)):
                (folder / zone / file).write_text(f"{text}\n")
            zones.append(folder / zone)
    ended = threading.Event()

    def count() -> None:
        begin_s = time.monotonic()
        while not ended.wait(0.05):
            for zone in zones:
                (zone / "next").write_text(f"{round(1e8 * (time.monotonic() - begin_s))}\n")
                (zone / "next").replace(zone / "energy_uj")

    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield folder
    finally:
        ended.set()
        thread.join()


def _write_texts(folder: Path) -> None:
    dice = random.Random(0)
    words = ["".join(dice.choice("abcdefghijklmnop") for _ in range(6)) for _ in range(500)]
    (folder / "texts").mkdir()
    for number in range(40):
        text = " ".join(dice.choice(words) for _ in range(1500))
        (folder / "texts" / f"{number:02d}.txt").write_text(text)


if __name__ == "__main__":
    raise SystemExit(main())
