"""How many times fewer examples: the arithmetic, and the comparison as it is trained and kept."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from making_runs import curve, place, pretrained, write_recipe

from bessemer.cli.finetune import comparison_lines
from bessemer.errors import RecipeError
from bessemer.finetune import compare_scratch as module
from bessemer.finetune.compare_scratch import check_comparable, compare_scratch
from bessemer.finetune.curve import Curve, Point, examples_ratio, means, ratio_band, ratio_words, sentence
from bessemer.finetune.run import finetune
from bessemer.finetune.task import prepare_finetune
from bessemer.recipe.load import load
from bessemer.report.outcome import two_stages
from bessemer.report.record import read_run
from bessemer.rundir import read_object

MEASURED: Curve = [(100, 3.0), (400, 2.0), (1600, 1.0)]


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
    curve = [(10, 3.0), (40, 1.0), (160, 2.0)]
    assert examples_ratio(curve, 1.0) == pytest.approx(4.0)
    assert examples_ratio([(7, 1.0)], 2.0) == 1.0


def test_words_of_a_ratio() -> None:
    assert ratio_words(None, 16.0) == "none"
    assert ratio_words(16.0, 16.0) == "≥ 16×"
    assert ratio_words(3.14, 16.0) == "3.1×"


def test_means_of_seeds_decide_and_their_ends_give_the_band() -> None:
    points = [Point(100, (3.2, 2.8)), Point(400, (2.2, 1.8)), Point(1600, (1.0, 1.0))]
    scratch = Point(1600, (2.6, 2.4))
    assert examples_ratio(means(points), scratch.mean) == pytest.approx(8.0)
    # The worst of the one against the best of the other: (400, 2.2), (1600, 1.0), and 2.4 of (100, 3.2).
    worst, best = ratio_band(points, scratch)
    assert worst == pytest.approx(4.0 * 4.0**0.2) and best == pytest.approx(4.0 * 4.0**0.8)
    words = sentence(points, scratch, "text")
    assert "about 200 examples" in words and "nat per text" in words
    assert words.endswith("2 seeds each: the ratio lies between 5.3× and 12.1×.")


def test_comparison_is_trained_kept_read_by_the_report_and_not_trained_again(tmp_path: Path) -> None:
    recipe = str(write_recipe(tmp_path, task=True))
    pretrained(tmp_path, "pretrain.steps=10")
    settings = ["pretrain.steps=10", "finetune.epochs=1", "finetune.compare_seeds=1"]
    loaded, where = load(recipe, settings), place(tmp_path)
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


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A quarter and all of the examples, two seeds each; the run, and what is kept of it."""
    folder = tmp_path_factory.mktemp("curve")
    recipe = str(write_recipe(folder, task=True))
    pretrained(folder, "pretrain.steps=10")
    loaded = load(recipe, ["pretrain.steps=10", "finetune.epochs=1", "finetune.compare_seeds=2"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CURVE_SHARES", (4, 1))
        finetune(loaded, place(folder))
        compare_scratch(prepare_finetune(loaded, place(folder), None))
    document = read_object(folder / "run/finetune-comparison.json")
    assert document is not None
    return folder / "run", document


def test_curve_has_both_starts_at_the_same_numbers_of_examples_with_as_many_trainings_as_seeds(
    compared: tuple[Path, dict[str, Any]],
) -> None:
    run, document = compared
    pretrained_points, scratch_points = document["curve"]["pretrained"], document["curve"]["scratch"]
    counts = [point["examples"] for point in pretrained_points]
    assert counts == [counts[1] // 4, counts[1]] == [point["examples"] for point in scratch_points]
    for point in (*pretrained_points, *scratch_points):
        low, high = point["losses"] if point["losses"][0] < point["losses"][1] else point["losses"][::-1]
        assert (point["low"], point["high"]) == (low, high) and low < point["mean"] < high
    assert document["pretrained"] == [point["mean"] for point in pretrained_points]
    assert document["scratch"]["loss"] == scratch_points[-1]["mean"] and document["seeds"] == 2
    stages = {path.parent.name: json.loads(path.read_text()) for path in run.glob("finetune*/stage.json")}
    assert {name for name in stages if "scratch" not in name} == {
        *("finetune", "finetune-seed2", "finetune-1of4", "finetune-1of4-seed2")
    }
    # Both rates with the first seed, the better one with the other.
    assert len([name for name in stages if name.startswith("finetune-scratch-1of4-")]) == 3
    assert all(info["seed"] == name.endswith("-seed2") for name, info in stages.items())


def test_seeds_differ_in_order_and_in_random_weights(compared: tuple[Path, dict[str, Any]]) -> None:
    run, document = compared
    taken = document["scratch"]["tried"]
    name = min(taken, key=lambda row: row["loss"])["stage"]
    first, other = (curve(run / stage)[0] for stage in (name, f"{name}-seed2"))
    assert first[1] != other[1]
    first, other = (curve(run / stage)[0] for stage in ("finetune", "finetune-seed2"))
    assert first[1] != other[1]


def test_table_and_picture_show_the_spread(compared: tuple[Path, dict[str, Any]]) -> None:
    run, document = compared
    html = two_stages(read_run(run))
    assert html.count('class="whisker s1"') == html.count('class="whisker s2"') == 2
    assert "mean, lowest and highest of 2 trainings each" in html
    lines = comparison_lines(document)
    assert "lowest" in lines[0] and sum(line.startswith("random weights") for line in lines) == 2
    low = f"{document['curve']['scratch'][0]['low']:.4f}"
    assert any(low in line for line in lines) and low in html


@pytest.mark.parametrize("changes", [{"method": "dpo"}, {"method": "distill", "on_policy": True}])
def test_what_depends_on_its_own_beginning_is_not_compared(
    compared: tuple[Path, dict[str, Any]], changes: dict[str, Any]
) -> None:
    run, _ = compared
    loaded = load(str(run.parent / "tiny.toml"), ["pretrain.steps=10", "finetune.epochs=1"])
    task = prepare_finetune(loaded, place(run.parent), None)
    assert task.recipe.finetune is not None
    section = task.recipe.finetune.model_copy(update=changes)
    task = replace(task, recipe=task.recipe.model_copy(update={"finetune": section}))
    with pytest.raises(RecipeError, match="cannot be compared"):
        check_comparable(task)


def test_random_start_trains_all_weights_where_the_pre_trained_one_trains_adapters(
    compared: tuple[Path, dict[str, Any]],
) -> None:
    run, _ = compared
    loaded = load(str(run.parent / "tiny.toml"), ["pretrain.steps=10", "finetune.method=lora"])
    task = prepare_finetune(loaded, place(run.parent, "other"), str(run))
    assert task.shape.adapter is not None
    begun = module._at_random(task, 1e-3)
    assert begun.shape.adapter is None and begun.recipe.finetune is not None
    assert (begun.recipe.finetune.method, begun.recipe.finetune.adapter) == ("full", "none")
