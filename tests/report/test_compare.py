import argparse
import json
from pathlib import Path

import pytest

from bessemer.cli import compare as verb
from bessemer.energy.accounting.account import account
from bessemer.errors import RecipeError
from bessemer.report.compare import compare


@pytest.fixture
def two_runs(tmp_path, make):
    runs = [
        make(tmp_path / "one", finetune=False),
        make(tmp_path / "two", finetune=False, power_w=None),
    ]
    (runs[1] / "recipe.toml").write_text(
        (runs[0] / "recipe.toml").read_text().replace("made", "other") + "\n[pretrain]\nlr = 1e-3\n"
    )
    lines = (runs[1] / "pretrain/metrics.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["step"] <= 600]
    (runs[1] / "pretrain/metrics.jsonl").write_text("\n".join(kept) + "\n")
    return runs


def test_rows_are_at_steps_that_every_run_has(two_runs):
    rows = compare(two_runs)["rows"]
    steps = [row["step"] for row in rows]
    assert steps[0] == 1 and steps[-1] == 600
    assert {100, 200, 300, 400, 500, 600} <= set(steps)
    assert all(len(row["runs"]) == 2 for row in rows)
    assert all(
        run["validation_loss"] is not None for row in rows if row["step"] % 100 == 0 for run in row["runs"]
    )


def test_recipe_differences_leave_out_what_has_no_effect(two_runs):
    changes = compare(two_runs)["recipe_differences"]
    assert [(change["key"], change["values"], change["affects"]) for change in changes] == [
        ("pretrain.lr", ["auto", 1e-3], "learning")
    ]


def test_final_figures_keep_null_for_what_was_not_measured(two_runs):
    one, two = compare(two_runs)["final"]
    assert (one["step"], two["step"]) == (1000, 600)
    assert one["energy_j"] > 0 and two["energy_j"] is None
    assert one["time_s"] == pytest.approx(2400, rel=0.01)


def test_time_does_not_depend_on_how_often_rows_were_written(two_runs):
    path = two_runs[0] / "pretrain/metrics.jsonl"
    lines = [line for line in path.read_text().splitlines() if json.loads(line)["step"] % 10 == 0]
    path.write_text("\n".join(lines) + "\n")
    one, two = compare(two_runs)["final"]
    assert one["time_s"] == pytest.approx(2400, rel=0.01)
    assert two["time_s"] == pytest.approx(1440, rel=0.01)


def test_runs_are_found_from_inside_a_stage(two_runs, monkeypatch):
    monkeypatch.chdir(two_runs[0] / "pretrain")
    document = compare([Path(), two_runs[1]])
    assert document["runs"] == ["one", "two"] and document["recipe_differences"]


def test_runs_of_one_name_are_told_apart(tmp_path, make):
    first = make(tmp_path / "a" / "same", finetune=False)
    second = make(tmp_path / "b" / "same", finetune=False)
    assert len(set(compare([first, second])["runs"])) == 2


def test_verb_shows_a_table_and_writes_the_page(two_runs, tmp_path):
    parser = argparse.ArgumentParser()
    verb.arguments(parser)
    page = tmp_path / "compare.html"
    document = verb.run(parser.parse_args([*map(str, two_runs), "--html", str(page)]))
    json.dumps(document)
    shown = verb.show(document)
    assert "pretrain.lr" in shown and "not measured" in shown and str(page) in shown
    assert page.read_text().count("<svg") == 4


def test_one_run_is_not_a_comparison(two_runs):
    with pytest.raises(RecipeError, match="nothing to compare"):
        compare(two_runs[:1])


def test_joules_of_a_token_are_those_of_the_account(two_runs):
    one, two = compare(two_runs)["final"]
    told = account(two_runs[0])["stages"]["pretrain"]
    assert one["joules_per_token"] == pytest.approx(told["joules_per_token"])
    assert one["joules_per_token"] == pytest.approx(one["energy_j"] / one["tokens"], rel=0.01)
    assert two["joules_per_token"] is None
