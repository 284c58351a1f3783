"""The step-time model: its parts, its limits, and what must be faster than what."""

import time
from dataclasses import fields, replace
from itertools import product

import numpy as np
import pytest

from bessemer.formulas.flops import train_flops_per_token
from bessemer.formulas.layout import SCHEDULES
from bessemer.formulas.shape import ModelShape
from bessemer.hardware import lookup
from bessemer.planner.cost.candidates import PRECISIONS, RECOMPUTE, Candidates
from bessemer.planner.cost.profile import profile_of
from bessemer.planner.cost.time import StepTimes, step_times
from bessemer.planner.machine.cluster import Cluster, catalogue_cluster

SMALL = ModelShape("llama", 32, 4096, 32, 8, 128, 14336, 128256, 8192, False, False)
LARGE = replace(SMALL, layers=80, hidden=8192, heads=64, ffn=28672)
EXPERTS = replace(SMALL, hidden=2048, experts=128, experts_per_token=8, expert_ffn=768, ffn=6144)
ONE = {
    "replicate": 1, "shard": 1, "tensor": 1, "pipeline": 1, "context": 1, "expert": 1, "interleave": 1,
    "schedule": 0, "micro_batch": 1, "micro_batches": 8, "recompute": 0, "precision": 1, "zero": 1,
}  # fmt: skip


def times(shape: ModelShape, stack: str = "megatron", device: str = "H100", **words: int) -> StepTimes:
    layout = Candidates.of([ONE | words])
    return step_times(shape, 8192, layout, cluster(device, int(layout.world[0])), stack)


def cluster(device: str, devices: int) -> Cluster:
    return catalogue_cluster(lookup(device), devices)


def seconds(*arguments: object, **words: object) -> float:
    return float(times(*arguments, **words).total_s[0])  # type: ignore[arg-type]


def test_parts_add_up_to_the_step_and_none_is_negative():
    for words in ({"shard": 64, "zero": 3}, {"tensor": 4, "pipeline": 4, "context": 2, "shard": 2}):
        found = times(LARGE, **words)
        parts = found.parts(0)
        assert sum(parts.values()) == pytest.approx(float(found.total_s[0]), rel=1e-12)
        assert min(parts.values()) >= 0.0


@pytest.mark.parametrize("stack", ["bessemer", "fsdp", "megatron"])
def test_what_hides_behind_compute_is_never_negative_however_a_pipeline_is_sharded(stack: str):
    """Weights that a pipeline gathers for each micro-batch (zero 3) leave no gradients for its end."""
    words = {"pipeline": (1, 2, 32), "shard": (8, 64), "zero": (0, 1, 2, 3), "micro_batches": (1, 4)}
    rows = [ONE | dict(zip(words, each, strict=True)) for each in product(*words.values())]
    for row_tokens in (128, 8192):  # short rows have little to hide behind
        found = step_times(LARGE, row_tokens, Candidates.of(rows), cluster("H100", 2048), stack)
        assert found.hidden_s.min() >= 0.0 and found.data_s.min() >= 0.0


def test_tied_embedding_of_a_pipeline_travels_once_a_step_between_its_ends():
    """Ideal links: 2 bytes of gradients there and back, of which each rank sends half."""
    untied, tied = SMALL, replace(SMALL, tie_embeddings=True)
    for schedule, apart in (("1f1b", True), ("zbv", False)):  # whose ends are on one rank
        words = {"pipeline": 4, "schedule": SCHEDULES.index(schedule), "micro_batches": 16}
        more_s = [float(times(shape, "bessemer", **words).data_s[0]) for shape in (tied, untied)]
        rate = profile_of("bessemer", cluster("H100", 4), "bf16")
        sent = rate.gradient_bytes * tied.vocab * tied.hidden
        expected = sent / (rate.link_gb_per_s * 1e9) if apart else 0.0
        assert more_s[0] - more_s[1] == pytest.approx(expected, abs=1e-4)


def test_no_step_is_faster_than_its_flops_at_the_peak():
    for device in ("A100-SXM4-80GB", "H100", "B200", "GB300-NVL72", "TPUv5p", "MI300X"):
        tokens = 8 * 8192
        floor = train_flops_per_token(SMALL, 8192) * tokens / (lookup(device).bf16_dense_tflops * 1e12)
        assert seconds(SMALL, device=device) > floor


def test_a_thousand_layouts_cost_the_same_together_as_alone():
    rng = np.random.default_rng(0)
    rows = [
        ONE
        | {
            axis: int(2 ** rng.integers(0, 4))
            for axis in ("replicate", "shard", "tensor", "pipeline", "context")
        }
        | {"expert": int(2 ** rng.integers(0, 3)), "micro_batches": int(rng.integers(1, 64))}
        | {
            "recompute": int(rng.integers(0, 3)),
            "precision": int(rng.choice([1, 3, 4])),
            "zero": int(rng.integers(0, 4)),
        }
        for _ in range(1000)
    ]
    together = step_times(EXPERTS, 4096, Candidates.of(rows), cluster("H100", 4096), "bessemer")
    for number in range(0, 1000, 97):
        alone = step_times(EXPERTS, 4096, Candidates.of([rows[number]]), cluster("H100", 4096), "bessemer")
        for field in fields(StepTimes):
            assert getattr(together, field.name)[number] == pytest.approx(
                getattr(alone, field.name)[0], rel=1e-12
            )


def test_a_hundred_thousand_layouts_are_costed_in_two_seconds():
    layouts = Candidates.of([ONE]).take(np.zeros(100_000, np.int64))
    begin = time.perf_counter()
    step_times(SMALL, 8192, layouts, cluster("H100", 1), "bessemer")
    assert time.perf_counter() - begin < 2.0  # 0.2 s on an idle core


def test_full_recomputation_costs_about_a_third_of_compute():
    none, full = (
        times(SMALL, recompute=RECOMPUTE.index("none")),
        times(SMALL, recompute=RECOMPUTE.index("full")),
    )
    assert 0.25 < full.recompute_s[0] / none.compute_s[0] < 0.36


def test_eight_bit_is_faster_but_not_twice_as_fast_as_attention_stays_in_sixteen():
    half, eight = times(LARGE), times(LARGE, precision=PRECISIONS.index("fp8"))
    assert 1.1 < half.total_s[0] / eight.total_s[0] < 1.9
    assert eight.attention_s[0] == half.attention_s[0]


def test_tensor_ranks_beyond_a_node_pay_for_a_slow_network_and_not_in_a_rack_of_one_domain():
    layout = Candidates.of([ONE | {"tensor": 16}])
    slow = replace(cluster("H100", 16), network_gb_per_s=6.25)
    beyond = step_times(LARGE, 8192, layout, slow, "megatron").tensor_s[0]
    assert beyond > 3.0 * times(LARGE, tensor=8).tensor_s[0]
    rack = times(LARGE, tensor=16, device="GB200-NVL72").tensor_s[0]
    assert rack < 0.7 * times(LARGE, tensor=16).tensor_s[0]


def test_interleaving_shrinks_the_bubble_by_its_stages():
    words = {"pipeline": 8, "micro_batches": 16}
    plain = times(LARGE, **words).bubble_s[0]
    finer = times(LARGE, interleave=5, schedule=SCHEDULES.index("interleaved"), **words).bubble_s[0]
    assert finer == pytest.approx(plain / 5.0, rel=1e-9)


def test_more_micro_batches_make_the_bubble_a_smaller_share():
    shares = [times(LARGE, pipeline=8, micro_batches=number).parts(0) for number in (8, 64)]
    few, many = (parts["bubble_s"] / sum(parts.values()) for parts in shares)
    assert few > 0.3 > 0.1 > many


def test_sharded_weights_hide_behind_long_micro_batches_and_show_with_short_rows():
    layout = Candidates.of([ONE | {"shard": 64, "zero": 3, "micro_batches": 1}])
    long, short = (
        step_times(LARGE, context, layout, cluster("H100", 64), "fsdp").parts(0) for context in (16384, 512)
    )
    assert long["data_s"] / sum(long.values()) < 0.05
    assert short["data_s"] / sum(short.values()) > 0.3


def test_a_second_axis_of_replicas_adds_a_reduction_but_shortens_the_gathers():
    one = times(LARGE, "fsdp", shard=256, zero=3)
    two = times(LARGE, "fsdp", shard=8, replicate=32, zero=3)
    assert two.hidden_s[0] + two.data_s[0] < one.hidden_s[0] + one.data_s[0]


def test_expert_ranks_send_tokens_and_hold_fewer_experts():
    alone, spread = (
        times(EXPERTS, "bessemer", shard=8, zero=2),
        times(EXPERTS, "bessemer", shard=8, zero=2, expert=8),
    )
    assert alone.expert_s[0] == 0.0 < spread.expert_s[0]
    across = times(EXPERTS, "bessemer", shard=64, zero=2, expert=64)
    assert across.expert_s[0] > 1.5 * spread.expert_s[0]


def test_experts_that_read_a_latent_send_as_much_less():
    spread = {"shard": 64, "zero": 2, "expert": 64}
    latent = replace(EXPERTS, expert_hidden=EXPERTS.hidden // 4)
    less = times(latent, "bessemer", **spread).expert_s[0] / times(EXPERTS, "bessemer", **spread).expert_s[0]
    assert 0.25 < less < 0.3  # latencies stay


def test_routing_that_is_limited_to_groups_reaches_fewer_nodes():
    spread = {"shard": 64, "zero": 2, "expert": 64}
    found = [
        times(replace(EXPERTS, expert_groups=groups), "bessemer", **spread).expert_s[0]
        for groups in (2, 4, 8, 0)
    ]
    assert found[0] < found[1] < found[2] == found[3]  # eight nodes are all of them
    near = {"shard": 8, "zero": 2, "expert": 8}
    alone = [
        times(replace(EXPERTS, expert_groups=groups), "bessemer", **near).expert_s[0] for groups in (2, 0)
    ]
    assert alone[0] == alone[1]


def test_two_way_pipeline_hides_exchanges_and_pays_with_the_processors_that_send():
    layout = {"shard": 16, "zero": 1, "expert": 16, "pipeline": 4, "micro_batches": 64}
    plain = times(EXPERTS, "megatron", **layout)
    two_way = times(EXPERTS, "megatron", **layout, schedule=SCHEDULES.index("dualpipev"), interleave=2)
    assert two_way.hidden_s[0] > plain.hidden_s[0]
    # 20 of 132 processors send: what the others take longer shows, and a tenth of the exchanges.
    shown = two_way.expert_s[0] - 0.1 / 0.9 * two_way.hidden_s[0]
    assert 0.15 < shown / two_way.compute_s[0] < 20 / 112
    alone = {**layout, "expert": 1}
    assert times(EXPERTS, **alone, schedule=SCHEDULES.index("dualpipev"), interleave=2).expert_s[0] == 0.0


def test_a_zero_bubble_schedule_waits_less_than_1f1b():
    plain = times(LARGE, "bessemer", pipeline=8, micro_batches=16)
    zero = times(
        LARGE, "bessemer", pipeline=8, micro_batches=16, schedule=SCHEDULES.index("zbv"), interleave=2
    )
    assert zero.bubble_s[0] < 0.4 * plain.bubble_s[0]


def test_a_measured_profile_takes_the_place_of_the_stacks():
    layout = Candidates.of([ONE])
    measured = replace(profile_of("bessemer", cluster("H100", 1), "bf16"), matmul_tflops=1.0, head_tflops=1.0)
    slow = step_times(SMALL, 8192, layout, cluster("H100", 1), "bessemer", measured)
    assert slow.matmul_s[0] > 300 * times(SMALL, "bessemer").matmul_s[0]


def test_the_band_widens_beyond_what_was_validated():
    near, far = times(SMALL, "megatron", shard=1024), times(SMALL, "megatron", shard=65536)
    assert far.high[0] > near.high[0] and far.low[0] > near.low[0]
