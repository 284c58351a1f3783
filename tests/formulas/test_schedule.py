"""The order of work in a pipeline, run on paper: complete, without deadlock, within memory and time."""

from collections import Counter
from operator import le

import pytest

from bessemer.formulas.layout import Layout
from bessemer.formulas.memory.rank_moments import rank_moments
from bessemer.formulas.schedule import (
    Action,
    Order,
    forward_order,
    most_in_flight,
    pipeline_order,
    rank_order,
    splits_backward,
)

RANKS = range(2, 9)
MICRO_BATCHES = range(1, 33)


def layouts(ranks: int, micro_batches: int) -> list[Layout]:
    """Interleaved where the number of micro-batches is allowed: less than a group, or whole groups."""
    found = [
        Layout(pipeline=ranks),
        Layout(pipeline=ranks, schedule="zbv"),
        Layout(pipeline=ranks, schedule="dualpipev"),
    ]
    if micro_batches < ranks or micro_batches % ranks == 0:
        found += [Layout(pipeline=ranks, schedule="interleaved", interleave=n) for n in (2, 3)]
    return found


ALL = [pytest.param(ranks, id=f"{ranks} ranks") for ranks in RANKS]


def needs(action: Action, layout: Layout) -> list[Action]:
    """What must be done before."""
    stage, number = action.stage, action.micro_batch
    if action.kind == "F":
        return [Action("F", stage - 1, number)] if stage else []
    if action.kind == "W":
        return [Action("B", stage, number)]
    last = stage == layout.num_stages - 1
    return [Action("F", stage, number)] + ([] if last else [Action("B", stage + 1, number)])


def time_of(order: Order, layout: Layout) -> int:
    """Units of time until all is done, every rank in its order and as soon as it can. Fails on deadlock."""
    # Whoever does W at once with B sends the gradient of the input after both.
    time = {"F": 1, "B": 1, "W": 1} if splits_backward(layout) else {"F": 1, "B": 2, "W": 0}
    ends: dict[Action, int] = {}
    clock, place = [0] * len(order), [0] * len(order)
    left = sum(map(len, order))
    while left:
        before = left
        for rank, actions in enumerate(order):
            while place[rank] < len(actions):
                action = actions[place[rank]]
                wanted = needs(action, layout)
                if not all(each in ends for each in wanted):
                    break
                clock[rank] = max([clock[rank], *(ends[each] for each in wanted)]) + time[action.kind]
                ends[action] = clock[rank]
                place[rank] += 1
                left -= 1
        waiting = [str(actions[at]) for actions, at in zip(order, place, strict=True) if at < len(actions)]
        assert left < before, f"{layout}: all wait, for {waiting}"
    return max(clock)


def idle_time(layout: Layout, micro_batches: int) -> int:
    """Of a rank that works from the first unit of time to the last."""
    return time_of(pipeline_order(layout, micro_batches), layout) - 3 * layout.stages_per_rank * micro_batches


def most_held(actions: list[Action]) -> int:
    """Forwards whose weight gradients wait, at the worst: what a rank keeps in memory."""
    held, most = 0, 0
    for action in actions:
        held += (action.kind == "F") - (action.kind == "W")
        most = max(most, held)
    return most


@pytest.mark.parametrize("ranks", ALL)
def test_every_action_is_done_once_on_the_rank_of_its_stage_and_nobody_waits_for_ever(ranks: int) -> None:
    for micro_batches in MICRO_BATCHES:
        for layout in layouts(ranks, micro_batches):
            order = pipeline_order(layout, micro_batches)
            for rank, actions in enumerate(order):
                assert Counter(actions) == {
                    Action(kind, stage, number): 1
                    for kind in ("F", "B", "W")
                    for stage in layout.stages_of(rank)
                    for number in range(micro_batches)
                }
            time_of(order, layout)


@pytest.mark.parametrize("ranks", ALL)
def test_without_gradients_every_forward_is_done_once_and_nobody_waits_for_ever(ranks: int) -> None:
    for micro_batches in (1, ranks, 17):
        for layout in layouts(ranks, micro_batches):
            order = forward_order(layout, micro_batches)
            assert sum(map(len, order)) == layout.num_stages * micro_batches
            assert {action.kind for actions in order for action in actions} == {"F"}
            time_of(order, layout)


@pytest.mark.parametrize("ranks", ALL)
def test_1f1b_holds_as_many_micro_batches_as_ranks_follow_and_its_own(ranks: int) -> None:
    for micro_batches in MICRO_BATCHES:
        order = pipeline_order(Layout(pipeline=ranks), micro_batches)
        held = [most_in_flight(actions) for actions in order]
        assert held == [min(ranks - rank, micro_batches) for rank in range(ranks)]
        assert [most_held(actions) for actions in order] == held


@pytest.mark.parametrize("ranks", ALL)
def test_zbv_holds_no_more_than_two_half_stages_for_each_rank(ranks: int) -> None:
    for micro_batches in MICRO_BATCHES:
        order = pipeline_order(Layout(pipeline=ranks, schedule="zbv"), micro_batches)
        assert max(map(most_held, order)) <= 2 * ranks


@pytest.mark.parametrize("ranks", ALL)
@pytest.mark.parametrize("interleave", [2, 3])
def test_interleaved_holds_what_its_paper_says(ranks: int, interleave: int) -> None:
    """arXiv:2104.04473, section 2.2: its warm-up and one more."""
    layout = Layout(pipeline=ranks, schedule="interleaved", interleave=interleave)
    for rank, actions in enumerate(pipeline_order(layout, 4 * ranks)):
        assert most_in_flight(actions) == 2 * (ranks - 1 - rank) + (interleave - 1) * ranks + 1


@pytest.mark.parametrize("ranks", ALL)
def test_idle_time_is_that_of_the_papers(ranks: int) -> None:
    """In units of one F, B or W of a stage, which is the v-th part of a rank's layers.

    1F1B: (p - 1) (F + B + W). Interleaved: as many of these shorter units, so the v-th part of the time. ZBV
    (v = 2): at least p - 1, after which the last rank's first input comes, and at most 2 more.
    """
    for micro_batches in (ranks, 2 * ranks, 4 * ranks):
        for turns in (1, 2, 3):
            schedule = "interleaved" if turns > 1 else "1f1b"
            layout = Layout(pipeline=ranks, schedule=schedule, interleave=turns)
            assert idle_time(layout, micro_batches) == 3 * (ranks - 1), f"{layout}, {micro_batches}"
        assert ranks - 1 <= idle_time(Layout(pipeline=ranks, schedule="zbv"), micro_batches) <= ranks + 1


def test_order_of_one_rank_is_that_of_the_whole_pipeline() -> None:
    for micro_batches in (1, 3, 4, 8, 12):
        for layout in layouts(4, micro_batches):
            alone = [rank_order(layout, micro_batches, rank) for rank in range(4)]
            assert alone == pipeline_order(layout, micro_batches)


def test_fullest_moments_hold_as_much_as_any_moment_of_the_order() -> None:
    for layout in layouts(4, 12):
        for rank in range(4):
            moments = rank_moments(layout, rank, 12)
            held = dict.fromkeys(layout.stages_of(rank), 0)
            waiting = dict(held)
            for kind, place, _ in rank_order(layout, 12, rank):
                held[place] += (kind == "F") - (kind == "W")
                waiting[place] += splits_backward(layout) * ((kind == "B") - (kind == "W"))
                assert kind == "W" or any(
                    all(held[stage] <= count for stage, count in one.held)
                    and all(map(le, waiting.values(), one.waiting))
                    for one in moments
                    if (one.kind, one.stage) == (kind, place)
                )
            for one in moments:  # and none is there beside one that holds more of everything
                others = [
                    other
                    for other in moments
                    if other != one and (one.kind, one.stage) == (other.kind, other.stage)
                ]
                assert not any(
                    one.begun <= other.begun
                    and all(count <= dict(other.held)[stage] for stage, count in one.held)
                    and all(map(le, one.waiting, other.waiting))
                    for other in others
                )


def test_only_a_zero_bubble_pipeline_lets_weights_wait() -> None:
    assert splits_backward(Layout(pipeline=2, schedule="zbv"))
    assert not splits_backward(Layout(schedule="zbv")) and not splits_backward(Layout(pipeline=2))
    for schedule in ("1f1b", "interleaved"):
        layout = Layout(pipeline=2, schedule=schedule, interleave=1 + (schedule == "interleaved"))
        for actions in pipeline_order(layout, 4):
            backward = [at for at, action in enumerate(actions) if action.kind == "B"]
            pairs = [(actions[at], actions[at + 1]) for at in backward]
            assert all(after == Action("W", b.stage, b.micro_batch) for b, after in pairs)
