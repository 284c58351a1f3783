"""Fine-tuning, the whole path, and what rows and answers say, under a layout."""

import json
from pathlib import Path

import pytest
from making_processes import finish, start
from making_runs import curve, pretrained, write_recipe
from making_worlds import TWO_LAYERS, ran, trained

from bessemer.rundir import read_object, read_rows

KEYS = [
    *("attempt", "step", "tokens", "samples", "time_s", "loss", "grad_norm", "lr", "tokens_per_s", "mfu"),
    *("step_time_s", "memory_bytes", "power_w", "energy_j", "energy_low_j", "energy_high_j", "energy_basis"),
    *("energy_parts_j", "energy_gaps", "energy_gap_s", "energy_phases_j", "time_phases_s"),
    *("waiting_for_data_s", "layout"),
]
FINETUNE = ("finetune", "tiny.toml", "--from", "base", "--set", "finetune.epochs=1", "--run")


def test_fine_tuning_under_a_layout_equals_one_process_either_way_round(tmp_path: Path) -> None:
    write_recipe(tmp_path, task=True, sizes=TWO_LAYERS)
    pretrained(tmp_path, "pretrain.steps=3", run="base")
    document = trained(tmp_path, "shard=2,tensor=2", 4, *FINETUNE, "four")
    assert document["comparison"] is None and document["layout"] == "shard=2,tensor=2"
    trained(tmp_path, "pipeline=2", 2, *FINETUNE, "two")
    trained(tmp_path, "replicate=1", 1, *FINETUNE, "one")
    losses = {
        name: [row[1] for row in curve(tmp_path / name / "finetune")] for name in ("one", "two", "four")
    }
    assert losses["two"] == pytest.approx(losses["one"], rel=1e-5)
    assert losses["four"] == pytest.approx(losses["one"], rel=1e-5)


def test_one_process_fine_tunes_what_many_ranks_pretrained(tmp_path: Path) -> None:
    write_recipe(tmp_path, task=True, sizes=TWO_LAYERS)
    trained(tmp_path, "shard=2", 2, "pretrain", "tiny.toml", "--set", "pretrain.steps=3", "--run", "base")
    ranks = trained(tmp_path, "shard=2", 2, *FINETUNE, "two")
    one = trained(tmp_path, "replicate=1", 1, *FINETUNE, "one")
    assert (one["layout"], ranks["layout"]) == ("replicate=1", "shard=2")
    assert one["step"] == ranks["step"] and one["loss"] == pytest.approx(ranks["loss"], rel=1e-5)


def test_rows_of_many_ranks_have_the_keys_and_count_every_rank(tmp_path: Path) -> None:
    write_recipe(tmp_path, sizes=TWO_LAYERS)
    words = ("pretrain", "tiny.toml", "--set", "pretrain.steps=3", "--run")
    answer = trained(tmp_path, "shard=2", 2, *words, "run")
    rows = read_rows(tmp_path / "run/pretrain/metrics.jsonl")
    assert [list(row) for row in rows] == [KEYS, KEYS, [*KEYS, "validation_loss"]]
    assert {row["layout"] for row in rows} == {"shard=2"} == {answer["layout"]}
    assert all(row["memory_bytes"] > 10e6 and row["energy_j"] > 0 for row in rows)


@pytest.mark.slow
def test_all_stages_of_a_recipe_run_under_a_layout(tmp_path: Path) -> None:
    write_recipe(tmp_path, task=True, sizes=TWO_LAYERS)
    settings = ("--set", "pretrain.steps=4", "--set", "finetune.epochs=1", "--set", "parallel.layout=shard=2")
    code, out, err = finish(start(tmp_path, "run", "tiny.toml", *settings, "--run", "run", "--json"))
    assert code == 0, err
    document = json.loads(out)
    assert document["pretrain"]["layout"] == document["finetune"]["layout"] == "shard=2"
    assert (tmp_path / "run/report.html").is_file() and (
        tmp_path / "run/export/hf/model.safetensors"
    ).is_file()
    results = read_object(tmp_path / "run/evaluate/results.json")
    assert results is not None and set(results["stages"]) == {"pretrain", "finetune"}
    assert "done already" in ran(tmp_path, "run", "tiny.toml", *settings, "--run", "run")


@pytest.mark.slow
def test_comparison_with_training_from_scratch_runs_under_a_layout(tmp_path: Path) -> None:
    write_recipe(tmp_path, task=True, sizes=TWO_LAYERS)
    pretrained(tmp_path, "pretrain.steps=4", run="base")
    words = (*FINETUNE, "run", "--compare-scratch", "--set", "parallel.layout=shard=2", "--json")
    words = (*words, "--set", "finetune.compare_seeds=1")
    code, out, err = finish(start(tmp_path, *words), timeout_s=400.0)
    assert code == 0, err
    assert json.loads(out)["comparison"]["scratch"]["tried"]
