"""One step of adapters beside a base in 4 or 8 bits on the ranks of a layout equals the step of one process.

Every rank quantises whole rows and cuts its columns out of them, so that all layouts have the same weights:
what differs is the order of sums, as everywhere, also where a rank's columns are no whole blocks.
"""

from functools import cache

import pytest
import torch
from making_layouts import SHAPES, as_rank, layout_of
from making_ranks import Pool
from making_steps import Step, assert_same, on_ranks, one_process

from bessemer.formulas.quantized import row_bytes
from bessemer.model.pieces import local
from bessemer.parallel.apply import build_parts

reference = cache(one_process)

CASES = [
    ("nf4", "replicate=2"),
    ("nf4", "shard=2"),
    ("threes nf4 dora", "tensor=3"),
    ("int8 dora", "tensor=2,pipeline=2,schedule=zbv"),
    ("glm nf4", "shard=2,tensor=2,expert=2"),
]
SLOW = [
    ("nf4", "tensor=2"),
    ("nf4", "context=2"),
    ("nf4", "shard=3"),
    ("nf4", "pipeline=2,schedule=zbv"),
    ("int8 dora", "shard=2"),
    ("nf4", "replicate=2,shard=2,reshard=no"),
    ("nf4", "shard=2,tensor=2,pipeline=2"),
    ("nf4", "context=2,tensor=2"),
]
PARAMS = [pytest.param(*case, id=" ".join(case)) for case in CASES]
PARAMS += [pytest.param(*case, id=" ".join(case), marks=pytest.mark.slow) for case in SLOW]


@pytest.mark.parametrize(("shape", "layout"), PARAMS)
def test_a_step_beside_a_packed_base_equals_that_of_one_process(shape: str, layout: str, ranks: Pool) -> None:
    found, wanted = on_ranks(Step(shape, layout), ranks), reference(Step(shape))
    assert_same(found, wanted)
    assert any(value.any() for value in found.gradients.values()), "nothing to compare"


@pytest.mark.parametrize("layout", ["shard=2", "tensor=2"])
def test_a_packed_base_in_bf16_gives_the_loss_of_one_process(layout: str, ranks: Pool) -> None:
    step = Step("nf4", layout, dtype="bfloat16")
    found, wanted = on_ranks(step, ranks), reference(Step("nf4", dtype="bfloat16"))
    assert found.loss == pytest.approx(wanted.loss, rel=1e-6 if layout == "shard=2" else 1e-3)


@pytest.mark.parametrize("layout", ["shard=2", "tensor=2"])
def test_a_rank_holds_its_part_of_the_packed_bytes(layout: str) -> None:
    shape = SHAPES["nf4"]
    with as_rank(layout_of(layout), 1) as mesh:
        (model,) = build_parts(shape, torch.float32, mesh, context=16)
        held = {name: local(weight) for name, weight in model.named_parameters()}
    gate, down = (held[f"model.layers.0.mlp.{name}_proj.weight"] for name in ("gate", "down"))
    assert gate.dtype == down.dtype == torch.uint8
    assert gate.shape == (shape.ffn // 2, row_bytes("nf4", shape.hidden))
    rows = shape.hidden // 2 if layout == "shard=2" else shape.hidden
    assert down.shape == (rows, row_bytes("nf4", shape.ffn))  # columns 36 to 72 lie in both of its blocks
