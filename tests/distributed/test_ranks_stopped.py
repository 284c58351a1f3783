"""Several ranks stop by a signal at the same step, saved, told once; and a step that is not finite."""

import signal
from pathlib import Path

import pytest
from making_processes import finish, start, wait_for
from making_runs import assert_same_training, curve, events, fail, write_recipe
from making_worlds import TWO_LAYERS, run_world, trained, world

from bessemer.checkpoint.folder import listed, newest_good, step_of

STEPS = 150
PRETRAIN = ("pretrain", "tiny.toml", "--set", f"pretrain.steps={STEPS}", "--set", "pretrain.save_every=60")
LAYOUT = ("--set", "parallel.layout=shard=2", "--run", "run")


@pytest.mark.parametrize(
    "numbers", [[signal.SIGTERM], pytest.param([signal.SIGINT, signal.SIGTERM], marks=pytest.mark.slow)]
)
def test_signals_to_the_command_stop_all_ranks_at_one_step_and_it_goes_on(
    tmp_path: Path, numbers: list[signal.Signals]
) -> None:
    write_recipe(tmp_path, sizes=TWO_LAYERS)
    stage = tmp_path / "run/pretrain"
    for number in numbers:
        process, begun = start(tmp_path, *PRETRAIN, *LAYOUT), len(curve(stage))
        wait_for(process, lambda begun=begun: len(curve(stage)) > begun + 3)  # type: ignore[misc]
        process.send_signal(number)
        code, out, err = finish(process)
        last = curve(stage)[-1][0]
        assert code == 75 and out == "" and err.count("stopped: ") == 1 and "Traceback" not in err
        assert f"at step {last} of {STEPS}, and saved" in err
        assert begun < last < STEPS and step_of(listed(stage)[0]) == last
        assert [row["step"] for row in events(stage, "stop")][-1] == last
    for run in ("run", "never"):
        trained(tmp_path, "shard=2", 2, *PRETRAIN, "--run", run)
    assert_same_training(stage, tmp_path / "never/pretrain", STEPS)


def test_signal_to_one_rank_stops_all_and_is_told_by_the_first(tmp_path: Path) -> None:
    write_recipe(tmp_path, sizes=TWO_LAYERS)
    stage = tmp_path / "run/pretrain"
    words = (*PRETRAIN, *LAYOUT)
    with world(tmp_path, words, words) as ranks:
        wait_for(ranks, lambda: len(curve(stage)) > 3)  # type: ignore[arg-type]
        ranks.signal(1, signal.SIGTERM)
        told = ranks.ended(20.0)
    assert [rank.code for rank in told] == [75, 75] and told[1].err == ""
    assert told[0].err.count("stopped: ") == 1 and "another rank was asked to stop" in told[0].err
    assert step_of(listed(stage)[0]) == curve(stage)[-1][0] < STEPS


def test_step_that_is_not_finite_is_told_once_and_leaves_the_checkpoint(tmp_path: Path) -> None:
    write_recipe(tmp_path, sizes=TWO_LAYERS)
    words = ("pretrain", "tiny.toml", "--set", "pretrain.lr=1e30", "--set", "pretrain.save_every=1", *LAYOUT)
    told = run_world(tmp_path, words, words)
    assert [rank.code for rank in told] == [77, 77] and told[1].err == ""
    assert told[0].err.count("error: ") == 1 and "not finite" in told[0].err
    (row,) = events(tmp_path / "run/pretrain", "diverged")
    good = newest_good(tmp_path / "run/pretrain", fail)
    assert good is not None and 1 <= good[1].step < row["step"]


@pytest.mark.slow
def test_step_that_is_not_finite_ends_the_command_with_one_message(tmp_path: Path) -> None:
    write_recipe(tmp_path, sizes=TWO_LAYERS)
    code, out, err = finish(start(tmp_path, "pretrain", "tiny.toml", "--set", "pretrain.lr=1e30", *LAYOUT))
    assert code == 77 and out == "" and err.count("error: ") == 1, err
    assert "not finite" in err and "Traceback" not in err
