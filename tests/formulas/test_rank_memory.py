"""Memory of a rank: against one process, and against what each axis promises to divide."""

from dataclasses import replace

import pytest

from bessemer.formulas.layout import ONE_PROCESS, Layout, layers_of_stages
from bessemer.formulas.memory.parts import (
    Memory,
    Workload,
    activation_bytes,
    back_bytes_per_token,
    device_memory,
    ends_per_token,
)
from bessemer.formulas.memory.rank import layout_memory, rank_activation_bytes, rank_memory
from bessemer.formulas.parameters import total_params
from bessemer.formulas.shape import ModelShape

SHAPE = ModelShape("llama", 8, 64, 4, 4, 16, 160, 256, 64, tie_embeddings=False, qk_norm=False)
ROUTED = replace(
    SHAPE, family="qwen3-moe", experts=8, experts_per_token=2, expert_ffn=64, shared_ffn=0, dense_layers=1
)
WORK = Workload(4 * 64, "fp32", "none", compiled=False, micro_batches=16)


def memory(layout: Layout, rank: int = 0, shape: ModelShape = SHAPE, work: Workload = WORK) -> Memory:
    return rank_memory(shape, work, layout, rank)


@pytest.mark.parametrize("shape", [SHAPE, ROUTED, replace(SHAPE, tie_embeddings=True)])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_one_process_is_predicted_as_before(shape: ModelShape, recompute: str) -> None:
    work = replace(WORK, recompute=recompute)
    assert layout_memory(shape, work, ONE_PROCESS) == [device_memory(shape, work)]


@pytest.mark.parametrize("shape", [SHAPE, ROUTED])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_replicas_hold_what_they_would_hold_without_each_other(shape: ModelShape, dtype: str) -> None:
    work = replace(WORK, dtype=dtype)
    part, alone = memory(Layout(replicate=2), shape=shape, work=work), device_memory(shape, work)
    for name in ("weights", "gradients", "optimizer", "activations", "loss", "gathered"):
        assert getattr(part, name) == getattr(alone, name), name
    split = memory(Layout(replicate=2, tensor=2), shape=shape, work=work)
    assert split == memory(Layout(tensor=2), shape=shape, work=work)


@pytest.mark.parametrize(("dtype", "size"), [("fp32", 4), ("bf16", 2)])
def test_replicas_whose_experts_lie_apart_hold_a_gathered_copy_of_the_rest(dtype: str, size: int) -> None:
    part = memory(Layout(replicate=2, expert=2), shape=ROUTED, work=replace(WORK, dtype=dtype))
    ends, experts = 2 * 256 * 64 + 64, 7 * 8 * 3 * 64 * 64
    assert part.gathered == 4 * ends + size * (total_params(ROUTED) - ends - experts)


@pytest.mark.parametrize("shape", [SHAPE, ROUTED])
@pytest.mark.parametrize(
    "layout", [Layout(shard=4), Layout(context=4), Layout(shard=2, context=2, replicate=3)]
)
def test_shard_and_context_divide_weights_gradients_and_moments(shape: ModelShape, layout: Layout) -> None:
    part = memory(layout, shape=shape)
    assert part.weights == part.gradients == part.optimizer / 2
    assert part.weights == pytest.approx(4 * total_params(shape) / 4, abs=8)


SMALL_HEAD = replace(SHAPE, vocab=16)  # whose peak is in the block that is taken back, not in the loss


@pytest.mark.parametrize(("dtype", "two_blocks"), [("fp32", 12), ("bf16", 8)])
def test_blocks_are_gathered_in_the_compute_type_and_the_head_in_fp32(dtype: str, two_blocks: int) -> None:
    work = replace(WORK, dtype=dtype)
    head, block = 16 * 64 + 64, (total_params(SMALL_HEAD) - 2 * 16 * 64 - 64) // 8
    gathered = memory(Layout(shard=4), shape=SMALL_HEAD, work=work).gathered
    assert gathered == 4 * head + two_blocks * block
    kept = memory(Layout(shard=4, reshard=False), shape=SMALL_HEAD, work=work).gathered
    size = 4 if dtype == "fp32" else 2
    assert kept == 4 * (head + 16 * 64) + size * 8 * block + (size + 4) * block
    # In the loss no block is there whole.
    large = replace(SHAPE, vocab=4096)
    assert memory(Layout(shard=4), shape=large, work=work).gathered == 4 * (4096 * 64 + 64)


def test_sharded_pipeline_holds_its_stage_whole_during_a_step() -> None:
    for rank in range(2):
        part = memory(Layout(shard=2, pipeline=2), rank)
        # Weights, and the half of the gradients that is not its own.
        assert part.gathered == 2 * part.weights + part.gradients
    assert memory(Layout(pipeline=2)).gathered == 0


def test_tensor_divides_matrices_and_leaves_norms() -> None:
    norms = 8 * 2 * 64 + 64
    part = memory(Layout(tensor=4))
    assert part.weights == 4 * ((total_params(SHAPE) - norms) // 4 + norms)
    inner = memory(Layout(tensor=4), shape=SMALL_HEAD)
    whole = device_memory(SMALL_HEAD, WORK)
    assert inner.working == WORK.tokens * back_bytes_per_token(SMALL_HEAD, 4, routed=False) / 4
    # What allocators keep beside it is in the base.
    assert inner.base + inner.working == pytest.approx(whole.base + whole.working / 4, abs=1)
    uneven = memory(Layout(tensor=3), shape=replace(SHAPE, heads=3, kv_heads=3))
    assert uneven.weights > 4 * total_params(replace(SHAPE, heads=3, kv_heads=3)) / 3


@pytest.mark.parametrize("layout", [Layout(tensor=2), Layout(context=2), Layout(tensor=2, context=2)])
def test_activations_are_divided_but_for_what_others_sent(layout: Layout) -> None:
    whole, part = activation_bytes(SHAPE, WORK), memory(layout).activations
    parts = layout.tensor * layout.context
    assert whole / parts <= part < whole / parts * 1.35
    work = replace(WORK, recompute="full")  # which keeps nothing of that
    ends = ends_per_token(SHAPE)
    assert ends and memory(layout, work=work).activations == pytest.approx(
        activation_bytes(SHAPE, work) / parts, abs=1
    )


def test_experts_lie_on_the_expert_axis_and_the_rest() -> None:
    experts = 7 * 8 * 3 * 64 * 64
    ordinary = total_params(ROUTED) - experts
    for layout, rest in [
        (Layout(replicate=4, expert=4), 1), (Layout(replicate=2, shard=2, expert=2), 1),
        (Layout(shard=4, expert=2), 2), (Layout(shard=4, replicate=2, expert=4), 1),
        (Layout(shard=2, replicate=4, expert=4), 2),
    ]:  # fmt: skip
        expected = ordinary / layout.shard + experts / layout.expert / rest
        assert memory(layout, shape=ROUTED).weights == pytest.approx(4 * expected, abs=8), str(layout)


def test_pipeline_ranks_hold_their_layers_and_ends_and_together_the_model() -> None:
    layout = Layout(pipeline=4)
    parts = layout_memory(SHAPE, WORK, layout)
    assert sum(part.weights for part in parts) == 4 * total_params(SHAPE)
    assert [part.loss > 0 for part in parts] == [False, False, False, True]
    tied = layout_memory(replace(SHAPE, tie_embeddings=True), WORK, layout)
    assert sum(part.weights for part in tied) == 4 * total_params(SHAPE)  # the last has a copy


@pytest.mark.parametrize("layout", [Layout(shard=4), Layout(pipeline=4), Layout(shard=2, tensor=2)], ids=str)
def test_ranks_hold_a_model_without_gates_whole_with_its_positions(layout: Layout) -> None:
    shape = replace(SHAPE, family="gpt2", gated=False, positions=64, norm="layer")
    parts = layout_memory(shape, WORK, layout)
    norms = (2 * 8 + 1) * 64 + 64 * 64  # and positions: whole on each tensor rank
    whole = total_params(shape) + (layout.tensor - 1) * norms
    held = sum(part.weights for part in parts) * layout.world / layout.pipeline
    assert held == pytest.approx(4 * whole, abs=4 * layout.world)


def test_v_shaped_pipeline_has_both_ends_on_its_first_rank() -> None:
    first, second = layout_memory(SHAPE, WORK, Layout(pipeline=2, schedule="zbv"))
    assert first.loss > 0 and second.loss == 0
    assert first.weights + second.weights == 4 * total_params(SHAPE)
    # Tied ends are a table in each of two stages, as they are on different ranks; one of them is saved.
    shape, work = replace(SHAPE, tie_embeddings=True), replace(WORK, saves_async=True)
    tied = layout_memory(shape, work, Layout(pipeline=2, schedule="zbv"))
    assert sum(part.weights for part in tied) == 4 * total_params(SHAPE)
    assert sum(part.saving for part in tied) == 12 * total_params(shape)


@pytest.mark.parametrize(
    ("micro_batches", "in_flight"), [(16, [4, 3, 2, 1]), (2, [2, 2, 2, 1]), (1, [1, 1, 1, 1])]
)
def test_first_ranks_of_1f1b_hold_as_many_micro_batches_as_there_are_stages_behind_them(
    micro_batches: int, in_flight: list[int]
) -> None:
    layout = Layout(pipeline=4, split=(2, 2, 2, 2))
    work = replace(WORK, micro_batches=micro_batches)
    layer = (activation_bytes(SHAPE, work) - work.tokens * ends_per_token(SHAPE)) / 8
    for rank, count in enumerate(in_flight):
        end = work.tokens * (ends_per_token(SHAPE) if rank == 3 else 4 * 64)
        end += work.tokens * 2 * 4 * 16  # cosines and sines of a head
        assert memory(layout, rank, work=work).activations == count * (2 * layer + end)


def test_interleaving_holds_more_and_every_schedule_holds_what_its_order_says() -> None:
    plain = rank_activation_bytes(SHAPE, WORK, Layout(pipeline=4))
    turns = Layout(pipeline=4, schedule="interleaved", interleave=2)
    assert 1.2 * plain < rank_activation_bytes(SHAPE, WORK, turns) < 1.6 * plain
    layout, work = Layout(pipeline=4, schedule="zbv"), replace(WORK, micro_batches=2)
    layer = (activation_bytes(SHAPE, work) - work.tokens * ends_per_token(SHAPE)) / 8
    ends = work.tokens * (ends_per_token(SHAPE) + 4 * 64 + 2 * 2 * 4 * 16)
    assert memory(layout, work=work).activations == 2 * (2 * layer + ends)  # a layer on each of two stages


@pytest.mark.parametrize("layout", [Layout(pipeline=2), Layout(shard=2), Layout(shard=2, tensor=2)])
@pytest.mark.parametrize(("dtype", "size"), [("fp32", 4), ("bf16", 2)])
def test_linear_layers_have_one_copy_at_a_time(layout: Layout, dtype: str, size: int) -> None:
    part = memory(layout, shape=SMALL_HEAD, work=replace(WORK, dtype=dtype))
    assert part.casts == size * 2 * 160 * 64 / layout.tensor
    assert memory(Layout(tensor=2), work=replace(WORK, dtype="bf16")).casts > 8 * part.casts / 4


def test_copies_of_experts_are_held_for_each_micro_batch_unless_they_are_gathered_as_such() -> None:
    work = replace(WORK, dtype="bf16")
    first, last = (memory(Layout(pipeline=2, split=(4, 4)), rank, ROUTED, work).casts for rank in range(2))
    experts = 2 * 8 * 3 * 64 * 64
    head = 2 * 256 * 64  # cast in the loss
    one = 2 * 2 * 160 * 64  # of a linear layer, while it is used
    assert (first, last - head) == (2 * 3 * experts + one, 4 * experts)  # of their routed layers
    assert memory(Layout(shard=4, expert=2), shape=ROUTED, work=work).casts < experts
    # Every expert on one rank alone: nothing is gathered, so they are cast where they are used.
    assert memory(Layout(shard=2, expert=2), shape=ROUTED, work=work).casts == 7 * experts / 2 + head


def test_rank_of_a_cpu_that_saves_meanwhile_holds_a_copy_of_its_part() -> None:
    work = replace(WORK, saves_async=True)
    assert device_memory(SHAPE, work).saving == 12 * total_params(SHAPE)
    assert device_memory(SHAPE, WORK).saving == memory(Layout(shard=2)).saving == 0
    assert memory(Layout(shard=4), work=work).saving == pytest.approx(3 * total_params(SHAPE), abs=12)
    for shape in (SHAPE, replace(SHAPE, tie_embeddings=True)):  # whose last stage has a copy
        parts = layout_memory(shape, work, Layout(pipeline=4))
        assert sum(part.saving for part in parts) == 12 * total_params(shape)


def test_recomputed_layers_are_the_first_of_the_model_on_whichever_rank() -> None:
    layout = Layout(pipeline=2, split=(4, 4))
    table = layers_of_stages(SHAPE, layout)
    assert [replace(WORK, recompute="full", recompute_layers=5).recomputed_of(stage) for stage in table] == [
        4,
        1,
    ]

    def activations(layers: int, rank: int) -> int:
        return memory(layout, rank, work=replace(WORK, recompute="full", recompute_layers=layers)).activations

    assert activations(4, 0) == memory(layout, 0, work=replace(WORK, recompute="full")).activations
    assert activations(4, 1) == memory(layout, 1).activations > activations(8, 1)
