"""What the cost model sends, in bytes, against the exchanges of our trainer (formulas/traffic/step.py)."""

from dataclasses import replace

import pytest

from bessemer.formulas.flops import train_flops_per_token
from bessemer.formulas.memory.parts import Workload
from bessemer.formulas.shape import Adapter, ModelShape
from bessemer.formulas.traffic.step import Collective, step_exchanges
from bessemer.hardware import lookup
from bessemer.planner.cost.profile import Profile, profile_of
from bessemer.planner.cost.time import step_times
from bessemer.planner.layout import parse_layout
from bessemer.planner.machine.cluster import Cluster, catalogue_cluster
from bessemer.planner.plan import StagePlan
from bessemer.planner.search.question import Question
from bessemer.planner.search.space import candidate_of
from bessemer.planner.step import stage_step

DENSE = ModelShape("llama", 8, 1024, 16, 8, 64, 2816, 8192, 2048, tie_embeddings=False, qk_norm=False)
ROUTED = replace(DENSE, family="qwen3-moe", experts=16, experts_per_token=4, expert_ffn=512)
PARTS = {
    "fsdp": "data_s", "inner": "data_s", "replicate": "data_s", "outer": "data_s", "tensor": "tensor_s",
    "context": "context_s", "expert": "expert_s", "pipeline": "pipeline_s", "ends": "pipeline_s", "all": "",
}  # fmt: skip


Sent = dict[str, float]  # gigabytes of a rank's step, by part


def cluster(devices: int) -> Cluster:
    """All behind one switch."""
    return replace(catalogue_cluster(lookup("H100"), devices), link_domain=devices)


def bare(dtype: str, devices: int) -> Profile:
    """A gigabyte takes a second, and nothing hides: seconds are gigabytes."""
    none = dict.fromkeys(
        ("link_latency_s", "tensor_overlap", "data_overlap", "contention", "rank_s", "jitter"), 0.0
    )
    found = profile_of("bessemer", cluster(devices), dtype)
    return replace(found, link_gb_per_s=1.0, imbalance=1.0, gather_bytes=2.0, **none)


def counted(shape: ModelShape, text: str, rows: int, dtype: str, recompute: str) -> tuple[Sent, Sent]:
    """(by the cost model, by the trainer's own exchanges)."""
    layout = parse_layout(text)
    asked = Question(shape, shape.context, rows, 1, dtype, cluster(layout.world))
    one = candidate_of(asked, layout, 1, recompute)
    profile = bare(dtype, layout.world)
    costed = step_times(shape, shape.context, one, asked.cluster, "bessemer", profile).parts(0)
    work = Workload(shape.context, dtype, recompute, True, "gpu", micro_batches=int(one.micro_batches[0]))
    sent = dict.fromkeys(PARTS.values(), 0.0)
    for each in step_exchanges(shape, work, layout, context=shape.context):
        found = Collective.of(each.kind, each.payload, each.ranks, each.count)
        sent[PARTS[each.axis]] += found.sent_bytes / 1e9
    return costed, sent


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("tensor=4", "tensor_s"),
        ("context=4", "context_s"),
        ("shard=2,tensor=2,context=2", "context_s"),
        ("shard=4", "data_s"),
        ("shard=4,reshard=no", "data_s"),
        ("replicate=4", "data_s"),
        ("replicate=2,shard=4", "data_s"),
        ("shard=4,expert=4", "expert_s"),
        ("shard=4,tensor=2,expert=4", "expert_s"),
        ("shard=2,context=2,tensor=4,expert=4", "expert_s"),
        ("replicate=4,shard=2,expert=4", "data_s"),
    ],
)
def test_exchanges_are_as_large_as_those_that_the_trainer_makes(text: str, part: str, dtype: str) -> None:
    """Every axis by itself, over eight micro-batches. 12 %: ends, norms and what is padded are not costed."""
    shape = ROUTED if "expert" in text else DENSE
    rows = 8 * parse_layout(text).data
    for recompute in ("none", "full"):
        costed, sent = counted(shape, text, rows, dtype, recompute)
        assert costed[part] == pytest.approx(sent[part], rel=0.12), recompute


def test_gradients_of_a_pipeline_travel_when_nothing_is_left_to_hide_them() -> None:
    """They are released after the last backward pass (parallel/pipeline.py); only the gathers hide."""
    asked = Question(DENSE, 2048, 64, 1, "bf16", cluster(8))
    one = candidate_of(asked, parse_layout("shard=2,pipeline=4"), 1, "none")
    hides = replace(bare("bf16", 8), link_gb_per_s=100.0, data_overlap=1.0)
    found, late = (
        step_times(DENSE, 2048, one, asked.cluster, "bessemer", replace(hides, released=released)).parts(0)
        for released in (1.0, 0.0)
    )
    assert found["data_s"] > late["data_s"] == pytest.approx(0.0, abs=1e-12)


def test_layout_is_costed_in_the_kind_of_context_that_it_names() -> None:
    shape = replace(DENSE, kv_heads=16, context=8192)
    plan = StagePlan(1, 8192, 8, 1, 1e-4, dtype="bf16")
    gathered, exchanged = (
        stage_step(shape, replace(plan, layout=parse_layout(f"context=4{kind}")), cluster(4))
        for kind in ("", ",context_kind=ulysses")
    )
    assert gathered is not None and exchanged is not None
    # Queries, keys, values and outputs of its own tokens, against keys and values of all.
    assert exchanged.parts["context_s"] == pytest.approx(gathered.parts["context_s"] / 2)


def test_frozen_matrices_take_two_products_and_exchange_no_gradients() -> None:
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    frozen = replace(DENSE, adapter=Adapter(16, 32.0, names))
    asked = Question(DENSE, 2048, 64, 1, "bf16", cluster(8))
    one = candidate_of(asked, parse_layout("shard=8"), 1, "none")
    profile = replace(bare("bf16", 8), matmul_traffic=0.0, attention_tflops=1e9, head_tflops=1e9)
    whole, beside = (
        step_times(shape, 2048, one, asked.cluster, "bessemer", profile).parts(0) for shape in (DENSE, frozen)
    )
    head = 8192 * 1024  # which costs nothing here
    flops = [train_flops_per_token(shape, 2048, 0.0) - products * 2 * head for shape, products in
             ((DENSE, 3), (frozen, 2))]  # fmt: skip
    assert beside["matmul_s"] / whole["matmul_s"] == pytest.approx(flops[1] / flops[0], rel=1e-3)
    assert beside["data_s"] == pytest.approx(whole["data_s"] / 2, rel=0.05)  # gathered twice, 2 bytes each
    assert beside["optimizer_s"] < 0.06 * whole["optimizer_s"]
