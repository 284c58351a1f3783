"""The example of docs/library.md, run as its reader would run it, and killed once on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bessemer.checkpoint.folder import listed, verify
from bessemer.rundir import Row, counting_rows, read_rows

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "own_model.py"
EXACT = ("step", "loss", "grad_norm", "lr", "tokens")  # what resuming promises bit for bit


def begin(texts: Path, run: Path) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", str(EXAMPLE), str(texts), str(run)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(child: "subprocess.Popen[str]") -> None:
    _, told = child.communicate(timeout=100)
    assert child.returncode == 0, told


def kill_after(child: "subprocess.Popen[str]", stage: Path, num_rows: int) -> None:
    """Once there are so many rows, and a checkpoint: it is written beside the steps, which are short."""
    limit_s = time.monotonic() + 100
    while len(read_rows(stage / "metrics.jsonl")) < num_rows or not listed(stage):
        assert child.poll() is None and time.monotonic() < limit_s, "it ended or hung before the kill"
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    child.communicate(timeout=100)
    assert child.returncode == -signal.SIGKILL


def weights(run: Path) -> dict[str, Any]:
    """Sizes and hashes of the files of the last checkpoint: model and optimizer."""
    return verify(listed(run / "pretrain")[0]).files


def exact(run: Path) -> list[tuple[Any, ...]]:
    rows: list[Row] = counting_rows(read_rows(run / "pretrain" / "metrics.jsonl"))
    return [tuple(row[key] for key in EXACT) for row in rows]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a run that nothing disturbed, one that was killed between two checkpoints and called again)."""
    base = tmp_path_factory.mktemp("own")
    (base / "texts").mkdir()
    for file in (ROOT / "bessemer" / "data").glob("*.py"):
        shutil.copy(file, base / "texts")
    calm, killed = base / "calm", base / "killed"
    undisturbed, first = begin(base / "texts", calm), begin(base / "texts", killed)
    kill_after(first, killed / "pretrain", 14)
    finish(begin(base / "texts", killed))
    finish(undisturbed)
    return calm, killed


def test_own_model_learns(runs: tuple[Path, Path]) -> None:
    losses = [row[1] for row in exact(runs[0])]
    assert len(losses) == 40 and losses[-1] < losses[0] - 0.5


def test_own_model_was_resumed_from_a_checkpoint(runs: tuple[Path, Path]) -> None:
    events = read_rows(runs[1] / "pretrain" / "events.jsonl")
    begun = [(row["kind"], row["step"]) for row in events if row["kind"] in ("start", "resume")]
    assert begun in ([("start", 0), ("resume", step)] for step in (10, 20, 30))


def test_own_model_killed_and_resumed_ends_with_the_same_bits(runs: tuple[Path, Path]) -> None:
    calm, killed = runs
    assert exact(killed) == exact(calm)
    assert weights(killed) == weights(calm)


def test_own_model_has_no_figure_that_nobody_measured(runs: tuple[Path, Path]) -> None:
    rows = read_rows(runs[0] / "pretrain" / "metrics.jsonl")
    assert {json.dumps(row["mfu"]) for row in rows} == {"null"}
    assert all(row["tokens_per_s"] > 0 for row in rows)
