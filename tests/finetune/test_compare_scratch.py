"""How many times fewer examples: the arithmetic, and the comparison as it is trained and kept."""

import json
from pathlib import Path

import pytest
from making_runs import place, pretrained, write_recipe

from bessemer.finetune.compare_scratch import Point, compare_scratch, examples_ratio, ratio_words
from bessemer.finetune.run import finetune, prepare_finetune
from bessemer.recipe.load import load
from bessemer.report.outcome import two_stages
from bessemer.report.record import read_run

MEASURED = [Point(100, 3.0), Point(400, 2.0), Point(1600, 1.0)]


@pytest.mark.parametrize(
    ("target", "ratio"),
    [
        (3.5, 16.0),  # the fewest are better already
        (3.0, 16.0),
        (2.0, 4.0),
        (2.5, 8.0),  # half way in the loss is half way in the logarithm: 200 examples
        (1.5, 2.0),
        (1.0, 1.0),
        (0.5, None),  # not even all are as good
    ],
)
def test_ratio_of_examples(target: float, ratio: float | None) -> None:
    assert examples_ratio(MEASURED, target) == (None if ratio is None else pytest.approx(ratio))


def test_ratio_where_more_examples_did_worse_takes_the_first_that_are_good_enough() -> None:
    points = [Point(10, 3.0), Point(40, 1.0), Point(160, 2.0)]
    assert examples_ratio(points, 1.0) == pytest.approx(4.0)
    assert examples_ratio([Point(7, 1.0)], 2.0) == 1.0


def test_words_of_a_ratio() -> None:
    assert ratio_words(None, 16.0) == "none"
    assert ratio_words(16.0, 16.0) == "≥ 16×"
    assert ratio_words(3.14, 16.0) == "3.1×"


def test_comparison_is_trained_kept_read_by_the_report_and_not_trained_again(tmp_path: Path) -> None:
    recipe = str(write_recipe(tmp_path, task=True))
    pretrained(tmp_path, "pretrain.steps=10")
    loaded, where = load(recipe, ["pretrain.steps=10", "finetune.epochs=1"]), place(tmp_path)
    finetune(loaded, where)
    task = prepare_finetune(loaded, where, None)
    document = compare_scratch(task)
    run = tmp_path / "run"
    assert json.loads((run / "finetune-comparison.json").read_text()) == document

    total = task.data.num_examples("train")
    assert document["examples"] == [total // 16, total // 4, total]
    assert len(document["pretrained"]) == 3
    tried = document["scratch"]["tried"]
    assert document["scratch"]["loss"] == min(row["loss"] for row in tried)
    assert [row["lr"] for row in tried] == [pytest.approx(1e-3), pytest.approx(3e-3)]
    stages = ["finetune", "finetune-1of16", "finetune-1of4", "finetune-scratch-1", "finetune-scratch-2"]
    assert sorted(path.parent.name for path in run.glob("finetune*/stage.json")) == stages
    origins = {path.parent.name: json.loads(path.read_text())["origin"] for path in run.glob("*/stage.json")}
    assert origins["finetune-scratch-1"] is None and origins["finetune-1of4"] == origins["finetune"]
    html = two_stages(read_run(run))
    assert document["sentence"] in html and document["ratio"] in html

    rows = {path: path.read_bytes() for path in run.rglob("*.jsonl")}
    assert compare_scratch(prepare_finetune(loaded, where, None)) == document
    assert {path: path.read_bytes() for path in run.rglob("*.jsonl")} == rows
