"""Step times that the planner predicts on this machine, against those of real trainings.

    python benchmarks/planner_cpu.py [--only WORDS] [--again] [--cache DIR]

First `bessemer doctor --calibrate`, in a cache folder of its own (--cache: one that has a calibration), so
that nothing which earlier runs have taught counts. Then for each case a short training with the real command,
in processes of its own; its step time is the median after five steps. Two errors: of the prediction from the
calibration alone, and with --again of the prediction after that run, against a second run of the same.
Written to benchmarks/results/planner_cpu.json, with --only nowhere. About 12 s a case, twice that with
--again. Wants a quiet machine, and waits for one: `busy` is the share of the cores that other processes took
meanwhile; such a case says little.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from columns import columns
from workload import Workload, draw_documents

from bessemer.formulas.shape import ModelShape
from bessemer.hardware import Ceilings, machine
from bessemer.planner.calibrated.step_time import step_seconds, step_time
from bessemer.planner.calibrated.tables import stored_calibration
from bessemer.planner.calibrated.taught import stored_taught
from bessemer.planner.machine.facts import Facts
from bessemer.planner.plan import StagePlan
from bessemer.rundir import read_object, read_rows, steady_median

RESULT = Path(__file__).parent / "results" / "planner_cpu.json"
VOCAB, CONTEXT = 2048, 256
QUIET, PATIENCE_S = 0.06, 120.0  # share of the cores that others may use; how long that is waited for


@dataclass(frozen=True)
class Case:
    """`threads` of each process."""

    layout: str
    threads: int
    hidden: int
    dtype: str
    compiled: bool = False
    experts: int = 0
    layers: int = 4
    rows: int = 16  # of a step
    micro_batch: int = 4
    steps: int = 16

    @property
    def name(self) -> str:
        words = [self.layout, f"{self.threads} threads", str(self.hidden), self.dtype]
        return " ".join(words + ["compiled"] * self.compiled + ["moe"] * bool(self.experts))


ONE = "replicate=1"
CASES = (
    Case(ONE, 2, 128, "fp32", steps=40),
    Case(ONE, 2, 512, "bf16", steps=24),
    Case(ONE, 2, 768, "fp32", steps=14, rows=8),
    Case(ONE, 1, 256, "bf16", steps=30),
    Case(ONE, 1, 384, "fp32", steps=14, rows=8),
    Case(ONE, 2, 512, "bf16", steps=24, compiled=True),
    Case(ONE, 2, 256, "fp32", steps=16, experts=8),
    Case(ONE, 2, 256, "bf16", steps=16, experts=8),
    Case("replicate=2", 1, 384, "fp32"),
    Case("replicate=2", 1, 512, "bf16", steps=20),
    Case("shard=2", 1, 256, "fp32", steps=20),
    Case("shard=2", 1, 768, "bf16", steps=14),
    Case("tensor=2", 1, 512, "fp32", steps=14, rows=8),
    Case("tensor=2", 1, 256, "bf16", steps=20),
    Case("pipeline=2", 1, 384, "fp32"),
    Case("pipeline=2", 1, 768, "bf16", steps=14),
    Case("context=2", 1, 256, "fp32", steps=16),
    Case("context=2", 1, 512, "bf16", steps=16),
    Case("shard=2,expert=2", 1, 256, "fp32", steps=16, experts=8),
    Case("shard=2,expert=2", 1, 256, "bf16", steps=16, experts=8),
)  # fmt: skip


def recipe_text(case: Case) -> str:
    experts = ""
    if case.experts:
        experts = f"experts = {case.experts}\nexperts_per_token = 2\nexpert_ffn = {case.hidden}\n"
    heads = max(2, case.hidden // 64)
    return f"""\
name = "planner-cpu"

[model]
family = "{"qwen3-moe" if case.experts else "llama"}"
layers = {case.layers}
hidden = {case.hidden}
heads = {heads}
kv_heads = {heads}
head_dim = {case.hidden // heads}
ffn = {case.hidden * 8 // 3 // 64 * 64}
context = {CONTEXT}
tie_embeddings = false
{experts}
[tokenizer]
path = "tokenizer.json"

[data]
validation = 0.05

[[data.source]]
name = "zipf"
kind = "tokens"
path = "tokens.jsonl"

[pretrain]
steps = {case.steps}
batch_tokens = {case.rows * CONTEXT}
micro_batch = {case.micro_batch}
lr = 1e-4
dtype = "{case.dtype}"
compile = {str(case.compiled).lower()}
validate_every = {case.steps}
save_every = {case.steps}

[parallel]
layout = "{case.layout}"
"""


def write_data(folder: Path) -> None:
    """Documents as benchmarks/workload.py draws them: much longer than a row."""
    from workload import _tokenizer_text

    workload = Workload(vocab=VOCAB, context=CONTEXT, rows=8, warmup_steps=0, timed_steps=80)
    lines = [json.dumps(document.tolist()) + "\n" for document in draw_documents(workload)]
    (folder / "tokens.jsonl").write_text("".join(lines))
    (folder / "tokenizer.json").write_text(_tokenizer_text(VOCAB))


def train(case: Case, folder: Path, name: str, environment: dict[str, str]) -> tuple[Path, float]:
    """(the stage's folder, share of the cores that others took): of four tries the least disturbed."""
    tries: list[tuple[float, Path]] = []
    for number in range(4):
        wait_until_quiet(PATIENCE_S)
        stage, spent = train_once(case, folder, f"{name}-{number}", environment)
        tries.append((spent, stage))
        if spent < QUIET:
            break
    spent, stage = min(tries, key=lambda pair: pair[0])
    return stage, spent


def wait_until_quiet(patience_s: float) -> None:
    """Until others use little of the cores for some seconds, or patience ends."""
    end_s = time.monotonic() + patience_s
    while time.monotonic() < end_s:
        before = busy_seconds()
        time.sleep(3.0)
        if (busy_seconds() - before) / 3.0 / (os.cpu_count() or 1) < QUIET:
            return


def train_once(case: Case, folder: Path, name: str, environment: dict[str, str]) -> tuple[Path, float]:
    recipe = folder / "recipe.toml"
    recipe.write_text(recipe_text(case))
    command = [sys.executable, "-m", "bessemer", "pretrain", str(recipe), "--run", name, "--json"]
    given = {**environment, "OMP_NUM_THREADS": str(case.threads)}
    before, begin_s = busy_seconds(), time.monotonic()
    own = os.times()
    done = subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{case.name}: exit {done.returncode}\n{done.stderr[-3000:]}")
    after = os.times()
    ours = after.children_user + after.children_system - own.children_user - own.children_system
    spent = (busy_seconds() - before - ours) / (time.monotonic() - begin_s) / (os.cpu_count() or 1)
    return folder / name / "pretrain", max(0.0, spent)


def busy_seconds() -> float:
    """CPU time of all processes of this machine; 0 where nobody tells."""
    try:
        ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    except OSError:
        return 0.0
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def measured_s(stage: Path) -> tuple[float, float]:
    """Median and best step after the first five."""
    rows = read_rows(stage / "metrics.jsonl")
    middle = steady_median(rows, "step_time_s")
    assert middle is not None
    return middle, min(row["step_time_s"] for row in rows[5:])


def prediction(stage: Path, case: Case) -> tuple[float | None, dict[str, float]]:
    """From what is stored now, for what stage.json says was trained."""
    found = read_object(stage / "stage.json")
    assert found is not None
    shape, plan = ModelShape.from_json(found["shape"]), StagePlan.from_json(found["plan"])
    cpu = machine().cpu
    # One process has the threads that it was given, several share the cores out.
    ceilings = Ceilings(cpu, 1.0, 1.0, 1.0, case.threads, "", "")
    facts = Facts(cpu, "cpu", cores=machine().cores, ceilings=ceilings, calibration=stored_calibration(cpu))
    answer = step_seconds(shape, plan, facts)
    found = step_time(shape, plan, replace(facts, taught=stored_taught(cpu))).best
    return found.value, {} if answer is None else answer.parts


def run_case(
    case: Case, folder: Path, number: int, again: bool, environment: dict[str, str]
) -> dict[str, Any]:
    os.environ["XDG_CACHE_HOME"] = environment["XDG_CACHE_HOME"]
    stored = Path(environment["XDG_CACHE_HOME"]) / "bessemer"
    for file in stored.glob("steps-*.json"):  # what the case before taught
        file.unlink()
    stage, busy = train(case, folder, f"run-{number}", environment)
    taught = [(file, file.read_text()) for file in stored.glob("steps-*.json")]
    for file, _ in taught:
        file.unlink()
    predicted, parts = prediction(stage, case)
    middle, best = measured_s(stage)
    row: dict[str, Any] = {"case": case.name, **asdict(case), "measured_s": middle, "best_s": best,
                           "predicted_s": predicted, "parts": parts, "busy": round(busy, 3)}  # fmt: skip
    row["error"] = None if predicted is None else predicted / middle - 1.0
    if again:
        for file, text in taught:
            file.write_text(text)
        row["refined_s"] = prediction(stage, case)[0]
        stage, row["busy_again"] = train(case, folder, f"again-{number}", environment)
        row["again_s"] = measured_s(stage)[0]
        row["refined_error"] = None if row["refined_s"] is None else row["refined_s"] / row["again_s"] - 1.0
    say(
        f"{case.name}: {shown(predicted)} predicted, {middle:.3f} measured ({best:.3f} best), busy {busy:.0%}"
    )
    return row


def table(rows: list[dict[str, Any]]) -> str:
    def percent(value: float | None) -> str:
        return "–" if value is None else f"{value:+.1%}"

    body = [
        [row["case"], shown(row["predicted_s"]), f"{row['measured_s']:.3f}", f"{row['best_s']:.3f}",
         percent(row["error"]), percent(row.get("refined_error")), f"{row['busy']:.0%}"]
        for row in rows
    ]  # fmt: skip
    headings = ["case", "predicted s", "measured s", "best s", "error", "error after a run", "busy"]
    return "\n".join(columns(headings, body))


def shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="cases whose name has one of these words, by comma; not recorded")
    parser.add_argument("--again", action="store_true", help="also a second run of each")
    parser.add_argument("--out", type=Path, help="where to write, instead of benchmarks/results")
    parser.add_argument("--cache", type=Path, help="a cache folder with a calibration, instead of a new one")
    args = parser.parse_args()
    words = args.only.split(",") if args.only else [""]
    chosen = [case for case in CASES if any(word in case.name for word in words)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {**os.environ, "XDG_CACHE_HOME": str(args.cache or folder / "cache")}
        if args.cache is None:
            say("calibrating")
            command = [sys.executable, "-m", "bessemer", "doctor", "--calibrate", "--json"]
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        write_data(folder)
        rows = [run_case(case, folder, number, args.again, environment) for number, case in enumerate(chosen)]
    errors = [abs(row["error"]) for row in rows if row["error"] is not None]
    refined = [abs(row["refined_error"]) for row in rows if row.get("refined_error") is not None]
    result = {
        "date": time.strftime("%F"),
        "command": " ".join(["python", "benchmarks/planner_cpu.py", *sys.argv[1:]]),
        "cpu": machine().cpu,
        "python": platform.python_version(),
        "cores": machine().cores,
        "mean_error": statistics.mean(errors) if errors else None,
        "worst_error": max(errors, default=None),
        "worst_error_after_a_run": max(refined, default=None),
        "cases": rows,
    }
    out = args.out or (None if args.only else RESULT)
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(rows))
    print(json.dumps({key: value for key, value in result.items() if key != "cases"}))


if __name__ == "__main__":
    main()
