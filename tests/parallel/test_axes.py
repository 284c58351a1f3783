"""One step on the ranks of a layout equals the step of one process: hidden states, loss, every gradient.

In fp32, sums come in another order and nothing else differs: all within 1e-5 of the largest element. Norm,
clipping and the counts of chosen experts are compared in each case as well.
"""

from dataclasses import replace
from functools import cache

import pytest
from making_layouts import CONTEXT, SHAPES
from making_ranks import Pool
from making_runs import TinyRows
from making_steps import CLIP, Step, assert_same, on_ranks, one_process

reference = cache(one_process)

TENSOR = [
    ("dense", "tensor=2"),
    ("tied", "tensor=4"),
    ("threes", "tensor=3"),  # neither tokens nor words divide
    ("moe", "tensor=2"),
    ("glm", "tensor=2"),
]
CONTEXTS = [
    ("dense", "context=2"),
    ("dense", "context=2,context_kind=ulysses"),
    ("tied", "context=4,context_kind=ulysses"),
    ("moe", "context=2"),
    ("moe", "context=2,context_kind=ulysses"),
]
EXPERTS = [
    ("moe", "shard=2,expert=2"),
    ("moe", "replicate=2,shard=2,expert=2"),
    ("moe", "context=2,shard=2,expert=2"),
    ("glm", "shard=4,expert=2"),
    ("glm", "replicate=4,expert=2"),
]
PIPELINES = [
    ("dense", "pipeline=2"),
    ("dense", "pipeline=4,split=1+1+1+1"),
    ("dense", "pipeline=2,schedule=interleaved,interleave=2"),
    ("dense", "pipeline=2,schedule=zbv"),
    ("dense", "pipeline=2,schedule=dualpipev"),
    ("deep", "pipeline=4,schedule=zbv"),
    ("tied", "pipeline=2"),
    ("tied", "pipeline=3,split=1+2+1"),
    ("tied", "pipeline=2,schedule=zbv"),
    ("moe", "pipeline=2"),
    ("glm", "pipeline=2,schedule=zbv"),
]
SHARDS = [
    ("dense", "shard=2"),
    ("dense", "shard=3"),  # 8 rows and most matrices do not divide
    ("tied", "replicate=2"),
    ("dense", "replicate=2,shard=2,reshard=no"),
    ("glm", "replicate=2,shard=2"),
]
TOGETHER = [
    ("dense", "tensor=2,pipeline=2"),
    ("threes", "tensor=3,pipeline=2"),
    ("moe", "shard=2,tensor=2,expert=2"),
    ("tied", "tensor=2,pipeline=2,schedule=zbv"),
    ("dense", "shard=2,pipeline=2,schedule=zbv"),
    ("moe", "context=2,tensor=2"),
    ("glm", "context=2,pipeline=2,expert=2"),
]
SLOW = [
    ("dense", "context=4"),
    ("glm", "context=4"),
    ("moe", "shard=4,expert=4"),
    ("moe", "shard=4"),
    ("dense", "context=2,tensor=2"),
    ("dense", "shard=2,tensor=2,pipeline=2"),
    ("tied", "replicate=2,shard=2,pipeline=2,schedule=zbv"),
    ("glm", "context=2,tensor=2,pipeline=2,expert=2,schedule=zbv"),
    ("moe", "replicate=2,shard=2,tensor=2,expert=4"),
    ("moe", "shard=3,tensor=2"),  # two ranks hold no expert of a stack
]
ALL = TENSOR + CONTEXTS + EXPERTS + PIPELINES + SHARDS + TOGETHER
CASES = [pytest.param(*case, id=" ".join(case)) for case in ALL]
CASES += [pytest.param(*case, id=" ".join(case), marks=pytest.mark.slow) for case in SLOW]


@pytest.mark.parametrize(("shape", "layout"), CASES)
def test_a_step_equals_that_of_one_process(shape: str, layout: str, ranks: Pool) -> None:
    assert_same(on_ranks(Step(shape, layout), ranks), reference(Step(shape)))


@pytest.mark.parametrize(
    "bias", [[5.0, 5.0, 0.0, -50.0], [5.0, 5.0, -50.0, -50.0]], ids=["an expert", "a rank"]
)
@pytest.mark.parametrize(
    "layout", ["shard=2,expert=2", pytest.param("shard=2,tensor=2,expert=2", marks=pytest.mark.slow)]
)
def test_experts_that_get_no_token_have_no_gradient_and_stop_nobody(
    layout: str, bias: list[float], ranks: Pool
) -> None:
    step = Step("glm", layout, bias=bias)
    found, wanted = on_ranks(step, ranks), one_process(replace(step, layout="replicate=1"))
    assert_same(found, wanted)
    idle = found.gradients["model.layers.2.mlp.experts.3.up_proj.weight"]
    assert not idle.any() and wanted.gradients["model.layers.2.mlp.experts.1.up_proj.weight"].any()


@pytest.mark.parametrize(
    "layout", ["tensor=2", "context=2", "shard=2,expert=2", "context=2,tensor=2", "pipeline=2"]
)
def test_the_balance_of_experts_has_its_gradient_on_every_axis(layout: str, ranks: Pool) -> None:
    """With weight 20 it outweighs the loss, so that nothing of it is hidden by rounding."""
    step = Step("moe", layout, balance=20.0)
    found, wanted = on_ranks(step, ranks), one_process(replace(step, layout="replicate=1"))
    assert_same(found, wanted)
    name = "model.layers.1.mlp.gate.weight"
    without = one_process(Step("moe", balance=0.0))
    share = wanted.gradients[name] * (wanted.norm / CLIP) - without.gradients[name] * (without.norm / CLIP)
    assert share.norm() > without.gradients[name].norm() * (without.norm / CLIP), (
        "balance is no part of this test"
    )


@pytest.mark.parametrize(
    ("layout", "rows"), [("shard=3", 2), ("shard=2,pipeline=2", 3), ("replicate=2,context=2", 1)]
)
def test_a_rank_without_rows_takes_part(layout: str, rows: int, ranks: Pool) -> None:
    step = Step("dense", layout, rows=rows)
    assert_same(on_ranks(step, ranks), one_process(replace(step, layout="replicate=1")))


def test_documents_end_in_the_middle_of_what_a_context_rank_has() -> None:
    """Of the rows above: every row has several documents, and few borders lie between pieces."""
    rows = TinyRows(20, SHAPES["dense"])
    begins = [set(rows.row(number).starts_T.tolist()) for number in range(8)]
    assert all(len(each) > 1 for each in begins)
    for pieces in (2, 4, 8):
        assert any(begin % (CONTEXT // pieces) for each in begins for begin in each)


@pytest.mark.parametrize("recompute", ["selective", "full"])
@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ("dense", "shard=2,tensor=2"),
        ("dense", "shard=2,pipeline=2,schedule=zbv"),
        ("moe", "context=2,tensor=2"),
        ("glm", "tensor=2"),  # a shared expert, whose result is a part of a sum
        ("glm", "context=2,expert=2"),  # where it must not count chosen experts again
    ],
)
def test_recomputing_changes_nothing_on_ranks(shape: str, layout: str, recompute: str, ranks: Pool) -> None:
    assert_same(on_ranks(Step(shape, layout, recompute=recompute), ranks), reference(Step(shape)))


@pytest.mark.parametrize(
    "layout", ["shard=2", "replicate=2", "shard=2,tensor=2", "context=2,shard=2", "pipeline=2"]
)
def test_bf16_is_one_process_but_for_its_rounding(layout: str, ranks: Pool) -> None:
    """Ranks that split rows only compute the very same; others round partial sums once more."""
    step = Step("dense", layout, dtype="bfloat16")
    found, wanted = on_ranks(step, ranks), reference(Step("dense", dtype="bfloat16"))
    exact = layout in ("shard=2", "replicate=2", "pipeline=2")
    assert found.loss == pytest.approx(wanted.loss, rel=1e-6 if exact else 2e-3)
    assert found.norm == pytest.approx(wanted.norm, rel=1e-5 if exact else 2e-2)
