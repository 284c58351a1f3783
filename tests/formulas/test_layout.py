"""Layouts as numbers: ranks, stages, and how layers are dealt to stages."""

import json
from dataclasses import replace
from itertools import combinations

import pytest

from bessemer.formulas.layout import (
    ONE_PROCESS,
    Layout,
    layers_of_stages,
    num_micro_batches,
    split_evenly,
)
from bessemer.formulas.shape import ModelShape

SHAPE = ModelShape("llama", 8, 64, 4, 2, 16, 160, 256, 64, tie_embeddings=True, qk_norm=False)


def head_in_layers(shape: ModelShape) -> float:
    layer = 2 * shape.hidden * (shape.heads + shape.kv_heads) * shape.head_dim + 3 * shape.hidden * shape.ffn
    return shape.vocab * shape.hidden / layer


def heaviest(lengths: list[int], head: float) -> float:
    return max(*lengths[:-1], lengths[-1] + head)


def all_splits(layers: int, stages: int) -> list[list[int]]:
    borders = combinations(range(1, layers), stages - 1)
    return [[b - a for a, b in zip((0, *cut), (*cut, layers), strict=True)] for cut in borders]


@pytest.mark.parametrize("vocab", [64, 512, 2048, 8192])
@pytest.mark.parametrize("stages", [2, 3, 4, 8])
def test_heaviest_stage_is_as_light_as_any_split_could_make_it(vocab: int, stages: int) -> None:
    for layers in range(stages, 11):
        shape = replace(SHAPE, layers=layers, vocab=vocab)
        found = layers_of_stages(shape, Layout(pipeline=stages))
        assert [layer for stage in found for layer in stage] == list(range(layers))
        head = head_in_layers(shape)
        best = min(heaviest(lengths, head) for lengths in all_splits(layers, stages))
        assert heaviest([len(stage) for stage in found], head) == pytest.approx(best)


def test_one_stage_has_every_layer() -> None:
    assert layers_of_stages(SHAPE, ONE_PROCESS) == [range(8)]
    assert layers_of_stages(SHAPE, Layout(tensor=2)) == [range(8)]


def test_split_is_taken_as_given() -> None:
    assert layers_of_stages(SHAPE, Layout(pipeline=3, split=(1, 5, 2))) == [
        range(1),
        range(1, 6),
        range(6, 8),
    ]


def test_even_ranges_differ_by_one_at_most_and_the_first_are_longer() -> None:
    assert split_evenly(7, 3) == [range(3), range(3, 5), range(5, 7)]
    assert split_evenly(1, 2) == [range(1), range(1, 1)]


@pytest.mark.parametrize(
    ("layout", "stages"),
    [
        (Layout(), [[0]]),
        (Layout(pipeline=3), [[0], [1], [2]]),
        (Layout(pipeline=2, schedule="interleaved", interleave=3), [[0, 2, 4], [1, 3, 5]]),
        (Layout(pipeline=3, schedule="zbv"), [[0, 5], [1, 4], [2, 3]]),
        (Layout(pipeline=2, schedule="dualpipev"), [[0, 3], [1, 2]]),
    ],
)
def test_every_stage_is_on_one_rank_and_both_ways_agree(layout: Layout, stages: list[list[int]]) -> None:
    assert [layout.stages_of(rank) for rank in range(layout.pipeline)] == stages
    for rank, held in enumerate(stages):
        assert all(layout.rank_of_stage(stage) == rank for stage in held)


def test_ranks_multiply_and_expert_adds_none() -> None:
    layout = Layout(replicate=2, shard=3, tensor=5, pipeline=7, context=11, expert=6)
    assert layout.world == 2 * 3 * 5 * 7 * 11 and layout.data == 6


@pytest.mark.parametrize(
    ("rows", "layout", "size", "count"),
    [
        (8, Layout(), 2, 4),
        (9, Layout(), 2, 5),
        (9, Layout(shard=2), 2, 3),
        (9, Layout(shard=2, replicate=2), 4, 1),
        (2, Layout(shard=4), 1, 1),
    ],
)
def test_micro_batches_are_those_of_the_rank_with_most_rows(
    rows: int, layout: Layout, size: int, count: int
) -> None:
    assert num_micro_batches(layout, rows, size) == count


def test_layout_survives_json_and_old_ones_lack_keys() -> None:
    layout = Layout(shard=2, pipeline=2, schedule="zbv", split=(1, 2, 3, 2), reshard=False)
    assert Layout.from_json(json.loads(json.dumps(layout.to_json()))) == layout
    assert Layout.from_json({}) == ONE_PROCESS
    assert Layout.from_json({"tensor": 2, "later": 1}) == Layout(tensor=2)
