"""Two ranks pause together: the first one looks at the grid, any of them hears a signal."""

import os
import signal
import time
from pathlib import Path

from making_processes import wait_for
from making_runs import assert_same_training, curve, events, write_recipe
from making_worlds import TWO_LAYERS, trained, world

from bessemer.checkpoint.folder import listed, step_of
from bessemer.energy.grid.hourly import HOUR_S, hour_text

STEPS = 100
PRETRAIN = ("pretrain", "tiny.toml", "--set", f"pretrain.steps={STEPS}", "--set", "pretrain.save_every=60")
GRID = ("--set", "energy.intensity=hours.csv", "--set", "energy.pause_above_g_per_kwh=300.0")
LAYOUT = ("--set", "parallel.layout=shard=2")


def write_hours(folder: Path, grams: float) -> None:
    now = int(time.time() // HOUR_S)
    rows = "".join(f"{hour_text(hour)},{grams}\n" for hour in range(now - 1, now + 3))
    (folder / "new.csv").write_text(f"time,g_per_kwh\n{rows}")
    os.replace(folder / "new.csv", folder / "hours.csv")


def test_ranks_pause_at_one_step_stop_by_a_signal_to_one_and_go_on_bitwise(tmp_path: Path) -> None:
    write_recipe(tmp_path, sizes=TWO_LAYERS)
    stage, words = tmp_path / "run/pretrain", (*PRETRAIN, *GRID, *LAYOUT, "--run", "run")
    write_hours(tmp_path, 50.0)
    with world(tmp_path, words, words) as ranks:
        wait_for(ranks, lambda: len(curve(stage)) > 3)  # type: ignore[arg-type]
        write_hours(tmp_path, 900.0)
        wait_for(ranks, lambda: events(stage, "pause"))  # type: ignore[arg-type]
        time.sleep(0.5)
        step = curve(stage)[-1][0]
        assert 3 < step < STEPS and step_of(listed(stage)[0]) == step
        ranks.signal(1, signal.SIGTERM)
        told = ranks.ended(20.0)
    assert [rank.code for rank in told] == [75, 75] and told[1].err == ""
    assert "another rank was asked to stop" in told[0].err
    assert events(stage, "stop_in_pause")[0]["step"] == step
    with world(tmp_path, words, words) as ranks:
        wait_for(ranks, lambda: len(events(stage, "pause")) == 2)  # type: ignore[arg-type]
        write_hours(tmp_path, 50.0)
        assert [rank.code for rank in ranks.ended(60.0)] == [0, 0]
    assert events(stage, "resume_after_pause")[0]["step"] == step
    trained(tmp_path, "shard=2", 2, *PRETRAIN, "--run", "never")
    assert_same_training(stage, tmp_path / "never/pretrain", STEPS)


def test_program_that_tells_no_intensity_ends_all_ranks_with_its_error(tmp_path: Path) -> None:
    write_recipe(tmp_path, sizes=TWO_LAYERS)
    command = ("--allow-code", "--set", 'energy.intensity_command=["false"]', *LAYOUT, "--run", "run")
    with world(tmp_path, (*PRETRAIN, *command), (*PRETRAIN, *command)) as ranks:
        told = ranks.ended(60.0)
    assert [rank.code for rank in told] == [2, 2] and told[1].err == ""
    assert "energy.intensity_command tells no intensity" in told[0].err
