"""The search against everything gone over one by one, and what it promises of its choice."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from bessemer.errors import RecipeError, RefusedError
from bessemer.formulas.layout import SCHEDULES, Layout, layers_of_stages
from bessemer.formulas.shape import ModelShape
from bessemer.hardware import lookup
from bessemer.planner.cost.pipeline import simulate
from bessemer.planner.machine.cluster import catalogue_cluster
from bessemer.planner.rules.layout import allows, first_complaint
from bessemer.planner.search.choose import Search, search
from bessemer.planner.search.costed import Field, memory_of, own_times, room_of
from bessemer.planner.search.exact import (
    Exact,
    exact,
    gone_over,
    memories_of,
    played,
    ranks_that_may_be_fullest,
)
from bessemer.planner.search.pareto import front
from bessemer.planner.search.question import Question
from bessemer.planner.search.rejected import cheapest_fix, rejected, slower_words
from bessemer.planner.search.space import candidate_of, divisors, layout_of, structures, ways

DENSE = ModelShape("llama", 8, 2048, 16, 4, 128, 5632, 32000, 2048, tie_embeddings=False, qk_norm=False)
ROUTED = replace(DENSE, family="qwen3-moe", experts=16, experts_per_token=4, expert_ffn=1024, dense_layers=1)
LARGE = ModelShape("llama", 80, 8192, 64, 8, 128, 28672, 128256, 8192, tie_embeddings=False, qk_norm=False)


def question(shape: ModelShape = DENSE, devices: int = 8, rows: int = 32, **more: Any) -> Question:
    device = more.pop("device", "H100")
    cluster = catalogue_cluster(lookup(device), devices)
    return Question(shape, shape.context, rows, 1000, "bf16", cluster, **more)


def of_layout(asked: Question, layout: Layout, micro_batch: int, recompute: str) -> Exact:
    """A layout of one's own, by the functions of the search."""
    one = candidate_of(asked, layout, micro_batch, recompute)
    room = room_of(asked, float(memory_of(asked, one).outside[0]))
    return gone_over(asked, one, 0, room)


def everything(asked: Question) -> list[Any]:
    """Each candidate alone, by the exact path."""
    field = Field(asked, ways(asked, structures(asked)[0]))
    found = [exact(field, place) for place in range(len(field))]
    return [one for one in found if one.needed_bytes <= field.usable_bytes]


@pytest.mark.parametrize(
    ("asked", "key"),
    [
        pytest.param(question(devices=4, rows=16), "step_s", marks=pytest.mark.slow),
        (question(replace(LARGE, layers=12), devices=8, rows=16, recompute="full"), "step_s"),
        (question(ROUTED, devices=4, rows=8, micro_batch=1), "step_s"),
        (question(devices=4, rows=8, prefer="energy"), "kwh"),
    ],
)  # fmt: skip
def test_search_finds_what_going_over_every_candidate_finds(asked: Question, key: str) -> None:
    best = min(getattr(one, key) for one in everything(asked))
    assert getattr(search(asked).best, key) <= 1.003 * best  # the plainest of those that are as good


@pytest.mark.parametrize(
    "asked",
    [
        question(),
        question(ROUTED, devices=16, rows=64),
        question(LARGE, devices=64, rows=512),
        question(LARGE, devices=48, rows=96),  # not a power of two
        question(replace(DENSE, context=32768), devices=32, rows=4),
        question(devices=8, device="A100-40GB"),
        question(devices=16, device="MI300X"),
    ],
)
def test_choice_is_a_layout_that_the_trainer_takes_and_that_fits(asked: Question) -> None:
    found = search(asked)
    for _, one in found.ranked:
        assert first_complaint(one.layout, asked.shape, asked.context) is None
        assert one.layout.world == asked.cluster.devices and allows(one.layout, one.micro_batches)
        assert one.needed_bytes <= found.field.usable_bytes
        assert one.micro_batch * one.micro_batches * one.layout.data >= asked.batch_rows
        assert sum(one.parts.values()) == pytest.approx(one.step_s)


def test_every_candidate_is_one_that_the_rules_of_layouts_allow() -> None:
    for asked in (question(devices=16), question(ROUTED, devices=12, rows=48), question(LARGE, devices=128)):
        candidates = ways(asked, structures(asked)[0])
        for place in range(0, len(candidates), 7):
            layout = layout_of(asked, candidates, place)
            assert first_complaint(layout, asked.shape, asked.context) is None, layout
            assert layout.world == asked.cluster.devices and layout.data <= asked.batch_rows
            assert layout.tensor <= asked.cluster.link_domain


def test_search_knows_every_axis() -> None:
    dense = ways(question(LARGE, 128), structures(question(LARGE, 128))[0])
    routed = ways(question(ROUTED, 16), structures(question(ROUTED, 16))[0])
    for axis in ("replicate", "shard", "tensor", "pipeline", "context", "interleave", "micro_batch"):
        assert len(np.unique(getattr(dense, axis))) > 1, axis
    assert {SCHEDULES[number] for number in np.unique(dense.schedule)} == {"1f1b", "interleaved", "zbv"}
    assert set(np.unique(dense.recompute)) == {0, 1, 2} and {2, 3} <= set(np.unique(dense.zero))
    assert len(np.unique(routed.expert)) > 1 and set(np.unique(dense.expert)) == {1}


def test_more_devices_are_never_slower_for_the_same_batch() -> None:
    times = [search(question(LARGE, devices=devices, rows=256)).best.step_s for devices in (32, 64, 128, 256)]
    assert all(more < 1.02 * less for less, more in pairwise(times))


def test_what_the_recipe_fixed_stays_fixed() -> None:
    found = search(question(micro_batch=2, recompute="full"))
    assert {(one.micro_batch, one.recompute) for _, one in found.ranked} == {(2, "full")}
    with pytest.raises(RecipeError, match="micro-batch"):
        search(question(devices=8, rows=8, micro_batch=16))


def test_preference_for_energy_takes_no_more_of_it() -> None:
    asked = question(LARGE, devices=64, rows=256)
    fast, frugal = search(asked), search(replace(asked, prefer="energy"))
    assert (frugal.best.kwh or 0) <= 1.001 * (fast.best.kwh or 0)
    assert fast.best.step_s <= 1.003 * frugal.best.step_s


@pytest.fixture(scope="module")
def large() -> Search:
    return search(question(LARGE, devices=64, rows=512))


def test_fix_of_what_does_not_fit_fits_when_it_is_gone_over(large: Search) -> None:
    field = large.field
    asked = np.flatnonzero(field.asked & ~(field.needed_bytes <= field.usable_bytes))
    fixes = [cheapest_fix(large, int(place)) for place in asked[:: max(1, len(asked) // 5)][:5]]
    assert any(fixes)
    for fix in filter(None, fixes):
        words, found = fix
        again = of_layout(large.question, found.layout, found.micro_batch, found.recompute)
        assert again.needed_bytes <= field.usable_bytes and " fits (" in words


def test_rejected_layouts_are_few_and_tell_numbers(large: Search) -> None:
    rows = rejected(large)
    reasons = " | ".join(row.reason for row in rows)
    assert 4 <= len(rows) <= 20 and all(row.count > 0 for row in rows)
    assert "of 79.1 GiB" in reasons and "slower" in reasons and "fp8" in reasons
    assert "tensor does not divide kv_heads" in reasons


def test_front_holds_nothing_that_another_choice_beats(large: Search) -> None:
    points = [point.exact for point in front(large)]
    assert points[0] == large.best
    for one in points[1:]:
        assert any(getattr(one, key) < getattr(large.best, key) for key in ("hours", "kwh", "usd"))
        for other in points:
            if other is not one:
                assert not all(
                    getattr(other, key) < 0.99 * getattr(one, key) for key in ("hours", "kwh", "usd")
                )


def test_given_layout_is_costed_as_in_the_search(large: Search) -> None:
    best = large.best
    again = of_layout(large.question, best.layout, best.micro_batch, best.recompute)
    assert again.step_s == pytest.approx(best.step_s) and again.kwh == pytest.approx(best.kwh)
    assert again.needed_bytes == pytest.approx(best.needed_bytes)


def test_model_that_fits_nowhere_is_told_what_would_do() -> None:
    asked = question(LARGE, devices=8, rows=64)
    with pytest.raises(RefusedError, match="does not fit") as caught:
        search(asked)
    fix = caught.value.fix
    assert "take " in fix and "x H100-SXM5-80GB" in fix
    devices = int(fix.split("take ")[1].split(" ")[0])
    assert search(asked.on(devices)).best.devices == devices


def test_device_of_which_only_nominal_memory_is_known_is_among_those_that_would_do() -> None:
    with pytest.raises(RefusedError, match="does not fit") as caught:
        search(question(LARGE, devices=16, rows=64, device="TPUv5e"))
    assert "16 x TPUv5p (88.5 GiB)" in caught.value.fix  # 95 GB; on a v4 or v6e of 32 it does not fit


def test_more_ranks_than_rows_is_an_error_of_the_recipe() -> None:
    with pytest.raises(RecipeError, match="rows"):
        search(question(replace(DENSE, layers=1, heads=1, kv_heads=1, context=1024), devices=64, rows=2))


def test_played_bubble_of_even_stages_is_the_closed_form() -> None:
    asked = question(replace(LARGE, vocab=64), devices=8, rows=64)
    for text, share in (("1f1b", 1.0), ("interleaved", 0.5)):
        layout = Layout(pipeline=8, schedule=text, interleave=2 if text == "interleaved" else 1)
        times = played(asked, candidate_of(asked, layout, 1, "none"), layout)
        micro_batch_s = float(times.compute_s[0] + times.pipeline_s[0]) / 64
        assert times.bubble_s[0] == pytest.approx(7 * share * micro_batch_s, rel=0.12)


def test_bubble_of_uneven_stages_is_not_told_as_sends_that_hide_in_it() -> None:
    """One stage of 4 layers and seven of 3, which wait in any case."""
    asked = question(replace(LARGE, layers=25, vocab=64), devices=8, rows=1024)
    asked = replace(asked, cluster=replace(asked.cluster, link_domain=1, network_gb_per_s=100.0))
    layout = Layout(pipeline=8)
    times = played(asked, candidate_of(asked, layout, 1, "none"), layout)
    layers = [len(stage) for stage in layers_of_stages(asked.shape, layout)]
    busiest_s = float(times.compute_s[0])
    passes = [[busiest_s / 1024 / max(layers) / 3 * each for each in layers]] * 3
    assert times.bubble_s[0] == pytest.approx(simulate(layout, 1024, *passes) - busiest_s, rel=0.1)
    assert times.pipeline_s[0] < 0.1 * times.bubble_s[0]


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        (replace(LARGE, family="qwen3-moe", layers=61, experts=64, experts_per_token=4, expert_ffn=2048,
                 dense_layers=3), Layout(shard=8, pipeline=32)),
        (replace(LARGE, family="qwen3-moe", layers=30, experts=16, experts_per_token=4, expert_ffn=8192,
                 dense_layers=7), Layout(pipeline=8)),
        (replace(LARGE, layers=30), Layout(pipeline=8)),
        (replace(ROUTED, layers=24, dense_layers=5),
         Layout(pipeline=4, schedule="interleaved", interleave=2)),
        (replace(ROUTED, layers=24, dense_layers=5), Layout(pipeline=4, schedule="zbv")),
    ],
)  # fmt: skip
def test_fullest_rank_is_among_those_that_are_looked_at(shape: ModelShape, layout: Layout) -> None:
    asked = question(shape, devices=layout.world, rows=64 * layout.shard)
    looked_at = ranks_that_may_be_fullest(shape, layout)
    found, every = (
        memories_of(asked, layout, 1, 64, "none", ranks)
        for ranks in (looked_at, tuple(range(layout.pipeline)))
    )
    assert max(one.total for one in found) == max(one.total for one in every)
    assert layout.pipeline < 32 or len(looked_at) < 10


@pytest.mark.parametrize("layers", [17, 29])  # of which a rank between the first two and the last has most
def test_fullest_rank_of_a_recomputed_zero_bubble_is_looked_at(layers: int) -> None:
    """On later ranks weights of more micro-batches wait."""
    shape, layout = replace(LARGE, layers=layers, vocab=64), Layout(pipeline=6, schedule="zbv")
    asked = question(shape, devices=6, rows=64)
    looked_at = ranks_that_may_be_fullest(shape, layout)
    found, every = (
        memories_of(asked, layout, 1, 64, "full", ranks) for ranks in (looked_at, tuple(range(6)))
    )
    assert max(one.total for one in found) == max(one.total for one in every)
    assert len(looked_at) < 5


def test_sends_of_a_slow_network_count_once() -> None:
    """Forwards and backwards for each micro-batch and for the filling, as columns have it; a rank that waits
    for its neighbours waits for the sends too, and not again for as long."""
    asked = question(replace(LARGE, vocab=64), devices=4, rows=32)
    slow = replace(asked, cluster=replace(asked.cluster, link_domain=1, network_gb_per_s=1.5))
    layout = Layout(pipeline=4)
    one = candidate_of(slow, layout, 1, "none")
    columns, found = own_times(slow, one), played(slow, one, layout)
    assert 0.1 < columns.pipeline_s[0] / columns.total_s[0] < 0.3
    assert found.total_s[0] == pytest.approx(columns.total_s[0], rel=0.05)
    assert found.pipeline_s[0] == pytest.approx(columns.pipeline_s[0], rel=0.3)


def test_what_is_faster_and_takes_more_energy_is_told_so() -> None:
    best = search(question(devices=8)).best
    assert best.kwh is not None
    faster = replace(best, step_s=0.9 * best.step_s, kwh=1.2 * best.kwh)
    assert slower_words(faster, best) == "fits and is 10% faster, 20% more energy"
    assert slower_words(best, best).startswith("fits and is as fast; the chosen one is plainer")


def test_divisors_are_all_of_them() -> None:
    assert divisors(12) == [1, 2, 3, 4, 6, 12] and divisors(100_000)[-1] == 100_000
    assert len(divisors(100_000)) == 36
