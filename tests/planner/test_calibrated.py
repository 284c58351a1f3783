"""Step times from a calibration: its tables, what a step counts, when the planner takes it. No torch."""

import json
import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from bessemer.formulas.adapters import ATTENTION, adapter_params
from bessemer.formulas.shape import Adapter, ModelShape
from bessemer.hardware import Ceilings, cache_folder
from bessemer.planner.calibrated import step_time as calibrated
from bessemer.planner.calibrated import tables as calibration
from bessemer.planner.calibrated.rank_parts import Rank, local_params, stage_times
from bessemer.planner.calibrated.step_time import _MEDIAN_OVER_BEST, step_seconds, step_time
from bessemer.planner.calibrated.tables import (
    EXCHANGES,
    PARTS,
    Anchor,
    Calibration,
    Speeds,
    Table,
    store_calibration,
    stored_calibration,
)
from bessemer.planner.layout import parse_layout
from bessemer.planner.machine.facts import Facts
from bessemer.planner.plan import Estimate, StagePlan

SHAPE = ModelShape(
    family="llama", layers=4, hidden=256, heads=4, kv_heads=4, head_dim=64, ffn=704, vocab=2048, context=256,
    tie_embeddings=False, qk_norm=False,
)  # fmt: skip
PLAN = StagePlan(steps=10, context=256, batch_rows=16, micro_batch=4, lr=1e-3, dtype="fp32")
FORMULA = Estimate(9.0, 6.0, 12.0, "modelled")


def flat(part: str, seconds_per_unit: float) -> Table:
    """A table that is a power law: linear work in every axis, tokens of attention squared."""
    powers = tuple(power for _, power in PARTS[part])
    axes = tuple((2.0**6, 2.0**9, 2.0**12) for _ in powers)
    seconds = tuple(
        seconds_per_unit * math.prod(size**power for size, power in zip(point, powers, strict=True))
        for point in product(*axes)
    )
    return Table(axes, seconds, powers)


def speeds(processes: int = 1, threads: int = 2, dtype: str = "fp32", rate: float = 1.0) -> Speeds:
    """6 FLOPs of a linear layer at 1 TFLOP/s times `rate`, vector work at 1e9 elements/s."""
    tables = {part: flat(part, 1e-9 / rate) for part in PARTS}
    tables["linear"], tables["attention"] = flat("linear", 6e-12 / rate), flat("attention", 1e-12 / rate)
    tables["embedding"] = flat("embedding", 1e-15 / rate)
    return Speeds(processes, threads, dtype, tables)


def made(**changes: Any) -> Calibration:
    exchange = Table(((2.0**8, 2.0**24),), (1e-4, 1e-2), (1,))
    values = {
        "device": "a CPU", "kind": "cpu", "torch": "2.13.0+cpu", "date": "2026-01-01", "cores": 2,
        "speeds": (speeds(), speeds(threads=1, rate=0.5), speeds(2, 1, rate=0.5)),
        "exchanges": dict.fromkeys(EXCHANGES, exchange),
    }  # fmt: skip
    return Calibration(**{**values, **changes})


def facts(calibration_: Calibration | None = None, threads: int = 2) -> Facts:
    ceilings = Ceilings("a CPU", 2.0, 0.4, 20.0, threads, "2.13.0+cpu", "2026-01-01")
    return Facts("a CPU", "cpu", cores=2, ceilings=ceilings, calibration=calibration_ or made())


def seconds(plan: StagePlan, known: Facts | None = None, shape: ModelShape = SHAPE) -> float:
    found = step_seconds(shape, plan, known or facts())
    assert found is not None
    return found.value


def laid(layout: str, **changes: Any) -> StagePlan:
    return replace(PLAN, layout=parse_layout(layout), **changes)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_a_power_law_is_met_between_and_beyond_the_points() -> None:
    table = flat("attention", 1e-9)
    for sizes in ((64, 512, 4096), (100, 333, 70), (5000, 9000, 8000), (80, 20, 100)):
        heads, tokens, head_dim = sizes
        assert table.at(*sizes) == pytest.approx(1e-9 * heads * tokens**2 * head_dim, rel=1e-9)


def test_small_sizes_take_what_the_smallest_measured_do_where_time_no_longer_falls() -> None:
    table = Table(((100.0, 1000.0, 10000.0),), (1.0, 1.0, 10.0), (1,))
    assert table.at(1) == table.at(300) == pytest.approx(1.0) and table.at(20000) == pytest.approx(20.0)


def here(monkeypatch: pytest.MonkeyPatch, torch: str = "2.13.0+cpu", cores: int = 0) -> None:
    """What is installed, and how many cores there are: those of `made` without other words."""
    monkeypatch.setattr(calibration, "installed_torch", lambda: torch)
    monkeypatch.setattr(calibration, "usable_cores", lambda: cores or made().cores)


@pytest.mark.usefixtures("own_cache")
def test_a_calibration_is_the_same_after_it_was_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch)
    found = made(speeds=(replace(speeds(), anchors=(Anchor(2, 128, 2, 320, 1024, 2, 256, 0.01),)),))
    store_calibration(found)
    assert stored_calibration("a CPU") == found


@pytest.mark.usefixtures("own_cache")
def test_another_torch_or_a_damaged_file_is_no_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    store_calibration(made())
    here(monkeypatch, torch="2.14.0")
    assert stored_calibration("a CPU") is None and stored_calibration("another") is None
    here(monkeypatch, cores=made().cores + 2)
    assert stored_calibration("a CPU") is None
    here(monkeypatch)
    assert stored_calibration("a CPU") is not None
    (path,) = cache_folder().glob("calibration-*.json")
    whole = json.loads(path.read_text())
    for damage in ({"format": 0}, {"speeds": [{}]}, {"exchanges": None}):
        path.write_text(json.dumps({**whole, **damage}))
        assert stored_calibration("a CPU") is None
    path.write_text(path.read_text()[:100])
    assert stored_calibration("a CPU") is None


def test_the_planner_takes_the_calibration_where_there_is_one_and_its_formulas_elsewhere() -> None:
    found = step_time(SHAPE, PLAN, facts(), FORMULA).best
    assert found.basis == "modelled" and found.value == seconds(PLAN) != FORMULA.value
    assert found.low is not None and found.high is not None and found.low < found.value < found.high
    unknown = replace(facts(), calibration=None)
    assert step_time(SHAPE, PLAN, unknown, FORMULA).best == FORMULA
    latent = replace(SHAPE, mla_kv_rank=64)  # whose parts were not measured
    assert step_time(latent, PLAN, facts(), FORMULA).best == FORMULA
    assert step_time(SHAPE, replace(PLAN, dtype="bf16"), facts(), FORMULA).best == FORMULA


def test_matmuls_are_those_of_the_shape_at_the_measured_rate() -> None:
    found = step_seconds(SHAPE, PLAN, facts())
    assert found is not None and sum(found.parts.values()) == pytest.approx(found.value)
    weights = 4 * (4 * 256 * 256 + 3 * 256 * 704) + 2048 * 256
    assert found.parts["matmul_s"] == pytest.approx(_MEDIAN_OVER_BEST * 6e-12 * 16 * 256 * weights, rel=1e-6)
    heads = 4 * 16 * 4  # layers, rows, heads
    assert found.parts["attention_s"] == pytest.approx(
        _MEDIAN_OVER_BEST * 1e-12 * heads * 256**2 * 64, rel=1e-6
    )
    assert {name for name, value in found.parts.items() if value} == {
        "matmul_s", "attention_s", "vector_s", "optimizer_s", "overhead_s"
    }  # fmt: skip


def test_anchors_scale_what_is_computed_by_their_width() -> None:
    plain = speeds()
    anchor = Anchor(2, 128, 2, 320, 1024, 2, 256, 1.0)
    shape = calibrated.anchor_shape(anchor)
    alone = Calibration("a CPU", "cpu", "t", "d", 2, (plain,))
    plan = StagePlan(steps=1, context=256, batch_rows=2, micro_batch=2, lr=1.0)
    fixed = _MEDIAN_OVER_BEST * 20 * plain.tables["call"].at()
    counted = (seconds(plan, facts(alone), shape) - fixed) / _MEDIAN_OVER_BEST
    twice = replace(plain, anchors=(replace(anchor, seconds=2 * counted),))
    corrected = seconds(plan, facts(replace(alone, speeds=(twice,))), shape)
    assert corrected - fixed == pytest.approx(_MEDIAN_OVER_BEST * 2 * counted)


def test_each_axis_exchanges_in_its_own_part_and_halves_the_matmuls() -> None:
    whole = step_seconds(SHAPE, PLAN, facts(threads=1))
    assert whole is not None
    for layout, part in (
        ("replicate=2", "data_s"), ("shard=2", "data_s"),
        ("tensor=2", "tensor_s"), ("context=2", "context_s"),
    ):  # fmt: skip
        found = step_seconds(SHAPE, laid(layout), facts())
        assert found is not None and found.parts[part] > 0
        assert found.parts["matmul_s"] == pytest.approx(whole.parts["matmul_s"] / 2, rel=1e-6), layout


def test_a_pipeline_waits_less_with_more_micro_batches() -> None:
    few = step_seconds(SHAPE, laid("pipeline=2", micro_batch=8), facts())
    many = step_seconds(SHAPE, laid("pipeline=2", micro_batch=2), facts())
    assert few is not None and many is not None
    assert few.parts["bubble_s"] > 2 * many.parts["bubble_s"] > 0
    assert few.parts["pipeline_s"] > 0


def test_experts_exchange_rows_and_their_matmuls_are_those_of_the_chosen() -> None:
    shape = replace(
        SHAPE, family="qwen3-moe", experts=8, experts_per_token=2, expert_ffn=256, router="softmax"
    )
    alone = step_seconds(shape, PLAN, facts(threads=1))
    together = step_seconds(shape, laid("shard=2,expert=2"), facts())
    assert alone is not None and together is not None
    weights = 4 * (4 * 256 * 256 + 2 * 3 * 256 * 256) + 2048 * 256
    assert alone.parts["matmul_s"] == pytest.approx(
        _MEDIAN_OVER_BEST * 6e-12 * 2 * 16 * 256 * weights, rel=1e-6
    )
    assert together.parts["expert_s"] > 0 and alone.parts["expert_s"] == 0
    assert together.parts["matmul_s"] == pytest.approx(alone.parts["matmul_s"] / 2, rel=1e-6)


def test_recomputed_blocks_take_their_forward_pass_again() -> None:
    plain, again = (step_seconds(SHAPE, replace(PLAN, recompute=kind), facts()) for kind in ("none", "full"))
    assert plain is not None and again is not None and plain.parts["recompute_s"] == 0
    blocks = 6e-12 * 16 * 256 * 4 * (4 * 256 * 256 + 3 * 256 * 704)
    assert again.parts["recompute_s"] > blocks / 3


def test_threads_between_those_measured_lie_between_in_time() -> None:
    many = made(cores=8, speeds=(speeds(threads=8, rate=4.0), speeds(threads=1, rate=0.5)), exchanges={})
    one, four, all_ = (seconds(PLAN, facts(many, threads=count)) for count in (1, 4, 8))
    assert all_ < four < one
    assert math.log(four / one) / math.log(all_ / one) == pytest.approx(2 / 3, rel=1e-6)


def test_as_many_threads_are_taken_as_measured_whether_alone_or_together() -> None:
    alone, all_ = speeds(threads=1, rate=0.5), speeds(threads=4, rate=2.0)
    pair = replace(speeds(threads=2, rate=1.0), processes=2)
    found = calibrated._nearest(made(cores=4, speeds=(all_, alone, pair)), 4, 1, alone.dtype)
    assert found[0] == alone and found[1] == pair


def test_compiled_code_is_quicker_and_less_certain() -> None:
    eager, compiled = (step_seconds(SHAPE, replace(PLAN, compile=yes), facts()) for yes in (False, True))
    assert eager is not None and compiled is not None and compiled.value < eager.value
    assert compiled.high / compiled.value > eager.high / eager.value


def test_a_rank_updates_its_share_of_the_weights() -> None:
    def params(layout: str) -> float:
        plan = laid(layout)
        work = calibrated.workload_of(plan, "cpu")
        return sum(
            local_params(Rank(SHAPE, plan.layout, work, place, 256)) for place in range(plan.layout.pipeline)
        )

    whole = params("replicate=2")
    assert whole == 4 * (4 * 256 * 256 + 3 * 256 * 704) + 2 * 2048 * 256  # norms are left out
    routed = replace(SHAPE, family="qwen3-moe", experts=4, experts_per_token=2, expert_ffn=256)

    def of_experts(layout: str) -> float:
        plan = laid(layout)
        return local_params(Rank(routed, plan.layout, calibrated.workload_of(plan, "cpu"), 0, 256))

    # Replicas hold the same experts: only those that shard them divide them (parallel/mesh.py).
    assert of_experts("replicate=2,shard=2,expert=2") == of_experts("shard=2,expert=2")
    assert params("shard=2") == params("tensor=2") == whole / 2 and params("pipeline=2") == whole


LORA = replace(SHAPE, adapter=Adapter(8, 16.0, ATTENTION))


def test_frozen_weights_beside_adapters_are_multiplied_and_do_not_learn() -> None:
    found, full = (step_seconds(shape, PLAN, facts()) for shape in (LORA, SHAPE))
    assert found is not None and full is not None
    frozen = 4 * (4 * 256 * 256 + 3 * 256 * 704) + 2048 * 256
    flops = 4.0 * frozen + 6.0 * adapter_params(LORA)  # no gradient of the frozen ones
    assert found.parts["matmul_s"] == pytest.approx(_MEDIAN_OVER_BEST * 1e-12 * 16 * 256 * flops, rel=1e-6)
    assert found.parts["attention_s"] == full.parts["attention_s"]
    # At 1e-9 s a parameter; of the full model's, the norms are left out.
    assert found.parts["optimizer_s"] == pytest.approx(_MEDIAN_OVER_BEST * 1e-9 * adapter_params(LORA))
    assert found.parts["vector_s"] < full.parts["vector_s"]  # no casts, no sums of gradients


def test_a_rank_updates_its_share_of_the_adapters() -> None:
    def params(layout: str, shape: ModelShape = LORA) -> float:
        plan = laid(layout)
        return local_params(Rank(shape, plan.layout, calibrated.workload_of(plan, "cpu"), 0, 256))

    assert params("replicate=2") == adapter_params(LORA) == 2 * params("shard=2")
    classes = replace(LORA, labels=3)  # a head of classes learns beside them
    assert params("replicate=2", classes) == adapter_params(LORA) + 3 * 256


def test_recomputed_adapter_blocks_take_a_forward_pass_again() -> None:
    plain, again = (step_seconds(LORA, replace(PLAN, recompute=kind), facts()) for kind in ("none", "full"))
    assert plain is not None and again is not None
    of_layers = plain.parts["matmul_s"] - _MEDIAN_OVER_BEST * 4e-12 * 16 * 256 * 2048 * 256
    assert again.parts["recompute_s"] > 0.5 * of_layers + plain.parts["attention_s"] / 3


def test_adapters_run_a_third_of_their_products_forwards_beside_weights_that_run_half() -> None:
    """Wider adapters: all that there is more is theirs."""
    plan = replace(PLAN, micro_batch=16, recompute="full")  # one micro-batch: no sums of gradients
    adapter = Adapter(64, 16.0, ATTENTION)
    ranks = (
        Rank(shape, plan.layout, calibrated.workload_of(plan, "cpu"), 0, 256)
        for shape in (LORA, replace(SHAPE, adapter=adapter))
    )
    narrow, wide = (stage_times(rank, speeds())[0] for rank in ranks)
    more_s = {name: seconds - narrow.parts[name] for name, seconds in wide.parts.items()}
    assert more_s["matmul_s"] > 0 and more_s["attention_s"] == more_s["vector_s"] == 0
    assert more_s["recompute_s"] == pytest.approx(more_s["matmul_s"] / 3)
    assert wide.forward_s - narrow.forward_s == pytest.approx(more_s["matmul_s"] / 3)


def test_the_loss_is_computed_in_the_forward_pass_of_the_last_stage() -> None:
    plan = laid("pipeline=2")
    work = calibrated.workload_of(plan, "cpu")
    first, last = (
        stage_times(Rank(SHAPE, plan.layout, work, place, 256), speeds())[place] for place in (0, 1)
    )
    assert first.forward_s == pytest.approx(first.total / 3) and last.forward_s > last.total / 3


def test_of_two_calibrations_the_shorter_times_are_kept() -> None:
    slow, fast = made(busy_share=0.4), made(speeds=(speeds(rate=2.0),), busy_share=0.1)
    found = calibration.better_of(slow, fast)
    assert found.speeds[0].tables == fast.speeds[0].tables and found.speeds[1:] == slow.speeds[1:]
    assert calibration.better_of(fast, slow) == fast and found.busy_share == 0.1


def test_what_exchanging_costs_beyond_itself_is_read_from_the_anchors_of_layouts() -> None:
    pair = speeds(2, 1, rate=0.5)
    alone = made(speeds=(pair,))
    shape = calibrated.anchor_shape(Anchor(2, 256, 4, 704, 1024, 8, 256, 0.0))
    plan = StagePlan(1, 256, 8, 4, 1.0, layout=parse_layout("shard=2"))
    counted = seconds(plan, facts(alone), shape) / _MEDIAN_OVER_BEST
    anchor = Anchor(2, 256, 4, 704, 1024, 8, 256, counted + 0.5, "shard=2")
    told = made(speeds=(replace(pair, anchors=(anchor,)),))
    assert seconds(plan, facts(told), shape) == pytest.approx(_MEDIAN_OVER_BEST * (counted + 0.5))
    other = replace(plan, layout=parse_layout("tensor=2"), micro_batch=8)
    assert seconds(other, facts(told), shape) == pytest.approx(seconds(other, facts(alone), shape))


def test_what_ranks_of_experts_wait_for_each_other_is_read_from_the_anchor_with_experts() -> None:
    pair = speeds(2, 1, rate=0.5)
    alone = made(speeds=(pair,))
    anchor = Anchor(2, 256, 4, 704, 1024, 8, 256, 0.0, "shard=2,expert=2", 8, 2, 256)
    shape = calibrated.anchor_shape(anchor)
    assert (shape.experts, shape.experts_per_token, shape.expert_ffn) == (8, 2, 256)
    plan = StagePlan(1, 256, 8, 4, 1.0, layout=parse_layout(anchor.layout))
    before = step_seconds(shape, plan, facts(alone))
    assert before is not None
    timed = replace(anchor, seconds=before.value / _MEDIAN_OVER_BEST + 0.5)
    told = facts(made(speeds=(replace(pair, anchors=(timed,)),)))
    after = step_seconds(shape, plan, told)
    assert after is not None
    assert after.parts["expert_s"] - before.parts["expert_s"] == pytest.approx(0.5 * _MEDIAN_OVER_BEST)
    dense = replace(plan, layout=parse_layout("shard=2"))
    assert seconds(dense, told) == pytest.approx(seconds(dense, facts(alone)))
