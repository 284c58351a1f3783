"""Pipelines in closed form against the schedule played through."""

import time

import numpy as np
import pytest

from bessemer.formulas.layout import SCHEDULES, Layout, layers_of_stages
from bessemer.formulas.shape import ModelShape
from bessemer.hardware import lookup
from bessemer.planner.cost.pipeline import bubble_s, simulate, stage_layers
from bessemer.planner.machine.cluster import catalogue_cluster
from bessemer.planner.search.costed import own_times
from bessemer.planner.search.exact import played
from bessemer.planner.search.question import Question
from bessemer.planner.search.space import candidate_of

ALIKE = [("1f1b", 1, 4, 16), ("1f1b", 1, 8, 64), ("interleaved", 2, 4, 16), ("interleaved", 4, 8, 32)]
FEW = [("1f1b", 1, 4, 2), ("interleaved", 2, 4, 1), ("interleaved", 4, 8, 3), ("interleaved", 3, 2, 1)]
ZERO = [("zbv", 2, 4, 16), ("zbv", 2, 8, 32), ("dualpipev", 2, 4, 16)]


@pytest.mark.parametrize(("schedule", "turns", "ranks", "micro_batches"), ALIKE + FEW + ZERO)
def test_closed_form_is_the_simulated_bubble_for_alike_stages(
    schedule: str, turns: int, ranks: int, micro_batches: int
):
    layout = Layout(pipeline=ranks, schedule=schedule, interleave=turns)
    stage_s = [1.0 / layout.stages_per_rank] * layout.num_stages  # a rank's micro-batch takes 1 + 1 + 1
    played = simulate(layout, micro_batches, stage_s, stage_s, stage_s) - 3.0 * micro_batches
    values = (3.0 * (ranks - 1), ranks, turns, SCHEDULES.index(schedule), micro_batches)
    columns = (np.array([value]) for value in values)
    assert bubble_s(*columns)[0] == pytest.approx(played, rel=1e-9)


def test_a_heavy_last_stage_sets_the_pace():
    layout = Layout(pipeline=4, schedule="1f1b")
    even = simulate(layout, 32, [1.0] * 4, [1.0] * 4, [1.0] * 4)
    heavy = simulate(layout, 32, [1.0, 1.0, 1.0, 1.5], [1.0, 1.0, 1.0, 1.5], [1.0, 1.0, 1.0, 1.5])
    assert heavy == pytest.approx(even + 32 * 1.5, rel=0.02)


def test_sends_lengthen_the_filling_of_the_pipeline():
    layout = Layout(pipeline=4, schedule="1f1b")
    plain, sent = (simulate(layout, 8, [1.0] * 4, [1.0] * 4, [1.0] * 4, send) for send in (0.0, 0.1))
    assert sent - plain >= 2 * 3 * 0.1 - 1e-9


def test_one_rank_has_no_bubble():
    layout = Layout()
    assert simulate(layout, 5, [1.0], [1.0], [1.0]) == 15.0
    zero, one = np.array([0.0]), np.array([1.0])
    assert bubble_s(zero, one, one, np.array([0]), 5.0 * one)[0] == 0.0


def test_sixteen_ranks_and_256_micro_batches_are_played_in_a_tenth_of_a_second():
    layout = Layout(pipeline=16, schedule="1f1b")
    ones = [1.0] * 16
    simulate(layout, 256, ones, ones, ones)  # makes the order, which is kept
    begin = time.perf_counter()
    simulate(layout, 256, ones, ones, ones)
    assert time.perf_counter() - begin < 0.1  # 25 ms on an idle core


def test_layers_that_do_not_divide_leave_fewer_to_the_last_rank():
    most, last = stage_layers(np.array([126.0, 80.0]), np.array([1.2, 1.2]), np.array([8.0, 8.0]), 0.0)
    assert most.tolist() == [16.0, 10.0] and last.tolist() == [14.0, 10.0]
    most, last = stage_layers(np.array([80.0]), np.array([4.0]), np.array([8.0]), np.array([1.0]))
    assert most.tolist() == [11.0] and last.tolist() == [3.0]


@pytest.mark.parametrize(("layers", "ranks"), [(2, 2), (3, 2), (8, 4), (13, 4), (30, 7), (80, 8), (5, 5)])
def test_busiest_rank_is_that_of_the_split_that_the_trainer_makes(layers: int, ranks: int) -> None:
    """The head weighs here what the trainer's balance takes it to weigh."""
    for vocab in (1024, 8192, 32000, 128256):
        shape = ModelShape("llama", layers, 512, 8, 8, 64, 1408, vocab, 512, False, False)
        head = vocab / (4 * 512 + 3 * 1408)
        split = [len(stage) for stage in layers_of_stages(shape, Layout(pipeline=ranks))]
        columns = (np.array([value]) for value in (layers, head, ranks, 1.0))
        most, last = (float(column[0]) for column in stage_layers(*columns))
        assert max(most, last + head) == pytest.approx(max([*split[:-1], split[-1] + head]))


@pytest.mark.parametrize(("ranks", "micro_batches"), [(4, 1), (4, 3), (8, 1), (8, 2), (8, 5)])
def test_zero_bubble_that_is_not_filled_waits_about_as_the_schedule_does(
    ranks: int, micro_batches: int
) -> None:
    layout = Layout(pipeline=ranks, schedule="zbv")
    ones = [1.0] * layout.num_stages
    played = simulate(layout, micro_batches, ones, ones, ones) - 6.0 * micro_batches
    values = (6.0 * (ranks - 1), ranks, 2, SCHEDULES.index("zbv"), micro_batches)
    assert bubble_s(*(np.array([value]) for value in values))[0] == pytest.approx(played, rel=0.25)


@pytest.mark.parametrize("context", [2048, 8192, 32768])
def test_zero_bubble_in_columns_knows_that_a_backward_pass_is_the_longest(context: int) -> None:
    """Its order is made for that, and still waits. Columns see the most of it."""
    shape = ModelShape("llama", 32, 4096, 32, 8, 128, 14336, 64, context, False, False)
    for ranks, micro_batches in ((4, 16), (8, 32), (8, 64)):
        layout = Layout(pipeline=ranks, schedule="zbv")
        cluster = catalogue_cluster(lookup("H100"), ranks)
        asked = Question(shape, context, micro_batches, 1, "bf16", cluster)
        one = candidate_of(asked, layout, 1, "none")
        columns, exact = own_times(asked, one), played(asked, one, layout)
        assert columns.total_s[0] == pytest.approx(exact.total_s[0], rel=0.15)
