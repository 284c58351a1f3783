"""Under torchrun itself: the shard fills the world, one answer on stdout, and the run goes on."""

import json
import os
import signal
from pathlib import Path

import pytest
from making_processes import finish, wait_for
from making_runs import curve, pretrained, write_recipe
from making_worlds import HELD, TWO_LAYERS, torchrun, trained, world


def test_torchrun_trains_with_copies_that_fill_its_world_and_answers_once(tmp_path: Path) -> None:
    write_recipe(tmp_path, sizes=TWO_LAYERS, ready=False)
    words = ("pretrain", "tiny.toml", "--run", "run", "--json", "--set")
    code, out, err = finish(torchrun(tmp_path, 2, *words, "pretrain.steps=4"))
    assert code == 0, err
    document = json.loads(out)
    assert (document["layout"], document["step"], document["already_done"]) == ("replicate=2", 4, False)
    assert "Traceback" not in err and err.count("plan:") == 1 and err.count("step 4/4") == 1
    assert "Warning" not in err

    # What torchrun's processes get, without its own start: done already, then longer.
    done = trained(tmp_path, "auto", 2, *words[:4], "--set", "pretrain.steps=4")
    assert done["already_done"] and done["checkpoint"] == document["checkpoint"]
    assert trained(tmp_path, "auto", 2, *words[:4], "--set", "pretrain.steps=7")["step"] == 7
    pretrained(tmp_path, "pretrain.steps=7", run="one")
    assert [row[0] for row in curve(tmp_path / "run/pretrain")] == list(range(1, 8))
    assert curve(tmp_path / "run/pretrain")[3][1] == pytest.approx(
        curve(tmp_path / "one/pretrain")[3][1], 1e-4
    )


@pytest.mark.slow
def test_sigterm_to_torchrun_stops_all_ranks_in_order_and_the_same_goes_on(tmp_path: Path) -> None:
    write_recipe(tmp_path, sizes=TWO_LAYERS)
    words = ("pretrain", "tiny.toml", "--run", "run", "--set", "pretrain.steps=400")
    process, stage = torchrun(tmp_path, 2, *words), tmp_path / "run/pretrain"
    wait_for(process, lambda: bool(curve(stage)) and curve(stage)[-1][0] >= 5)
    process.send_signal(signal.SIGTERM)
    code, out, err = finish(process)
    last = curve(stage)[-1][0]
    assert code != 0 and out == "" and last < 400
    assert err.count("stopped: ") == 1 and f"at step {last} of 400, and saved" in err
    assert "internal error" not in err


def test_killed_rank_is_told_by_those_who_lost_it(tmp_path: Path) -> None:
    write_recipe(tmp_path, sizes=TWO_LAYERS)
    words = ("pretrain", "tiny.toml", "--run", "run", "--set", "pretrain.steps=400")
    stage = tmp_path / "run/pretrain"
    for killed, other in ((1, 0), (0, 1)):
        with world(tmp_path, words, words) as ranks:
            begun = len(curve(stage))
            wait_for(ranks, lambda begun=begun: len(curve(stage)) > begun + 3)  # type: ignore[arg-type, misc]
            ranks.signal(killed, signal.SIGKILL)
            told = ranks.ended(20.0)
        assert told[killed].code == -signal.SIGKILL and told[other].code == 1
        assert f"error: rank {other} lost another rank" in told[other].err
        assert "Traceback" not in told[other].err and "internal error" not in told[other].err


def test_rank_killed_in_a_save_leaves_no_process_that_waits_for_its_part(tmp_path: Path) -> None:
    write_recipe(tmp_path, sizes=TWO_LAYERS)
    words = ("pretrain", "tiny.toml", "--run", "run", "--set", "pretrain.steps=4000", "--set")
    words = (*words, "pretrain.save_every=2", "--set", "pretrain.async_save=true")
    stage = tmp_path / "run/pretrain"
    with world(tmp_path, words, (HELD, *words)) as ranks:
        wait_for(ranks, lambda: (stage / "checkpoints/step-00000002/model-00000.safetensors").is_file())
        ranks.signal(1, signal.SIGKILL)
        told = ranks.ended(20.0)
    assert told[0].code == 1 and "error: rank 0 lost another rank" in told[0].err, told
    assert not list(stage.glob("checkpoints/*/manifest.json"))


def test_torchrun_of_one_process_does_not_start_others(tmp_path: Path) -> None:
    write_recipe(tmp_path, sizes=TWO_LAYERS)
    words = ("pretrain", "tiny.toml", "--run", "run", "--set", "parallel.layout=shard=2")
    with world(tmp_path, words) as ranks:
        (told,) = ranks.ended()
    assert told.code == 2 and "1" in told.err and not (tmp_path / "run/pretrain").exists()
    assert os.path.exists(tmp_path / "tiny.toml")
