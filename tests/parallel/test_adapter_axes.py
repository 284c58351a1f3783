"""One step of a model with adapters on the ranks of a layout equals the step of one process.

As tests/parallel/test_axes.py, with the frozen weights without a gradient: of an adapter one factor is split
and the other whole wherever the tensor axis splits a matrix, and weight gradients wait in a zero-bubble
pipeline.
"""

from functools import cache

import pytest
from making_layouts import SHAPES
from making_ranks import Pool
from making_steps import Step, assert_same, on_ranks, one_process

from bessemer.model.adapter import trained_names

reference = cache(one_process)

CASES = [
    ("lora", "replicate=2"),
    ("dora", "shard=2"),
    ("threes dora", "tensor=3"),
    ("dora", "pipeline=2,schedule=zbv"),
    ("lora", "context=2"),
    ("glm dora", "shard=2,tensor=2,expert=2"),
]
SLOW = [
    ("dora", "tensor=2"),
    ("threes dora", "shard=3"),
    ("dora", "replicate=2,shard=2,reshard=no"),
    ("lora", "tensor=2,pipeline=2"),
    ("dora", "shard=2,pipeline=2,schedule=zbv"),
    ("dora", "tensor=2,pipeline=2,schedule=zbv"),
    ("dora", "shard=2,tensor=2,pipeline=2"),
    ("glm dora", "context=2,pipeline=2,expert=2"),
    ("moe lora", "replicate=2,shard=2,expert=2"),
    ("moe lora", "context=2,tensor=2"),
]
PARAMS = [pytest.param(*case, id=" ".join(case)) for case in CASES]
PARAMS += [pytest.param(*case, id=" ".join(case), marks=pytest.mark.slow) for case in SLOW]


@pytest.mark.parametrize(("shape", "layout"), PARAMS)
def test_a_step_of_adapters_equals_that_of_one_process(shape: str, layout: str, ranks: Pool) -> None:
    found, wanted = on_ranks(Step(shape, layout), ranks), reference(Step(shape))
    assert_same(found, wanted)
    learned = {name for name in found.gradients if "bias" not in name}
    assert learned == trained_names(SHAPES[shape])
    assert all(found.gradients[name].any() for name in learned), "nothing to compare"


@pytest.mark.parametrize("layout", ["shard=2", "replicate=2", "pipeline=2"])
def test_bf16_adapters_are_one_process_exactly(layout: str, ranks: Pool) -> None:
    """Ranks that split rows or layers only compute the very same."""
    step = Step("dora", layout, dtype="bfloat16")
    found, wanted = on_ranks(step, ranks), reference(Step("dora", dtype="bfloat16"))
    assert found.loss == pytest.approx(wanted.loss, rel=1e-6)
    assert found.norm == pytest.approx(wanted.norm, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["selective", "full"])
@pytest.mark.parametrize("layout", ["shard=2,tensor=2", "shard=2,pipeline=2,schedule=zbv"])
def test_recomputing_with_adapters_changes_nothing(layout: str, recompute: str, ranks: Pool) -> None:
    assert_same(on_ranks(Step("dora", layout, recompute=recompute), ranks), reference(Step("dora")))
