"""A step on pairs, or on texts with labels, on the ranks of a layout equals the step of one process."""

from functools import cache

import pytest
from making_ranks import Pool
from making_steps import Step, assert_same, on_ranks, one_process

reference = cache(one_process)

FAST = [
    ("dpo", "dense", "shard=2"),
    ("dpo", "tied", "tensor=2"),
    ("dpo", "dense", "context=2"),
    ("dpo", "dense", "pipeline=2"),
    ("classify", "classes", "tensor=2"),
    ("classify", "classes", "context=2"),
    ("classify", "classes", "pipeline=2"),
    ("reward", "reward", "context=2,tensor=2"),
]
SLOW = [
    ("dpo", "dense", "replicate=2"),
    ("dpo", "tied", "context=2,context_kind=ulysses"),
    ("dpo", "threes", "tensor=3,pipeline=2"),
    ("dpo", "moe", "shard=2,tensor=2,expert=2"),
    ("dpo", "dense", "context=2,pipeline=2,schedule=zbv"),
    ("dpo", "dense", "shard=2,context=2,tensor=2"),
    ("ipo", "dense", "context=2,tensor=2"),
    ("orpo", "tied", "context=2,tensor=2"),
    ("simpo", "dense", "context=2,tensor=2"),
    ("classify", "classes", "shard=2"),
    ("classify", "classes", "replicate=2"),
    ("classify", "classes", "context=2,tensor=2,pipeline=2"),
    ("reward", "reward", "shard=2,pipeline=2"),
    ("reward", "reward", "replicate=2"),
]
CASES = [pytest.param(*case, id=" ".join(case)) for case in FAST]
CASES += [pytest.param(*case, id=" ".join(case), marks=pytest.mark.slow) for case in SLOW]


@pytest.mark.parametrize(("objective", "shape", "layout"), CASES)
def test_a_step_on_pairs_or_labels_equals_that_of_one_process(
    objective: str, shape: str, layout: str, ranks: Pool
) -> None:
    wanted = reference(Step(shape, objective=objective))
    assert_same(on_ranks(Step(shape, layout, objective=objective), ranks), wanted)
