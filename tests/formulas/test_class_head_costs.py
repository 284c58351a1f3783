"""A head of classes is small: what the formulas of a rank's weights and of FLOPs make of it."""

from dataclasses import replace

import pytest

from bessemer.formulas.flops import hardware_flops_per_token, train_flops_per_token
from bessemer.formulas.layout import Layout, layers_of_stages
from bessemer.formulas.memory.parts import Workload, head_gradient_bytes, loss_bytes
from bessemer.formulas.memory.rank import rank_memory
from bessemer.formulas.memory.rank_weights import held_weights, kept_copies
from bessemer.formulas.shape import Adapter, ModelShape
from bessemer.formulas.tensors import count_params
from bessemer.formulas.traffic.step import step_traffic
from bessemer.measure.rehearse import rehearse

WORDS = ModelShape("llama", 4, 64, 4, 2, 16, 160, 4096, 64, tie_embeddings=False, qk_norm=False)
CLASSES = replace(WORDS, labels=3)
ADAPTED = replace(CLASSES, adapter=Adapter(4, 8.0, ("q_proj", "down_proj")))
WORK = Workload(4 * 64, "bf16", "none", compiled=False, micro_batches=1)


def test_ranks_of_a_pipeline_hold_together_what_the_model_has() -> None:
    held = [held_weights(CLASSES, Layout(pipeline=2), place) for place in range(2)]
    assert sum(each.whole for each in held) == count_params(CLASSES)
    assert held[1].root == held[1].ends == 3 * 64 + 64 and held[0].root == 0


def test_the_head_is_whole_on_every_rank_of_the_tensor_axis() -> None:
    held = held_weights(CLASSES, Layout(tensor=2), 0)
    assert held.ends == 4096 // 2 * 64 + 3 * 64 + 64


@pytest.mark.parametrize("pipeline", [1, 2])
def test_beside_adapters_the_head_learns_and_is_no_frozen_weight(pipeline: int) -> None:
    layout = Layout(pipeline=pipeline, shard=2)
    held = [held_weights(ADAPTED, layout, place) for place in range(pipeline)]
    assert sum(each.learned_whole for each in held) == count_params(ADAPTED)
    frozen = count_params(replace(CLASSES, adapter=None)) - 3 * 64
    assert sum(each.whole for each in held) == frozen


def test_the_last_stage_of_a_pipeline_has_as_many_layers_as_the_others() -> None:
    """As a head of words it would weigh as much as six layers."""
    assert list(map(len, layers_of_stages(CLASSES, Layout(pipeline=2)))) == [2, 2]
    assert list(map(len, layers_of_stages(WORDS, Layout(pipeline=2)))) == [3, 1]


def test_copies_for_the_compute_type_are_those_of_the_blocks() -> None:
    layout = Layout(replicate=2)
    assert kept_copies(CLASSES, WORK, layout, 4, 0) == kept_copies(WORDS, WORK, layout, 4, 0) > 0


def test_recomputation_runs_each_block_again_and_no_head() -> None:
    again = [
        hardware_flops_per_token(shape, 64, "full") - train_flops_per_token(shape, 64)
        for shape in (WORDS, CLASSES)
    ]
    assert again[0] == again[1] > 0


@pytest.mark.parametrize("shape", [CLASSES, ADAPTED], ids=["classes", "adapted"])
def test_the_loss_of_classes_has_no_logits_of_words(shape: ModelShape) -> None:
    head = 3 * 64
    assert head_gradient_bytes(shape) == 4 * head
    assert loss_bytes(shape, WORK) == 4 * head + 17 * WORK.tokens * 3 + 2 * WORK.tokens * 64
    assert loss_bytes(WORDS, WORK) > 100 * loss_bytes(shape, WORK)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        pytest.param(CLASSES, Layout(shard=2, tensor=2), marks=pytest.mark.slow),
        (CLASSES, Layout(pipeline=2, replicate=2)),
        (ADAPTED, Layout(tensor=2, pipeline=2)),
        pytest.param(ADAPTED, Layout(shard=4), marks=pytest.mark.slow),
        pytest.param(CLASSES, Layout(shard=2, pipeline=2, schedule="zbv"), marks=pytest.mark.slow),
        pytest.param(CLASSES, Layout(context=2, tensor=2), marks=pytest.mark.slow),
    ],
)
def test_exchanges_and_memory_of_a_classifier_are_those_of_a_rehearsed_rank(
    shape: ModelShape, layout: Layout
) -> None:
    shape = replace(shape, layers=8, hidden=256, head_dim=64, ffn=704, context=256)
    work, rank = replace(WORK, tokens=512, micro_batches=2), layout.world - 1
    found = rehearse(shape, work, layout, rank, context=256)
    assert step_traffic(shape, work, layout, rank, context=256) == found.exchanges
    memory = rank_memory(shape, work, layout, layout.pipeline - 1)
    assert memory.total - memory.base == pytest.approx(found.peak_bytes, rel=0.06)
