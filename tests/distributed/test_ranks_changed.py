"""A run goes on under another number of ranks or another layout: the same samples, the same curve."""

from pathlib import Path

import pytest
from making_runs import curve, events, pretrained, write_recipe
from making_worlds import TWO_LAYERS, trained

from bessemer.rundir import counting_rows, read_rows

SAVES = ("--set", "pretrain.save_every=3", "--run", "run")


def pretrain_to(folder: Path, steps: int, layout: str, size: int, *more: str) -> None:
    words = ("pretrain", "tiny.toml", "--set", f"pretrain.steps={steps}", *SAVES, *more)
    document = trained(folder, layout, size, *words)
    assert document["step"] == steps and document["layout"] == layout


def assert_same_curve(folder: Path, relative: float) -> None:
    """Of run `run` and run `never`: loss within a relative difference, and exactly the same tokens."""
    rows, wanted = curve(folder / "run/pretrain"), curve(folder / "never/pretrain")
    assert [(row[0], row[4]) for row in rows] == [(row[0], row[4]) for row in wanted]
    for row, other in zip(rows, wanted, strict=True):
        assert row[1] == pytest.approx(other[1], rel=relative), row
        assert row[2] == pytest.approx(other[2], rel=10 * relative), row


@pytest.mark.parametrize("sizes", [(4, 3, 2), pytest.param((8, 4, 3), marks=pytest.mark.slow)])
def test_any_number_of_ranks_goes_on_with_the_same_samples_and_loss(
    tmp_path: Path, sizes: tuple[int, ...]
) -> None:
    write_recipe(tmp_path, sizes={**TWO_LAYERS, "batch_tokens": 256})
    constant = ("--set", "pretrain.schedule=constant")  # its rate does not depend on the length
    pretrained(tmp_path, "pretrain.steps=9", "pretrain.save_every=3", constant[1], run="never")
    for steps, size in zip((3, 6, 9), sizes, strict=True):  # 8 rows a step: 3 ranks have 3, 3 and 2
        pretrain_to(tmp_path, steps, f"shard={size}", size, *constant)
    assert_same_curve(tmp_path, 1e-5)
    rows = counting_rows(read_rows(tmp_path / "run/pretrain/metrics.jsonl"))
    assert [row["samples"] for row in rows] == [8 * step for step in range(1, 10)]
    assert [row["layout"] for row in rows] == [f"shard={size}" for size in sizes for _ in range(3)]
    changed = [row for row in events(tmp_path / "run/pretrain", "recipe") if row["key"] == "parallel.layout"]
    assert [row["new"] for row in changed] == [f"shard={size}" for size in sizes[1:]]


def test_any_layout_goes_on_with_the_same_loss(tmp_path: Path) -> None:
    write_recipe(tmp_path, sizes=TWO_LAYERS)
    constant = ("--set", "pretrain.schedule=constant")
    pretrained(tmp_path, "pretrain.steps=9", "pretrain.save_every=3", constant[1], run="never")
    pretrained(tmp_path, "pretrain.steps=3", "pretrain.save_every=3", constant[1])
    pretrain_to(tmp_path, 6, "tensor=2,pipeline=2", 4, *constant)
    pretrain_to(tmp_path, 8, "shard=2", 2, *constant)
    alone = "parallel.layout=replicate=1"  # "auto" would leave the layout as it is
    pretrained(tmp_path, "pretrain.steps=9", "pretrain.save_every=3", constant[1], alone)
    assert_same_curve(tmp_path, 1e-4)
    changed = [row for row in events(tmp_path / "run/pretrain", "recipe") if row["key"] == "parallel.layout"]
    assert [(row["step"], row["old"], row["new"]) for row in changed] == [
        (3, "auto", "tensor=2,pipeline=2"),
        (6, "tensor=2,pipeline=2", "shard=2"),
        (8, "shard=2", "replicate=1"),
    ]
    rows = counting_rows(read_rows(tmp_path / "run/pretrain/metrics.jsonl"))
    assert [rows[step]["layout"] for step in (2, 5, 7, 8)] == [
        "replicate=1",
        "tensor=2,pipeline=2",
        "shard=2",
        "replicate=1",
    ]
