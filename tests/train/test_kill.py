"""Killed by SIGKILL at any moment and started again, a run ends bit for bit as one never killed.

Real processes and real kills. Moments are random, from a seed that is printed, and some are aimed inside
the writing of a checkpoint. Data is small, so that most steps are of a second epoch or a later one.
"""

import json
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from making_processes import finish, start, wait_for
from making_runs import (
    SMALL,
    assert_same_tensors,
    assert_same_training,
    curve,
    events,
    pretrained,
    write_recipe,
)
from safetensors.torch import load_file

from bessemer.checkpoint.folder import step_of
from bessemer.data.prepared import open_prepared
from bessemer.rundir import read_object

STEPS = 60
PRETRAIN = ("pretrain", "tiny.toml", "--set", f"pretrain.steps={STEPS}")
# Big enough that a save takes a while: about 12 MB, most of it optimizer state.
WIDE = {**SMALL, "hidden": 192, "ffn": 768}


class Killed:
    """One command, started and killed again and again."""

    def __init__(self, folder: Path, stage: Path, *words: str) -> None:
        self._folder, self._stage, self._words = folder, stage, words

    def start(self) -> "subprocess.Popen[str]":
        return start(self._folder, *self._words)

    def after_step(self, step: int, more_s: float = 0.0) -> None:
        """Kill when the row of a step is there."""
        self._kill(lambda _: bool(curve(self._stage)) and curve(self._stage)[-1][0] >= step, more_s)

    def inside_a_save(self, step: int) -> None:
        """Kill while a file of a checkpoint of `step` or later is half written."""
        for _ in range(5):
            if self._writing(self._kill(lambda pid: bool(self._writing(pid, step)))):
                return
        pytest.fail("no kill met a save")

    def after(self, seconds: float) -> bool:
        """Kill at a time, whatever happens then; whether the command had not ended by itself."""
        process = self.start()
        time.sleep(seconds)
        process.kill()
        return finish(process)[0] != 0

    def to_the_end(self) -> str:
        code, out, error = finish(self.start())
        assert code == 0, error
        return out

    def _kill(self, moment: Callable[[int], bool], more_s: float = 0.0) -> int:
        process = self.start()
        wait_for(process, lambda: moment(process.pid))
        time.sleep(more_s)
        process.kill()
        assert finish(process)[0] == -9
        return process.pid

    def _writing(self, pid: int, step: int = 0) -> list[Path]:
        found = self._stage.glob(f"checkpoints/step-*/.*.{pid}.tmp")
        return [path for path in found if (step_of(path.parent) or 0) >= step]


def dice() -> random.Random:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed of the kills: {seed}")  # shown with a failure: put it here to see the same moments again
    return random.Random(seed)


def epoch_steps(run: Path) -> float:
    info = read_object(run / "pretrain" / "stage.json")
    assert info is not None
    rows = open_prepared(Path(info["data"]["folder"])).rows("train", info["context"])
    return len(rows) / int(info["plan"]["batch_rows"])


def test_killed_in_the_second_epoch_and_inside_a_save_it_ends_bit_for_bit_the_same(tmp_path: Path) -> None:
    write_recipe(tmp_path, sizes=WIDE)
    command = Killed(tmp_path, tmp_path / "run/pretrain", *PRETRAIN, "--run", "run")
    pretrained(tmp_path, f"pretrain.steps={STEPS}", run="never")
    moments = dice()
    command.inside_a_save(15)
    command.after_step(moments.randrange(16, 36), moments.random() * 0.01)
    command.to_the_end()
    assert epoch_steps(tmp_path / "run") < 10
    assert len(events(tmp_path / "run/pretrain", "resume")) >= 2
    assert_same_training(tmp_path / "run/pretrain", tmp_path / "never/pretrain", STEPS)


@pytest.mark.slow
def test_killed_many_times_pretraining_ends_bit_for_bit_the_same(tmp_path: Path) -> None:
    write_recipe(tmp_path, sizes=WIDE, ready=False)
    command = Killed(tmp_path, tmp_path / "run/pretrain", *PRETRAIN, "--run", "run")
    finish(start(tmp_path, *PRETRAIN, "--run", "never"))
    moments = dice()
    for _ in range(3):  # before the first checkpoint too
        command.after(moments.random() * 4.0)
    for step in (5, 15, 25, 35):
        command.inside_a_save(step)
        command.after_step(step + moments.randrange(5), moments.random() * 0.02)
    command.to_the_end()
    assert_same_training(tmp_path / "run/pretrain", tmp_path / "never/pretrain", STEPS)


@pytest.mark.slow
def test_killed_in_bf16_and_compiled_it_ends_bit_for_bit_the_same(tmp_path: Path) -> None:
    write_recipe(tmp_path, sizes=SMALL)
    settings = ("--set", "pretrain.dtype=bf16", "--set", "pretrain.compile=true", "--run")
    command = Killed(tmp_path, tmp_path / "run/pretrain", *PRETRAIN, *settings, "run")
    code, _, error = finish(start(tmp_path, *PRETRAIN, *settings, "never"))
    assert code == 0, error
    for step in (8, 23):
        command.after_step(step + dice().randrange(10))
    command.to_the_end()
    assert_same_training(tmp_path / "run/pretrain", tmp_path / "never/pretrain", STEPS)


@pytest.mark.slow
def test_killed_fine_tuning_ends_bit_for_bit_the_same(tmp_path: Path) -> None:
    write_recipe(tmp_path, task=True, sizes=WIDE)
    pretrained(tmp_path, "pretrain.steps=10", run="base")
    words = ("finetune", "tiny.toml", "--from", "base", "--set", "finetune.epochs=6")
    command = Killed(tmp_path, tmp_path / "run/finetune", *words, "--run", "run")
    code, out, error = finish(start(tmp_path, *words, "--run", "never", "--json"))
    assert code == 0, error
    moments, steps = dice(), json.loads(out)["step"]
    assert steps > 12
    for step in (2, 6, 10):
        command.inside_a_save(step)
        command.after_step(step + moments.randrange(2), moments.random() * 0.02)
    command.to_the_end()
    assert_same_training(tmp_path / "run/finetune", tmp_path / "never/finetune", steps)


@pytest.mark.slow
def test_killed_in_any_stage_the_whole_run_ends_the_same(tmp_path: Path) -> None:
    write_recipe(tmp_path, task=True, sizes=SMALL, ready=False)
    code, out, error = finish(start(tmp_path, "run", *PRETRAIN[1:], "--run", "never", "--json"))
    assert code == 0, error
    command = Killed(tmp_path, tmp_path / "run/pretrain", "run", *PRETRAIN[1:], "--run", "run")
    moments, kills = dice(), 0
    for _ in range(12):
        kills += command.after(0.5 + moments.random() * 4.0)
    command.to_the_end()
    assert kills >= 3
    steps = json.loads(out)["finetune"]["step"]
    for stage, length in (("pretrain", STEPS), ("finetune", steps)):
        assert_same_training(tmp_path / "run" / stage, tmp_path / "never" / stage, length)
    assert losses(tmp_path / "run") == losses(tmp_path / "never")
    exported = [load_file(tmp_path / name / "export/hf/model.safetensors") for name in ("run", "never")]
    assert_same_tensors(*exported)
    assert (tmp_path / "run/report.html").is_file()
    assert "done already" in finish(command.start())[2]


def losses(run: Path) -> dict[str, Any]:
    found = read_object(run / "evaluate" / "results.json")
    assert found is not None
    kept = ("validation_loss", "task_loss", "exact_match", "rouge_l", "samples")
    return {name: {key: row.get(key) for key in kept} for name, row in found["stages"].items()}
