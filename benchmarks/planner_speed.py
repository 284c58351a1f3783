"""How long `bessemer plan` takes: whole processes, from the start of Python to the last line; and its import.

    python benchmarks/planner_speed.py

The target: 1 s for 1,024 devices, 10 s for 100,000, 0.3 s to import; each run three times, the median told,
in CPU seconds beside wall seconds, as other work on the machine makes the latter longer. After a first run
that is not counted, so that modules are compiled, as they are wherever Python may write its bytecode
(PYTHONDONTWRITEBYTECODE makes each process compile 115 of them again: 0.13 s).
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

RUNS = [
    ("llama-70b", "64xH100", 1.0),
    ("llama-70b", "1024xH100", 1.0),
    ("llama-405b", "1024xH100", 1.0),
    ("qwen-moe-30b-a3b", "1024xH100", 1.0),
    ("deepseek-style-671b", "1024xH100", 1.0),
    ("deepseek-style-671b", "2048xH800", 2.0),
    ("llama-405b", "16384xH100", 3.0),
    ("llama-405b", "100000xH100", 10.0),
    ("deepseek-style-671b", "100000xH100", 10.0),
]
REPEATS = 3


def main() -> int:
    late = 0
    print(f"{'run':45} {'wall s':>8} {'CPU s':>8} {'target':>8}")
    importing = [sys.executable, "-c", "import bessemer.cli.plan, bessemer.planner.resolve"]
    rows = [("import of the planner", importing, 0.3)]
    for recipe, cluster, target in RUNS:
        command = [sys.executable, "-m", "bessemer", "plan", recipe, "--cluster", cluster]
        rows.append((f"plan {recipe} --cluster {cluster}", command, target))
    with tempfile.TemporaryDirectory() as compiled:
        for name, command, target in rows:
            wall_s, cpu_s = timed(command, compiled)
            late += cpu_s > target
            print(f"{name:45} {wall_s:8.2f} {cpu_s:8.2f} {target:8.1f}{'  late' if cpu_s > target else ''}")
    return 1 if late else 0


def timed(command: list[str], compiled: str) -> tuple[float, float]:
    """(wall, CPU) seconds, medians of some runs. Exit codes: 0, or 3 where nothing fits.

    compiled: the folder of the bytecode.
    """
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPYCACHEPREFIX": compiled}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    walls, cpus = [], []
    for repeat in range(REPEATS + 1):
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False, env=env
        )
        seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
        if repeat > 0:  # the first one compiles
            walls.append(seconds)
            cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if done.returncode not in (0, 3):
            raise SystemExit(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr.decode()}")
    return statistics.median(walls), statistics.median(cpus)


if __name__ == "__main__":
    raise SystemExit(main())
