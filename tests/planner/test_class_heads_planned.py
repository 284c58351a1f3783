"""A head of classes in what the planner counts: by the tensor table, on every rank."""

from dataclasses import replace

import pytest

from bessemer.formulas.layout import Layout, layers_of_stages
from bessemer.formulas.memory.parts import Workload
from bessemer.formulas.shape import CLASS_HEAD, ModelShape
from bessemer.formulas.tensors import tensor_table
from bessemer.planner.calibrated.rank_parts import Rank, local_params
from bessemer.planner.cost.work import dims_of

WORDS = ModelShape("llama", 4, 64, 4, 2, 16, 160, 4096, 64, tie_embeddings=False, qk_norm=False)
CLASSES = replace(WORDS, labels=3)
TIED = replace(WORDS, tie_embeddings=True)


def matrices_of(shape: ModelShape, layout: Layout, place: int) -> float:
    """Elements of the matrices of one rank, by the table."""
    stages = layout.stages_of(place)
    layers = [f".layers.{layer}." for stage in stages for layer in layers_of_stages(shape, layout)[stage]]
    found = 0.0
    for spec in tensor_table(shape):
        ends = (0 in stages) if "embed" in spec.name else (layout.num_stages - 1 in stages)
        here = any(layer in spec.name for layer in layers) if ".layers." in spec.name else ends
        if here and len(spec.shape) == 2:
            found += spec.numel / (1 if spec.tensor_dim is None else layout.tensor)
    return found / (layout.shard * layout.context)


@pytest.mark.parametrize("shape", [WORDS, CLASSES, TIED], ids=["words", "classes", "tied"])
@pytest.mark.parametrize(
    "layout", [Layout(), Layout(tensor=2), Layout(pipeline=2), Layout(shard=2, tensor=2, pipeline=2)], ids=str
)
def test_what_the_optimizer_of_a_rank_has_is_in_the_tensor_table(shape: ModelShape, layout: Layout) -> None:
    work = Workload(4 * 64, "bf16", "none", compiled=False)
    for place in range(layout.pipeline):
        rank = Rank(shape, layout, work, place, 64)
        assert local_params(rank) == matrices_of(shape, layout, place)


def test_the_work_of_a_head_is_that_of_its_rows() -> None:
    (head,) = (spec.numel for spec in tensor_table(CLASSES) if spec.name == CLASS_HEAD)
    assert dims_of(CLASSES, 64).head_weights == head
    assert dims_of(CLASSES, 64).table_weights == dims_of(WORDS, 64).table_weights == 4096 * 64
