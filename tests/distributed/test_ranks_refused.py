"""What several ranks refuse: on all of them, before the first step, told once, and without hanging."""

from pathlib import Path

import pytest
from making_runs import write_recipe
from making_worlds import TWO_LAYERS, Ended, run_world

PRETRAIN = ("pretrain", "tiny.toml", "--set", "pretrain.steps=4", "--run", "run")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refused")
    write_recipe(folder, sizes=TWO_LAYERS)
    return folder


def told_once(ranks: list[Ended], code: int = 2) -> str:
    """What the first rank says of an error that all have met."""
    assert [rank.code for rank in ranks] == [code] * len(ranks), ranks
    assert [rank.out for rank in ranks] == [""] * len(ranks)
    assert [rank.err for rank in ranks[1:]] == [""] * (len(ranks) - 1)
    text = ranks[0].err
    assert text.count("error:") == 1 and "Traceback" not in text and "fix:" in text
    return text


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["parallel.layout=tensor=4"], "4"),
        (["parallel.layout=tensor=2", "model.heads=3", "model.kv_heads=3"], "heads"),
        (["parallel.layout=pipeline=2", "model.layers=1"], "layer"),
        (
            [
                "parallel.layout=pipeline=2,schedule=interleaved,interleave=2",
                "model.layers=4",
                "pretrain.batch_tokens=192",
            ],
            "micro",
        ),
        (["pretrain.no_such_key=4"], "no_such_key"),
    ],
)
def test_a_wrong_recipe_is_refused_on_every_rank_and_told_once(
    folder: Path, settings: list[str], expected: str
) -> None:
    words = [*PRETRAIN, *(word for text in settings for word in ("--set", text))]
    text = told_once(run_world(folder, words, words))
    assert expected in text
    assert not (folder / "run/pretrain").exists()


def test_ranks_that_disagree_are_refused(folder: Path) -> None:
    words = (*PRETRAIN[:-1], "untouched")
    for others, expected in [
        (("--set", "pretrain.lr=1e-4"), "on recipe"),
        (("--store", "elsewhere"), "on --store"),
        (("--run", "elsewhere"), "on --run"),
        (("--from", "elsewhere"), "on --from"),
    ]:
        text = told_once(run_world(folder, words, (*words, *others)))
        assert f"the ranks disagree {expected}" in text and "rank 1: " in text, text
    assert not (folder / "untouched").exists() and not (folder / "elsewhere").exists()


def test_comparison_with_training_from_scratch_is_refused_among_started_ranks(folder: Path) -> None:
    words = ("finetune", "tiny.toml", "--compare-scratch", "--run", "untouched")
    text = told_once(run_world(folder, words, words))
    assert "2 processes that were started together" in text and not (folder / "untouched").exists()


def test_a_recipe_that_one_rank_does_not_find_is_told_with_its_rank(folder: Path) -> None:
    text = told_once(run_world(folder, PRETRAIN, ("pretrain", "none.toml", *PRETRAIN[2:])))
    assert "error: rank 1: " in text and "none.toml" in text
