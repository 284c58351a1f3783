"""Who takes part in finetune_cpu.py, and how one training of each is run and read.

Bessemer runs as a user runs it: `bessemer finetune RECIPE` in a process of its own, timed by the rows that it
writes itself. A peer is a script of peers/ in the peers' environment. What is counted are tokens of examples:
padding is work, but not of use.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from children import Child, ChildFailure, plain_environment, run_child
from environments import HERE, python_of
from finetune_work import LORA, PEER, SFT, Workload

from bessemer.data.order import samples
from bessemer.data.prepared import PreparedTask, open_prepared
from bessemer.rundir import counting_rows, read_object, read_rows


@dataclass(frozen=True)
class Side:
    course: str
    script: str | None  # of peers/; None: Bessemer
    kind: str = ""
    compiled: bool = True

    @property
    def name(self) -> str:
        if self.script is None:
            return f"{self.course}: bessemer"
        peer = self.script.removeprefix("train_").removesuffix(".py")
        return f"{self.course}: {peer} {self.kind}, {'compiled' if self.compiled else 'eager'}"


SIDES = (
    Side(SFT, None),
    *(Side(SFT, "train_trl.py", kind, way) for kind in ("bfd", "bfd-rows") for way in (False, True)),
    Side(SFT, "train_trl.py", "wrapped", True),
    Side(SFT, "train_trl.py", "padded", False),
    Side(LORA, None),
    *(Side(LORA, "train_peft.py", kind, way) for kind in ("loop", "trainer") for way in (False, True)),
)


@dataclass(frozen=True)
class Sample:
    """One training."""

    tokens_per_s: float  # of examples, over the timed steps, all in
    step_s: float  # mean of the timed steps
    fill: float  # tokens of examples over those of full rows
    peak_rss_bytes: int
    losses: tuple[float, ...]
    wall_s: float  # of the process: start, preparation of the data, compilation and end included
    leaks: bool | None  # whether packed examples see each other; None: nobody tried
    versions: dict[str, str]


def train(side: Side, workload: Workload, folder: Path, number: int) -> Sample:
    """One training in a new process. Raises ChildFailure. `number` keeps the files of trainings apart."""
    stem = folder / f"{number:03d}"
    runner = _train_bessemer if side.script is None else _train_peer
    return runner(side, workload, folder, stem)


def _train_bessemer(side: Side, workload: Workload, folder: Path, stem: Path) -> Sample:
    command = [sys.executable, "-m", "bessemer", "finetune", str(folder / f"{side.course}.toml"), "--json"]
    command += ["--run", str(stem), "--store", str(folder / "store")]
    # The checkout that this file is in, whatever else is installed.
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**_environment(side, folder), "PYTHONPATH": os.pathsep.join(paths)}
    child = run_child(command, folder, environment, Path(f"{stem}.log"))
    rows = counting_rows(read_rows(stem / "finetune" / "metrics.jsonl"))[: workload.steps]
    if [row["step"] for row in rows] != list(range(1, workload.steps + 1)):
        raise ChildFailure(f"{stem}/finetune/metrics.jsonl has {len(rows)} steps, not {workload.steps}")
    measured = {
        "ends_s": [row["time_s"] for row in rows],
        "losses": [row["loss"] for row in rows],
        "tokens": _tokens_of_steps(stem / "finetune", workload),
        "versions": {},
    }
    return _sample(workload, child, measured)


def _tokens_of_steps(stage: Path, workload: Workload) -> list[int]:
    """Of examples: the rows say where each begins and ends, and the order which rows a step reads."""
    info = read_object(stage / "stage.json")
    assert info is not None, stage
    data = open_prepared(Path(info["data"]["folder"]))
    assert isinstance(data, PreparedTask), data.folder
    rows = data.rows("train", workload.context)
    shown = samples(info["seed"], np.arange(workload.steps * workload.rows), len(rows)).tolist()
    filled = [max(end for _, _, end in rows.documents(index)) for index in shown]
    return [sum(filled[step * workload.rows :][: workload.rows]) for step in range(workload.steps)]


def _train_peer(side: Side, workload: Workload, folder: Path, stem: Path) -> Sample:
    assert side.script is not None, side
    task, result = Path(f"{stem}.task.json"), Path(f"{stem}.result.json")
    values = workload.peer_task(kind=side.kind, compiled=side.compiled, folder=folder, result=result)
    task.write_text(json.dumps(values), encoding="utf-8")
    command = [str(python_of(PEER)), str(HERE / "peers" / side.script), str(task)]
    child = run_child(command, folder, _environment(side, folder), Path(f"{stem}.log"))
    measured: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return _sample(workload, child, measured)


def _environment(side: Side, folder: Path) -> dict[str, str]:
    """A compiler's cache of its own, empty at first; nothing is looked up in a network."""
    cache = str(folder / "compiled" / side.name.replace(" ", "_"))
    return {**plain_environment(), "TORCHINDUCTOR_CACHE_DIR": cache, "HF_HUB_OFFLINE": "1"}


def _sample(workload: Workload, child: Child, measured: dict[str, Any]) -> Sample:
    """Tokens of the timed steps over the time from the end of the warm-up to the last step's end."""
    ends_s: Sequence[float] = measured["ends_s"]
    tokens: Sequence[int] = measured["tokens"]
    assert len(ends_s) == len(tokens) == len(measured["losses"]) == workload.steps, (ends_s, tokens)
    span_s, trained = ends_s[-1] - ends_s[workload.warmup_steps - 1], sum(tokens[workload.warmup_steps :])
    return Sample(
        tokens_per_s=trained / span_s,
        step_s=span_s / workload.timed_steps,
        fill=trained / (workload.timed_steps * workload.rows * workload.context),
        peak_rss_bytes=child.peak_rss_bytes,
        losses=tuple(measured["losses"]),
        wall_s=child.wall_s,
        leaks=measured.get("leaks"),
        versions=measured["versions"],
    )
