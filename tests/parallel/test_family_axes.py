"""As tests/parallel/test_axes.py, of what other families have: windows, biases, norms behind the layers.

Norms behind a layer see a part of the sequence on the tensor axis, biases are split with their heads, and a
context rank's window reaches into what other ranks have.
"""

from functools import cache

import pytest
from making_ranks import Pool
from making_steps import Step, assert_same, on_ranks, one_process

reference = cache(one_process)

CASES = [
    ("gemma", "tensor=2,pipeline=2"),
    ("gemma", "context=2"),
    ("qwen2", "shard=2,tensor=2"),
]
SLOW = [
    ("mistral", "context=2,context_kind=ulysses"),
    ("gemma", "shard=2,tensor=2,pipeline=2"),
    ("gemma", "replicate=2,shard=2,pipeline=2,schedule=zbv"),
    ("gemma", "context=2,tensor=2"),
    ("gemma dora", "tensor=2,pipeline=2,schedule=zbv"),
    ("qwen2", "shard=2,tensor=2,pipeline=2"),
    ("qwen2", "pipeline=2,schedule=zbv"),
    ("qwen2", "context=2,shard=2"),
    ("qwen2 lora", "shard=2,tensor=2"),
    ("qwen3 window", "shard=2,tensor=2,pipeline=2"),
    ("qwen3 window", "context=4"),
    ("mistral", "shard=2,tensor=2,pipeline=2"),
    ("phi", "shard=2,tensor=2,pipeline=2"),
    ("phi", "context=2"),
]
PARAMS = [pytest.param(*case, id=" ".join(case)) for case in CASES]
PARAMS += [pytest.param(*case, id=" ".join(case), marks=pytest.mark.slow) for case in SLOW]


@pytest.mark.parametrize(("shape", "layout"), PARAMS)
def test_a_step_of_a_family_equals_that_of_one_process(shape: str, layout: str, ranks: Pool) -> None:
    found, wanted = on_ranks(Step(shape, layout), ranks), reference(Step(shape))
    assert_same(found, wanted)
    biases = [name for name in wanted.gradients if name.endswith("_proj.bias")]
    assert bool(biases) == (shape == "qwen2")
    assert all(wanted.gradients[name].any() for name in biases if "k_proj" not in name)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["selective", "full"])
@pytest.mark.parametrize("shape", ["gemma", "qwen2"])
def test_recomputation_changes_no_gradient(shape: str, recompute: str, ranks: Pool) -> None:
    assert_same(on_ranks(Step(shape, "shard=2", recompute=recompute), ranks), reference(Step(shape)))
