"""Who takes part in cpu_pretrain.py, and how one training of each is run and read.

Bessemer runs as a user runs it: `bessemer pretrain RECIPE` in a process of its own, timed by the rows
that it writes itself (data, meters and log included). A peer is a script of peers/ in its own
environment, once as it comes and once with the allocator that Bessemer arranges for itself.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from children import Child, ChildFailure, allocator_environment, plain_environment, run_child
from environments import HERE, python_of
from workload import Workload

from bessemer.rundir import counting_rows, read_rows

BESSEMER = "bessemer"
ALLOCATOR = "+allocator"


@dataclass(frozen=True)
class Contestant:
    peer: str | None  # None: Bessemer
    compiled: bool = True
    allocator: bool = False

    @property
    def name(self) -> str:
        if self.peer is None:
            return BESSEMER
        kind = "compiled" if self.compiled else "eager"
        return f"{self.peer}-{kind}{ALLOCATOR if self.allocator else ''}"


CONTESTANTS = (
    Contestant(None),
    *(
        Contestant(peer, compiled, allocator)
        for allocator in (False, True)
        for peer in ("litgpt", "transformers")
        for compiled in (False, True)
    ),
)


@dataclass(frozen=True)
class Sample:
    """One training."""

    tokens_per_s: float  # over the timed steps, all in
    peak_rss_bytes: int
    losses: tuple[float, ...]
    wall_s: float  # of the process: start, compilation and end included
    versions: dict[str, str]


@dataclass(frozen=True)
class Course:
    """Where all of them run."""

    workload: Workload
    folder: Path
    recipe: Path


def train(contestant: Contestant, course: Course, number: int) -> Sample:
    """One training in a new process. Raises ChildFailure. `number` keeps the files of trainings apart."""
    stem = course.folder / f"{number:03d}-{contestant.name}"
    runner = _train_bessemer if contestant.peer is None else _train_peer
    return runner(contestant, course, stem)


def _train_bessemer(contestant: Contestant, course: Course, stem: Path) -> Sample:
    command = [sys.executable, "-m", "bessemer", "pretrain", str(course.recipe), "--json"]
    command += ["--run", str(stem), "--store", str(course.folder / "store")]
    # The checkout that this file is in, whatever else is installed.
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PYTHONPATH": os.pathsep.join(paths), **_compiler_cache(contestant, course)}
    environment = {**plain_environment(), **own}
    log = Path(f"{stem}.log")
    child = run_child(command, course.folder, environment, log)
    rows = counting_rows(read_rows(stem / "pretrain" / "metrics.jsonl"))
    if [row["step"] for row in rows] != list(range(1, course.workload.steps + 1)):
        raise ChildFailure(
            f"{stem / 'pretrain/metrics.jsonl'} has {len(rows)} steps, not {course.workload.steps}"
        )
    return _sample(course.workload, child, [row["time_s"] for row in rows], [row["loss"] for row in rows], {})


def _train_peer(contestant: Contestant, course: Course, stem: Path) -> Sample:
    assert contestant.peer is not None, contestant
    task, result = Path(f"{stem}.task.json"), Path(f"{stem}.result.json")
    tokens = course.folder / "tokens.npy"
    values = course.workload.peer_task(compiled=contestant.compiled, tokens=tokens, result=result)
    task.write_text(json.dumps(values), encoding="utf-8")
    script = HERE / "peers" / f"train_{contestant.peer}.py"
    environment = allocator_environment() if contestant.allocator else plain_environment()
    environment |= _compiler_cache(contestant, course)
    command = [str(python_of(contestant.peer)), str(script), str(task)]
    child = run_child(command, course.folder, environment, Path(f"{stem}.log"))
    measured: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return _sample(course.workload, child, measured["ends_s"], measured["losses"], measured["versions"])


def _compiler_cache(contestant: Contestant, course: Course) -> dict[str, str]:
    """A cache of its own, empty at first: else who comes later would not compile, and need less memory."""
    return {"TORCHINDUCTOR_CACHE_DIR": str(course.folder / "compiled" / contestant.name)}


def _sample(
    workload: Workload,
    child: Child,
    ends_s: Sequence[float],
    losses: Sequence[float],
    versions: dict[str, str],
) -> Sample:
    """Tokens of the timed steps over the time from the end of the warm-up to the last step's end."""
    assert len(ends_s) == len(losses) == workload.steps, (len(ends_s), len(losses), workload.steps)
    span_s = ends_s[-1] - ends_s[workload.warmup_steps - 1]
    rate = workload.timed_steps * workload.batch_tokens / span_s
    return Sample(rate, child.peak_rss_bytes, tuple(losses), child.wall_s, versions)
