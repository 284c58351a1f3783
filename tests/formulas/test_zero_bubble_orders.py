"""Orders of a zero-bubble pipeline for passes of several lengths: complete, no deadlock, within memory."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

from bessemer.formulas.adapters import ATTENTION
from bessemer.formulas.layout import Layout
from bessemer.formulas.memory.rank_moments import rank_moments
from bessemer.formulas.passes import LONGER, LONGEST, backward_and_weight, pass_lengths
from bessemer.formulas.schedule import EQUAL, Action, Lengths, Order, pipeline_order, rank_order
from bessemer.formulas.shape import Adapter, ModelShape

BOTH = pytest.mark.parametrize("lengths", [LONGER, LONGEST], ids=["longer", "longest"])
RANKS = range(2, 17)


def orders(lengths: Lengths) -> Iterator[tuple[Layout, int, Order]]:
    for ranks in RANKS:
        layout = Layout(pipeline=ranks, schedule="zbv")
        for micro_batches in (1, ranks - 1, ranks, ranks + 1, 2 * ranks + 1, 4 * ranks):
            yield layout, micro_batches, pipeline_order(layout, micro_batches, lengths)


def needs(action: Action, last: int) -> list[Action]:
    """What must be done before."""
    stage, number = action.stage, action.micro_batch
    if action.kind == "F":
        return [Action("F", stage - 1, number)] if stage else []
    before = [Action("B" if action.kind == "W" else "F", stage, number)]
    return before + ([Action("B", stage + 1, number)] if action.kind == "B" and stage < last else [])


@BOTH
def test_every_action_is_done_once_after_what_it_needs_and_nobody_waits_for_ever(lengths: Lengths) -> None:
    for layout, micro_batches, order in orders(lengths):
        for rank, actions in enumerate(order):
            stages = layout.stages_of(rank)
            assert Counter((kind, stage) for kind, stage, _ in actions) == dict.fromkeys(
                ((kind, stage) for kind in ("F", "B", "W") for stage in stages), micro_batches
            )
        done: set[Action] = set()
        places = [0] * len(order)
        while len(done) < sum(map(len, order)):
            before = len(done)
            for rank, actions in enumerate(order):
                while places[rank] < len(actions):
                    action = actions[places[rank]]
                    if not done.issuperset(needs(action, layout.num_stages - 1)):
                        break
                    assert action not in done
                    done.add(action)
                    places[rank] += 1
            assert len(done) > before, f"{layout}, {micro_batches} micro-batches: all wait"


@BOTH
def test_a_rank_holds_as_much_as_in_the_order_of_equal_passes(lengths: Lengths) -> None:
    """Forwards whose weights wait: in all, and within one of it on its first stage."""
    for layout, micro_batches, order in orders(lengths):
        usual = pipeline_order(layout, micro_batches)
        for rank, actions in enumerate(order):
            first = layout.stages_of(rank)[0]
            assert most_held(actions) == most_held(usual[rank]) <= 2 * layout.pipeline
            assert most_held(of_stage(actions, first)) <= most_held(of_stage(usual[rank], first)) + 1


@BOTH
def test_as_many_micro_batches_wait_for_their_weights_as_memory_counts(lengths: Lengths) -> None:
    for layout, micro_batches, order in orders(lengths):
        for rank, actions in enumerate(order):
            waiting = most_held([action for action in actions if action.kind != "F"], begins="B")
            moments = rank_moments(layout, rank, micro_batches, lengths)
            assert waiting == max(sum(moment.waiting) for moment in moments)


def of_stage(actions: list[Action], stage: int) -> list[Action]:
    return [action for action in actions if action.stage == stage]


def most_held(actions: list[Action], begins: str = "F") -> int:
    held, most = 0, 0
    for action in actions:
        held += (action.kind == begins) - (action.kind == "W")
        most = max(most, held)
    return most


@BOTH
def test_moments_of_memory_are_those_of_the_order(lengths: Lengths) -> None:
    layout = Layout(pipeline=4, schedule="zbv")
    for rank in range(4):
        most = max(sum(count for _, count in one.held) for one in rank_moments(layout, rank, 12, lengths))
        assert most == most_held(rank_order(layout, 12, rank, lengths))


LLAMA_8B = ModelShape(
    "llama", 32, 4096, 32, 8, 128, 14336, 128256, 8192, tie_embeddings=False, qk_norm=False
)  # fmt: skip
LLAMA_405B = replace(LLAMA_8B, layers=126, hidden=16384, heads=128, ffn=53248)
EXPERTS = replace(LLAMA_8B, family="qwen3-moe", experts=64, experts_per_token=4, expert_ffn=3584)


def test_order_follows_from_model_row_and_recomputation() -> None:
    huge = replace(LLAMA_405B, hidden=65536, heads=512, ffn=4 * 53248)
    assert pass_lengths(huge, 2048, "none") == EQUAL
    assert pass_lengths(LLAMA_405B, 8192, "none") == pass_lengths(LLAMA_8B, 2048, "none") == LONGER
    assert pass_lengths(LLAMA_8B, 32768, "none") == LONGEST
    adapted = replace(LLAMA_405B, adapter=Adapter(16, 32.0, ATTENTION))
    # Frozen matrices have no weight pass, experts' is at once with the backward pass.
    assert pass_lengths(adapted, 2048, "none") == pass_lengths(EXPERTS, 2048, "none") == LONGEST
    for shape in (LLAMA_8B, LLAMA_405B, huge, EXPERTS, adapted):
        for recompute in ("selective", "full"):
            assert pass_lengths(shape, 2048, recompute) == LONGEST


def test_recomputation_is_in_the_backward_pass_and_nothing_is_lost_or_counted_twice() -> None:
    for shape in (LLAMA_8B, EXPERTS):
        for context in (2048, 131072):
            assert sum(backward_and_weight(shape, context, "none")) == pytest.approx(2.0)
            (backward, weight), again = (
                backward_and_weight(shape, context, kind) for kind in ("none", "full")
            )
            assert again == (pytest.approx(backward + 1.0), weight)
    assert (
        backward_and_weight(EXPERTS, 2048, "none")[1] < 0.5 * backward_and_weight(LLAMA_8B, 2048, "none")[1]
    )
