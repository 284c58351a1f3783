"""Whether `layout = "auto"` takes the fastest layout of a CPU's processes: all of them trained, in turns.

    python benchmarks/auto_cpu.py [--only WORDS] [--cache DIR]

First `bessemer doctor --calibrate` (--cache: a folder that has one). Then, for each model, every layout that
the planner compares is trained for 16 steps with the real command, and the median step after five is set
beside the prediction. Told is what auto costs: the step of the layout that it takes over the fastest one's,
for processes that it starts itself and for two that were started; beside it what one process and shards cost.
Written to benchmarks/results/auto_cpu.json. About 10 s a layout, on a quiet machine.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from columns import columns
from planner_cpu import VOCAB, Case, measured_s, recipe_text, say, train, write_data

from bessemer.hardware import machine
from bessemer.measure.facts import gather
from bessemer.model.device import this_device
from bessemer.planner.resolve import resolve_searched
from bessemer.planner.search.processes import ChosenProcesses
from bessemer.recipe.load import load

RESULT = Path(__file__).parent / "results" / "auto_cpu.json"
CASES = (
    Case("auto", 2, 128, "fp32", steps=24),
    Case("auto", 2, 384, "fp32"),
    Case("auto", 2, 512, "bf16"),
    Case("auto", 2, 256, "bf16", experts=8),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", help="cases whose name has one of these words, by comma; not recorded")
    parser.add_argument("--cache", type=Path, help="a cache folder with a calibration, instead of a new one")
    args = parser.parse_args()
    words = args.only.split(",") if args.only else [""]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {**os.environ, "XDG_CACHE_HOME": str(args.cache or folder / "cache")}
        os.environ["XDG_CACHE_HOME"] = environment["XDG_CACHE_HOME"]
        if args.cache is None:
            say("calibrating")
            command = [sys.executable, "-m", "bessemer", "doctor", "--calibrate", "--json"]
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        write_data(folder)
        cases = [case for case in CASES if any(word in case.name for word in words)]
        rows = [run_case(case, folder, environment) for case in cases]
    result = {
        "date": time.strftime("%F"),
        "command": " ".join(["python", "benchmarks/auto_cpu.py", *sys.argv[1:]]),
        "cpu": machine().cpu,
        "cores": machine().cores,
        "cases": rows,
    }
    if not args.only:
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    for row in rows:
        print(table(row))


def run_case(case: Case, folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    alone, two = (compared(case, folder, world) for world in (None, 2))
    measured: dict[str, float] = {}
    for number, way in enumerate(alone.ranked):
        layout = str(way.layout)
        one = replace(case, layout=layout, micro_batch=way.stage.micro_batch,
                      threads=2 if way.layout.world == 1 else 1)  # fmt: skip
        stage, busy = train(one, folder, f"{case.hidden}-{case.dtype}-{case.experts}-{number}", environment)
        measured[layout] = seconds = measured_s(stage)[0]
        say(f"{case.name}, {layout}: {way.step_s:.3f} predicted, {seconds:.3f} measured, busy {busy:.0%}")
    pairs = {layout: seconds for layout, seconds in measured.items() if layout != "replicate=1"}
    return {
        "case": case.name,
        "layouts": [
            {"layout": str(way.layout), "predicted_s": way.step_s, "measured_s": measured[str(way.layout)]}
            for way in alone.ranked
        ],
        "auto": cost(str(alone.layout), measured),
        "one process": cost("replicate=1", measured),
        "auto of two": cost(str(two.layout), pairs),
        "shard=2": cost("shard=2", pairs),
    }


def cost(layout: str, measured: dict[str, float]) -> dict[str, Any]:
    """over_fastest: its step over that of the fastest; 1 is the best that can be."""
    return {"layout": layout, "over_fastest": measured[layout] / min(measured.values())}


def compared(case: Case, folder: Path, world: int | None) -> ChosenProcesses:
    """What the planner decides of the case, from the calibration alone."""
    recipe = folder / "recipe.toml"
    recipe.write_text(recipe_text(case).replace(f"micro_batch = {case.micro_batch}\n", ""))
    loaded = load(str(recipe), [])
    here = gather(loaded.recipe, folder, this_device())
    facts = replace(here, taught=None, threads=None, vocab=VOCAB)  # of the tokenizer
    chosen = resolve_searched(loaded.recipe, facts, world=world)[1]
    assert isinstance(chosen, ChosenProcesses), "a machine of several cores, calibrated"
    return chosen


def table(row: dict[str, Any]) -> str:
    body = [
        [each["layout"], f"{each['predicted_s']:.3f}", f"{each['measured_s']:.3f}",
         f"{each['predicted_s'] / each['measured_s'] - 1.0:+.1%}"]
        for each in row["layouts"]
    ]  # fmt: skip
    lines = [row["case"], *columns(["layout", "predicted s", "measured s", "error"], body)]
    for name in ("auto", "one process", "auto of two", "shard=2"):
        lines.append(
            f"{name}: {row[name]['layout']}, {row[name]['over_fastest']:.2f} of the fastest one's step"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
