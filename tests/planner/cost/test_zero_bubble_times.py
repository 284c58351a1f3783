"""What a zero-bubble pipeline waits, played in the orders of all lengths of passes, and what columns say."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from bessemer.formulas.adapters import ATTENTION
from bessemer.formulas.layout import Layout
from bessemer.formulas.passes import LONGER, LONGEST, backward_and_weight, pass_lengths
from bessemer.formulas.schedule import EQUAL, Lengths
from bessemer.formulas.shape import Adapter, ModelShape
from bessemer.hardware import lookup
from bessemer.planner.cost.pipeline import simulate
from bessemer.planner.machine.cluster import catalogue_cluster
from bessemer.planner.search.costed import own_times
from bessemer.planner.search.exact import played
from bessemer.planner.search.question import Question
from bessemer.planner.search.space import candidate_of

Ratio = tuple[float, float, float]  # F, B, W
# The lengths that each order is taken for, ends included: its own and those around them.
AROUND: list[tuple[Lengths, Ratio]] = [
    *((EQUAL, (1.0, 1.0 + more, 1.0 - more)) for more in (0.0, 0.01, 0.02)),
    *((LONGER, (1.0, 1.0 + more, 1.0 - more)) for more in (0.02, 0.15, 0.25)),
    *((LONGEST, (1.0, 1.0 + more, 1.0 - more)) for more in (0.25, 0.3, 0.4, 0.5)),
    *((LONGEST, ratio) for ratio in ((1.0, 1.45, 0.85), (1.0, 1.6, 0.7), (1.0, 2.0, 1.0))),  # recomputed
]


def idle(ranks: int, micro_batches: int, ratio: Ratio, lengths: Lengths | None) -> float:
    """Over busy time, of alike stages; None: 1F1B."""
    schedule = "1f1b" if lengths is None else "zbv"
    layout = Layout(pipeline=ranks, schedule=schedule)
    times = [[each / layout.stages_per_rank] * layout.num_stages for each in ratio]
    return (
        simulate(layout, micro_batches, *times, lengths=lengths or EQUAL) / micro_batches / sum(ratio) - 1.0
    )


def sizes() -> Iterator[tuple[int, int]]:
    for ranks in (2, 3, 4, 8, 16):
        for micro_batches in sorted({ranks, ranks + 1, 2 * ranks - 1, 2 * ranks, 4 * ranks + 1, 64}):
            yield ranks, micro_batches


@pytest.mark.parametrize(("lengths", "ratio"), AROUND)
def test_order_of_its_lengths_waits_less_than_1f1b(lengths: Lengths, ratio: Ratio) -> None:
    at_most = {EQUAL: 0.5, LONGER: 0.65, LONGEST: 0.825}[lengths]
    for ranks, micro_batches in sizes():
        if lengths == EQUAL and micro_batches > 4 * ranks + 1:
            continue  # each micro-batch waits for the longest pass, and 1F1B for little at all
        waits = idle(ranks, micro_batches, ratio, lengths)
        assert waits <= at_most * idle(ranks, micro_batches, ratio, None), (ranks, micro_batches)


@pytest.mark.parametrize(("lengths", "ratio"), [each for each in AROUND if each[0] != EQUAL])
def test_order_of_equal_passes_waits_longer_at_other_lengths(lengths: Lengths, ratio: Ratio) -> None:
    """With as many micro-batches as make a zero-bubble pipeline worth it."""
    for ranks, micro_batches in sizes():
        if micro_batches >= 4 * ranks and ratio[1] >= 1.15:
            assert idle(ranks, micro_batches, ratio, lengths) < 0.7 * idle(ranks, micro_batches, ratio, EQUAL)


def test_eight_ranks_with_64_micro_batches_wait_what_the_log_says() -> None:
    ratios = ((1.0, 1.0, 1.0), (1.0, 1.15, 0.8), (1.0, 1.3, 0.7), (1.0, 1.5, 0.5))
    orders = (EQUAL, LONGER, LONGEST, LONGEST)
    found = [100 * idle(8, 64, ratio, order) for ratio, order in zip(ratios, orders, strict=True)]
    assert found == pytest.approx([1.8, 5.0, 3.9, 3.5], abs=0.05)


LLAMA = {
    "8b": ModelShape("llama", 32, 4096, 32, 8, 128, 14336, 128256, 8192, False, False),
    "70b": ModelShape("llama", 80, 8192, 64, 8, 128, 28672, 128256, 8192, False, False),
    "405b": ModelShape("llama", 126, 16384, 128, 8, 128, 53248, 128256, 8192, False, False),
}


def question(shape: ModelShape, context: int, ranks: int, rows: int, device: str = "H100") -> Question:
    cluster = catalogue_cluster(lookup(device), ranks)
    return Question(replace(shape, context=context), context, rows, 1, "bf16", cluster)


@pytest.mark.parametrize("size", LLAMA)
@pytest.mark.parametrize("device", ["H100", "A100-80GB", "B200"])
def test_lengths_of_passes_are_those_of_the_planners_step(size: str, device: str) -> None:
    """Which knows the device; the order that is chosen does not. Layers alone, next to without a head."""
    for context in (2048, 8192, 32768, 131072):
        asked = question(replace(LLAMA[size], vocab=64), context, 8, 32, device)
        for recompute in ("none", "selective", "full"):
            layout = Layout(pipeline=8, schedule="zbv")
            parts = own_times(asked, candidate_of(asked, layout, 1, recompute)).parts(0)
            forward_s = sum(parts[name] for name in ("matmul_s", "attention_s", "vector_s")) / 3.0
            weight_s = parts["matmul_s"] / 3.0
            backward_s = 2.0 * forward_s - weight_s + parts["recompute_s"]
            backward, weight = backward_and_weight(asked.shape, context, recompute)
            assert backward == pytest.approx(backward_s / forward_s, rel=0.1)
            assert weight == pytest.approx(weight_s / forward_s, abs=0.12)


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("size", ["8b", "70b", "adapted"])
def test_columns_and_the_played_order_tell_about_the_same_time(size: str, recompute: str) -> None:
    """Head and short last groups of micro-batches with them."""
    adapted = replace(LLAMA["8b"], adapter=Adapter(16, 32.0, ATTENTION))
    shape, errors = LLAMA.get(size, adapted), []
    for context in (2048, 8192, 32768):
        for ranks, micro_batches in ((4, 16), (8, 9), (8, 16), (8, 64), (16, 32)):
            asked = question(shape, context, ranks, micro_batches)
            layout = Layout(pipeline=ranks, schedule="zbv")
            one = candidate_of(asked, layout, 1, recompute)
            errors.append(own_times(asked, one).total_s[0] / played(asked, one, layout).total_s[0] - 1.0)
    assert min(errors) > -0.08 and max(errors) < 0.14 and sum(map(abs, errors)) / len(errors) < 0.07


def test_finalists_are_played_in_the_order_that_runs() -> None:
    asked = question(LLAMA["8b"], 32768, 8, 64)
    layout = Layout(pipeline=8, schedule="zbv")
    assert pass_lengths(asked.shape, 32768, "none") == LONGEST
    found = played(asked, candidate_of(asked, layout, 1, "none"), layout)
    assert found.bubble_s[0] < 0.2 * found.total_s[0]  # in the order of equal passes more than a third
