"""Columns of the search against the exact path, and what a step draws."""

from dataclasses import replace

import numpy as np
import pytest

from bessemer.formulas.layout import Layout
from bessemer.formulas.shape import ModelShape
from bessemer.hardware import lookup
from bessemer.planner.cost.pipeline import simulate
from bessemer.planner.machine.cluster import catalogue_cluster
from bessemer.planner.search.costed import Field, activations_at_least, memory_of, own_times, room_of
from bessemer.planner.search.exact import Exact, exact, gone_over, memories_of, played_s
from bessemer.planner.search.pareto import on_fewer
from bessemer.planner.search.power import board_share, kilowatts
from bessemer.planner.search.question import Question
from bessemer.planner.search.space import candidate_of, joined, structures, ulysses, ways

LARGE = ModelShape("llama", 80, 8192, 64, 8, 128, 28672, 128256, 8192, tie_embeddings=False, qk_norm=False)
ROUTED = replace(
    LARGE, layers=24, hidden=2048, heads=16, experts=32, experts_per_token=4, expert_ffn=1024, dense_layers=1
)


def question(shape: ModelShape = LARGE, devices: int = 64, rows: int = 256) -> Question:
    return Question(shape, shape.context, rows, 1000, "bf16", catalogue_cluster(lookup("H100"), devices))


def of_layout(asked: Question, layout: Layout, micro_batch: int, recompute: str) -> Exact:
    """A layout of one's own, by the functions of the search."""
    one = candidate_of(asked, layout, micro_batch, recompute)
    room = room_of(asked, float(memory_of(asked, one).outside[0]))
    return gone_over(asked, one, 0, room)


@pytest.mark.parametrize("asked", [question(), question(ROUTED, 32, 128)])
def test_cheap_bound_of_memory_never_leaves_out_what_fits(asked: Question) -> None:
    candidates = ways(asked, structures(asked)[0])
    some = candidates.take(np.arange(0, len(candidates), 11))
    assert (activations_at_least(asked, some) <= memory_of(asked, some).needed).all()


def test_columns_and_the_exact_path_tell_the_same_time_where_nothing_is_rounded() -> None:
    field = Field(question(), ways(question(), structures(question())[0]))
    rows = field.candidates
    for place in np.flatnonzero(rows.pipeline == 1)[::97]:
        assert exact(field, int(place)).step_s == pytest.approx(field.step_s[place])
    even = np.flatnonzero(
        (rows.pipeline > 1) & (rows.schedule == 0) & (rows.micro_batches >= 4 * rows.pipeline)
    )
    for place in even[::211]:
        assert exact(field, int(place)).step_s == pytest.approx(field.step_s[place], rel=0.03)


def test_schedule_that_cannot_be_compiled_does_the_same_matmuls_and_moves_twice_the_bytes() -> None:
    plain, zero = (
        of_layout(question(), Layout(tensor=8, pipeline=8, schedule=schedule), 1, "none").parts
        for schedule in ("1f1b", "zbv")
    )
    assert zero["matmul_s"] == pytest.approx(plain["matmul_s"], rel=0.03)
    assert zero["vector_s"] == pytest.approx(2.0 * plain["vector_s"], rel=0.03)


@pytest.mark.parametrize("text", ["1f1b", "interleaved", "zbv"])
def test_later_micro_batches_hold_no_more_than_the_first(text: str) -> None:
    layout = Layout(shard=2, pipeline=4, schedule=text, interleave=2 if text == "interleaved" else 1)
    few, many = (
        [one.total for one in memories_of(question(), layout, 1, count, "none", (0, 1, 2, 3))]
        for count in (16, 64)
    )
    assert few == many


def test_whole_heads_travel_where_that_is_less_and_the_heads_divide() -> None:
    alike = replace(LARGE, kv_heads=64, context=32768)
    for shape, degree, chosen in ((alike, 4, True), (replace(LARGE, context=32768), 4, False)):
        asked = question(shape)
        one = candidate_of(asked, Layout(shard=16, context=degree), 1, "none")
        assert bool(ulysses(asked, one)[0]) is chosen


def test_eager_ways_take_longer_than_compiled_ones() -> None:
    asked = question()
    one = candidate_of(asked, Layout(shard=64), 1, "none")
    plain, eager = own_times(asked, one), own_times(replace(asked, compiles=False), one)
    assert eager.vector_s[0] == pytest.approx(2 * plain.vector_s[0]) and eager.total_s[0] > plain.total_s[0]


def test_half_of_the_devices_reads_all_rows_with_half_of_the_ranks() -> None:
    asked = question(devices=32)
    whole = joined([candidate_of(question(), Layout(shard=16, tensor=4), 1, "none"),
                    candidate_of(question(), Layout(replicate=2, shard=8, tensor=4), 2, "none")])  # fmt: skip
    halves = on_fewer(asked, whole, 2)
    assert (halves.world == 32).all() and halves.replicate.tolist() == [1, 1]
    assert (halves.data * halves.micro_batch * halves.micro_batches == 256).all()


def test_power_follows_what_the_board_does() -> None:
    asked = question()
    busy = of_layout(asked, Layout(shard=64), 1, "none")
    waiting = of_layout(asked, Layout(shard=2, pipeline=32), 16, "full")
    assert (busy.kwh or 0) / busy.hours > 1.1 * (waiting.kwh or 0) / waiting.hours
    times = own_times(asked, candidate_of(asked, Layout(shard=64), 1, "none"))
    assert 0.6 < board_share(times)[0] < 0.95
    idle = replace(times, **dict.fromkeys(("matmul_s", "attention_s", "recompute_s"), 0 * times.matmul_s))
    assert board_share(idle)[0] < board_share(times)[0]


def test_power_of_a_device_has_its_server_and_its_building() -> None:
    device = lookup("H100")
    bare, housed = (kilowatts(device, 8, pue, np.array([0.8])) for pue in (1.0, 1.25))
    assert bare is not None and housed is not None
    assert bare[0][0] == pytest.approx(
        (0.8 * 700 + 250) / 1000
    )  # with the 250 W that are its part of the server
    assert housed[0][0] == pytest.approx(1.25 * bare[0][0]) and bare[1][0] < bare[0][0] < bare[2][0]
    assert kilowatts(lookup("GH200"), 4, 1.0, np.array([0.8])) is None  # no limit is known


@pytest.mark.parametrize(("text", "turns"), [("1f1b", 1), ("interleaved", 2), ("interleaved", 4), ("zbv", 1)])
def test_first_micro_batches_tell_how_long_all_of_them_take(text: str, turns: int) -> None:
    layout = Layout(pipeline=8, schedule=text, interleave=turns)
    stage_s = [1.0 + 0.25 * (stage % 3 == 1) for stage in range(layout.num_stages)]
    stage_s[-1] += 0.4
    busiest_s = max(sum(stage_s[stage] for stage in layout.stages_of(rank)) for rank in range(8))
    parts = [[share * each for each in stage_s] for share in (0.33, 0.42, 0.25)]
    for count in (64, 72):
        whole_s = simulate(layout, count, *parts, 0.01)
        assert played_s(layout, count, stage_s, busiest_s, (0.33, 0.25), 0.01) == pytest.approx(
            whole_s, rel=2e-3
        )
