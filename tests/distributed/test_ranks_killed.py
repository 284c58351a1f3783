"""Several ranks, killed by SIGKILL at any moment and started again, end bit for bit as if never killed.

By hand all ranks die at once, as in a power failure; of the command, it alone or one of its workers.
"""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from making_processes import finish, start, wait_for
from making_runs import assert_same_training, curve, events, write_recipe
from making_worlds import TWO_LAYERS, lives, trained, workers_of, world

STEPS = 100  # far beyond the steps at which they are killed, should this look late
PRETRAIN = ("pretrain", "tiny.toml", "--set", f"pretrain.steps={STEPS}")


def dice() -> random.Random:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed of the kills: {seed}")  # shown with a failure: put it here to see the same moments again
    return random.Random(seed)


def at_step(stage: Path, step: int) -> bool:
    rows = curve(stage)
    return bool(rows) and rows[-1][0] >= step


@pytest.mark.parametrize(
    ("layout", "size"), [("shard=2", 2), pytest.param("shard=2,pipeline=2", 4, marks=pytest.mark.slow)]
)
def test_killed_at_random_it_ends_bit_for_bit_the_same(tmp_path: Path, layout: str, size: int) -> None:
    write_recipe(tmp_path, sizes=TWO_LAYERS)
    stage, moments = tmp_path / "run/pretrain", dice()
    trained(tmp_path, layout, size, *PRETRAIN, "--run", "never")
    words = (*PRETRAIN, "--run", "run", "--set", f"parallel.layout={layout}")
    for earliest in (4, 14):
        with world(tmp_path, *[words] * size) as ranks:
            step = moments.randrange(earliest, earliest + 8)
            wait_for(ranks, lambda step=step: at_step(stage, step))  # type: ignore[arg-type, misc]
            time.sleep(moments.random() * 0.05)
    trained(tmp_path, layout, size, *PRETRAIN, "--run", "run")
    assert len(events(stage, "resume")) >= 1
    assert_same_training(stage, tmp_path / "never/pretrain", STEPS)


def test_of_a_killed_command_no_worker_lives_on_and_one_killed_worker_ends_it(tmp_path: Path) -> None:
    write_recipe(tmp_path, sizes=TWO_LAYERS)
    layout, stage, moments = "shard=2", tmp_path / "run/pretrain", dice()
    words = (*PRETRAIN, "--run", "run", "--set", f"parallel.layout={layout}")

    process = start(tmp_path, *words)
    wait_for(process, lambda: at_step(stage, 3 + moments.randrange(5)))
    workers = workers_of(process.pid)
    process.kill()
    end_s = time.monotonic() + 5.0
    while any(map(lives, workers)):
        assert time.monotonic() < end_s, workers
        time.sleep(0.01)
    assert len(workers) == 2 and finish(process)[0] == -signal.SIGKILL

    process, begun = start(tmp_path, *words), curve(stage)[-1][0]
    wait_for(process, lambda: curve(stage)[-1][0] > begun)
    os.kill(workers_of(process.pid)[1], signal.SIGKILL)
    code, out, err = finish(process)
    assert (code, out) == (1, "") and err.count("error:") == 1 and "Traceback" not in err
    assert "error: rank 1 was killed by SIGKILL: out of memory is the usual cause" in err
    assert "run the same command again to go on" in err

    for run in ("run", "never"):  # by hand, which is quicker; that the command goes on is shown above
        trained(tmp_path, layout, 2, *PRETRAIN, "--run", run)
    assert_same_training(stage, tmp_path / "never/pretrain", STEPS)
