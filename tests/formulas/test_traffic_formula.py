"""Exchanges in closed form, against numbers made by hand. Real ranks: tests/parallel/test_traffic.py."""

from dataclasses import replace

import pytest

from bessemer.formulas.layout import ONE_PROCESS, Layout
from bessemer.formulas.memory.parts import Workload
from bessemer.formulas.parameters import total_params
from bessemer.formulas.shape import ModelShape
from bessemer.formulas.traffic.step import Collective, step_exchanges, step_traffic

SHAPE = ModelShape("llama", 4, 64, 4, 4, 16, 160, 256, 32, tie_embeddings=False, qk_norm=False)
WORK = Workload(2 * 32, "fp32", "none", compiled=False, micro_batches=3)


def traffic(layout: Layout, work: Workload = WORK, rank: int = 0) -> dict[str, Collective]:
    return step_traffic(SHAPE, work, layout, rank, context=32)


def test_one_process_sends_nothing() -> None:
    assert traffic(ONE_PROCESS) == {}


@pytest.mark.parametrize(
    ("kind", "sent"),
    [("all_gather", 75), ("reduce_scatter", 75), ("all_to_all", 75), ("all_reduce", 150), ("send", 100)],
)
def test_ring_sends(kind: str, sent: int) -> None:
    assert Collective.of(kind, 100, 4, count=3) == Collective(3, 300, 3 * sent)


def test_zero_3_gathers_blocks_twice_and_the_head_once_a_micro_batch() -> None:
    head = 4 * (256 * 64 + 64)
    whole = 4 * total_params(SHAPE)
    found = traffic(Layout(shard=4))
    assert found["all_gather"].bytes == 3 * (2 * whole - head)
    assert found["reduce_scatter"].bytes == 3 * whole
    assert traffic(Layout(shard=4, reshard=False))["all_gather"].bytes == 3 * whole


def test_replicas_add_gradients_once_a_step_whatever_the_micro_batches() -> None:
    found = traffic(Layout(replicate=4))
    assert found.keys() == {"all_reduce"}
    assert found["all_reduce"].bytes == 4 * total_params(SHAPE) + 4 * 8


def test_weights_travel_in_the_compute_type_and_gradients_in_fp32() -> None:
    fp32, bf16 = traffic(Layout(shard=2)), traffic(Layout(shard=2), replace(WORK, dtype="bf16"))
    assert bf16["reduce_scatter"].bytes == fp32["reduce_scatter"].bytes
    matrices = 4 * (4 * 64 * 64 + 3 * 64 * 160)
    assert fp32["all_gather"].bytes - bf16["all_gather"].bytes == 3 * 2 * 2 * matrices


def test_tensor_exchanges_four_activations_each_way_a_layer() -> None:
    found = traffic(Layout(tensor=2))
    activation = 2 * 32 * 64 * 4
    for kind in ("all_gather", "reduce_scatter"):
        assert found[kind] == Collective.of(kind, activation, 2, count=3 * (4 * 4 + 2))


def test_pipeline_sends_activations_on_and_gradients_back() -> None:
    sends = [traffic(Layout(pipeline=4), rank=rank)["send"].count for rank in range(4)]
    assert sends == [3, 6, 6, 3]
    # The V has its turn on one rank, and both ends on another.
    v_shaped = Layout(pipeline=2, schedule="zbv")
    assert [traffic(v_shaped, rank=rank)["send"].count for rank in range(2)] == [6, 6]


def test_full_recompute_repeats_what_the_forward_pass_exchanged_but_the_last() -> None:
    again = traffic(Layout(tensor=2), replace(WORK, recompute="full"))
    once = traffic(Layout(tensor=2))
    assert again["all_gather"].count - once["all_gather"].count == 3 * 4 * 2
    assert again["reduce_scatter"].count - once["reduce_scatter"].count == 3 * 4 * 1
    partly = traffic(Layout(tensor=2), replace(WORK, recompute="full", recompute_layers=1))
    assert partly["all_gather"].count - once["all_gather"].count == 3 * 1 * 2


def test_exchanges_name_their_axis() -> None:
    layout = Layout(replicate=2, shard=2, tensor=2, pipeline=2, context=2)
    axes = {each.axis for each in step_exchanges(SHAPE, WORK, layout, 0, context=32)}
    assert axes == {"replicate", "fsdp", "tensor", "pipeline", "context", "all"}
