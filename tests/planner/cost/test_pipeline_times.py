"""Pipelines in closed form against the schedule played through."""

import time

import numpy as np
import pytest

from bessemer.formulas.layout import SCHEDULES, Layout
from bessemer.planner.cost.pipeline import bubble_s, simulate, stage_layers

ALIKE = [("1f1b", 1, 4, 16), ("1f1b", 1, 8, 64), ("interleaved", 2, 4, 16), ("interleaved", 4, 8, 32)]
ZERO = [("zbv", 2, 4, 16), ("zbv", 2, 8, 32), ("dualpipev", 2, 4, 16)]


@pytest.mark.parametrize(("schedule", "turns", "ranks", "micro_batches"), ALIKE + ZERO)
def test_closed_form_is_the_simulated_bubble_for_alike_stages(
    schedule: str, turns: int, ranks: int, micro_batches: int
):
    layout = Layout(pipeline=ranks, schedule=schedule, interleave=turns)
    stage_s = [1.0 / layout.stages_per_rank] * layout.num_stages  # a rank's micro-batch takes 1 + 1 + 1
    played = simulate(layout, micro_batches, stage_s, stage_s, stage_s) - 3.0 * micro_batches
    columns = (np.array([value]) for value in (3.0 * (ranks - 1), ranks, turns, SCHEDULES.index(schedule)))
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
    assert bubble_s(np.array([0.0]), np.array([1.0]), np.array([1.0]), np.array([0]))[0] == 0.0


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
