"""What ranks send, counted in real processes, against the closed form; and memory, against what is known."""

from dataclasses import replace

import pytest
import torch
from making_ranks import Pool
from making_traffic import BIASED, CONTEXT, DENSE, ROUTED, Case, measure, workload
from torch import nn

from bessemer.formulas.layout import Layout
from bessemer.formulas.shape import ModelShape
from bessemer.formulas.traffic.step import step_traffic
from bessemer.parallel.traffic import TensorMemory

TIED = replace(DENSE, tie_embeddings=True)
WIDE = replace(DENSE, heads=6, kv_heads=3)  # three parts of heads; nothing else divides by three


def made(shape: ModelShape, layout: Layout, dtype: str = "fp32", recompute: str = "none") -> Case:
    return shape, layout, workload(layout, dtype, recompute)


CASES = [
    made(DENSE, Layout(shard=2)),
    made(DENSE, Layout(shard=2, reshard=False), "bf16"),
    made(DENSE, Layout(replicate=2, shard=2), "bf16", "full"),
    made(DENSE, Layout(replicate=2), "bf16"),
    made(TIED, Layout(replicate=2, tensor=2), recompute="full"),
    made(BIASED, Layout(replicate=3)),
    made(WIDE, Layout(tensor=3)),
    made(DENSE, Layout(context=2), recompute="selective"),
    made(DENSE, Layout(context=2, tensor=2, context_kind="ulysses"), recompute="full"),
    made(TIED, Layout(pipeline=2, shard=3)),
    made(DENSE, Layout(pipeline=2, schedule="interleaved", interleave=2, tensor=2)),
    made(TIED, Layout(pipeline=2, shard=2, schedule="zbv"), "bf16"),
    made(ROUTED, Layout(replicate=2, expert=2)),
    made(ROUTED, Layout(shard=2, context=2, expert=2), "bf16"),
    made(ROUTED, Layout(shard=2, replicate=2, expert=4), recompute="full"),
    made(BIASED, Layout(shard=2, tensor=2, expert=2), recompute="full"),
]


@pytest.mark.parametrize("case", CASES, ids=[f"{layout}" for _, layout, _ in CASES])
def test_counts_and_bytes_of_every_exchange_are_as_the_formula_says(case: Case, ranks: Pool) -> None:
    shape, layout, work = case
    found = [rank.exchanges for rank in measure(ranks, case)]
    wanted = [step_traffic(shape, work, layout, rank, context=CONTEXT) for rank in range(layout.world)]
    if layout.expert > 1:  # routers choose as they like: rows are as many as they must be over all ranks
        for each, want in zip(found, wanted, strict=True):
            assert each["all_to_all"].count == want["all_to_all"].count
        exchanged = [sum(each.pop("all_to_all").bytes for each in side) for side in (found, wanted)]
        assert exchanged[0] == exchanged[1]
    assert found == wanted


def test_memory_counts_each_storage_once_and_while_it_lives() -> None:
    with TensorMemory() as memory:
        one = torch.zeros(1000)
        view = one.view(10, 100)[2:]
        assert memory.now == memory.peak == 4000
        two = one + 1
        assert memory.now == 8000
        del one
        assert memory.now == 8000
        del view
        assert memory.now == 4000
        two.untyped_storage().resize_(0)
        assert (memory.now, memory.peak) == (0, 8000)
        two.untyped_storage().resize_(12000)
        assert (memory.now, memory.peak) == (12000, 12000)


def test_memory_counts_what_it_is_given_and_what_autograd_keeps() -> None:
    model = nn.Linear(100, 100, bias=False)
    optimizer = torch.optim.AdamW(model.parameters())
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    with TensorMemory(model, optimizer) as memory:
        held = 4 * 40000 + 4  # weight, gradient, two moments, and the number of steps
        assert memory.now == held
        out = model(torch.zeros(10, 100)).square()
        assert memory.now == held + 3 * 4000  # input, what is squared, and its square
        del out
        assert memory.now == held


def test_memory_leaves_torch_as_it_was() -> None:
    before = torch.UntypedStorage.resize_
    with TensorMemory():
        pass
    assert torch.UntypedStorage.resize_ is before
