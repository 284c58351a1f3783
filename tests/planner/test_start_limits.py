"""What a machine must have before a planned layout starts on it: accelerators, and memory for all ranks."""

from dataclasses import replace
from typing import Any

import pytest

from bessemer.cli.plan_memory import rank_documents
from bessemer.errors import RefusedError
from bessemer.formulas.memory.parts import STATE_BYTES
from bessemer.formulas.parameters import total_params
from bessemer.hardware import GIB, Ceilings
from bessemer.planner.limits import check_start, fits
from bessemer.planner.machine.facts import Facts, cluster_facts
from bessemer.planner.machine.planned import cluster_of
from bessemer.planner.plan import Plan
from bessemer.planner.predict import copy_fits, device_bytes, needed_bytes, rank_memories
from bessemer.planner.relaid import relaid
from bessemer.planner.resolve import resolve
from bessemer.recipe.load import parse
from bessemer.recipe.schema import Recipe

CEILINGS = Ceilings("a CPU", 2.0, 0.4, 20.0, 2, "2.13.0", "2026-01-01")
CPU = Facts("a CPU", "cpu", cores=2, memory_bytes=16 * GIB, ceilings=CEILINGS, vocab=8000)
GPU = replace(cluster_facts("H100", 1), vocab=8000)
MODEL = ("model.layers=8", "model.hidden=256", "model.heads=4", "model.context=512")
BATCH = ("pretrain.steps=100", "pretrain.batch_tokens=16384")  # 32 rows


def recipe(*settings: str, layout: str | None = None) -> Recipe:
    text = 'name = "a"\n' + (f'[parallel]\nlayout = "{layout}"\n' if layout else "")
    return parse(text, "r.toml", [*MODEL, *BATCH, *settings])


def planned(*settings: str, layout: str | None = None, facts: Facts = CPU, **more: Any) -> Plan:
    return resolve(recipe(*settings, layout=layout), facts, **more)


def test_layout_that_wants_more_accelerators_than_the_machine_has_is_refused_unless_they_were_started() -> (
    None
):
    here = replace(GPU, local_devices=2)
    given = recipe(layout="shard=16")
    plan = resolve(given, here)
    with pytest.raises(RefusedError, match="wants more devices than this machine has") as caught:
        check_start(given, plan.shape, plan.pretrain, here, None)
    assert caught.value.found == '"shard=16": 16 ranks, on 2 x H100-SXM5-80GB'
    assert caught.value.fix.endswith('set parallel.layout="shard=2"')
    check_start(given, plan.shape, plan.pretrain, here, 16)
    check_start(given, plan.shape, plan.pretrain, GPU, None)  # not known how many there are
    # The layout that torchrun gave a run stays when it goes on alone: told where it comes from.
    kept = relaid(plan.pretrain, recipe(), "pretrain", plan.shape, here)
    with pytest.raises(RefusedError) as caught:
        check_start(recipe(), plan.shape, kept, here, None)
    assert "which this run was trained with so far" in caught.value.found
    two = resolve(recipe(layout="shard=2"), here)
    check_start(recipe(layout="shard=2"), two.shape, two.pretrain, here, None)


def test_copy_that_an_asynchronous_save_takes_counts_once_and_is_the_first_thing_to_do_without() -> None:
    plan = planned("pretrain.micro_batch=2")
    assert plan.pretrain.async_save
    apart = replace(plan.pretrain, async_save=False)
    copy = STATE_BYTES * total_params(plan.shape)
    with_copy, without = (device_bytes(plan.shape, stage, CPU) for stage in (plan.pretrain, apart))
    assert with_copy - without == copy
    for stage in (plan.pretrain, apart):  # whichever it is now
        assert copy_fits(plan.shape, stage, replace(CPU, memory_bytes=int(with_copy / 0.85) + 9))
        assert not copy_fits(plan.shape, stage, replace(CPU, memory_bytes=int(with_copy / 0.85) - 9))
    tight = replace(CPU, memory_bytes=int((with_copy + without) / 2 / 0.95))
    asked = recipe("pretrain.micro_batch=2", "pretrain.async_save=true")
    with pytest.raises(RefusedError, match="does not fit in memory") as caught:
        check_start(asked, plan.shape, plan.pretrain, tight, None)
    assert caught.value.fix.startswith("set pretrain.async_save=false")
    # Left to us, it is what memory is left over for.
    left = resolve(recipe("pretrain.micro_batch=2"), tight)
    assert left.pretrain.async_save is False
    check_start(recipe("pretrain.micro_batch=2"), left.shape, left.pretrain, tight, None)
    on_gpu = planned("pretrain.micro_batch=2", facts=GPU)
    assert all(row.saving == 0 for row in rank_memories(on_gpu.shape, on_gpu.pretrain, GPU, compiled=True))


def test_run_beyond_a_machine_that_its_ranks_share_is_refused() -> None:
    given, facts = recipe("pretrain.micro_batch=2", layout="replicate=4"), replace(CPU, memory_bytes=2 * GIB)
    plan = resolve(given, facts)
    with pytest.raises(RefusedError, match="does not fit in memory") as caught:
        check_start(given, plan.shape, plan.pretrain, facts, None)
    assert "predicted for 4 ranks" in caught.value.found
    check_start(given, plan.shape, plan.pretrain, replace(CPU, memory_bytes=8 * GIB), None)
    gpu = replace(GPU, memory_bytes=GIB)
    on_gpu = resolve(given, gpu)
    with pytest.raises(RefusedError, match="does not fit in memory") as caught:
        check_start(given, on_gpu.shape, on_gpu.pretrain, gpu, None)
    assert "predicted for a rank" in caught.value.found


LONG = ("pretrain.batch_tokens=1048576",)
LARGER = ("model.layers=16", "model.hidden=2048", "model.heads=16", "model.context=2048")
ROWS = ("pretrain.batch_tokens=131072",)


def with_memory(gib: float, devices: int, **more: Any) -> Facts:
    """H100 of another size."""
    facts = cluster_facts("H100", devices)
    assert facts.cluster is not None
    device = replace(facts.cluster.device, memory_gib_usable=gib)
    cluster = replace(facts.cluster, device=device)
    return replace(facts, cluster=cluster, memory_bytes=round(gib * GIB), vocab=32000, **more)


EXPERTS = ("model.family=qwen3-moe", "model.experts=8", "model.experts_per_token=2", "model.expert_ffn=1408")


@pytest.mark.parametrize("settings", [(), EXPERTS], ids=["dense", "experts"])
def test_plan_that_is_chosen_always_starts_on_what_it_was_chosen_for(settings: tuple[str, ...]) -> None:
    given, started = recipe(*LARGER, *ROWS, *settings), 0
    for devices in (1, 8, 32):
        for gib in (3.0, 6.0, 12.0, 24.0, 48.0):
            facts = with_memory(gib, devices)
            try:
                plan = resolve(given, facts)
            except RefusedError:
                continue
            check_start(given, plan.shape, plan.pretrain, replace(facts, devices=plan.pretrain.layout.world))
            started += 1
            # On as little as it needs, too, and on no byte less.
            needed = needed_bytes(plan.shape, plan.pretrain, facts)
            assert needed <= facts.memory_bytes
            assert fits(plan.shape, plan.pretrain, replace(facts, memory_bytes=needed))
            assert not fits(plan.shape, plan.pretrain, replace(facts, memory_bytes=needed - 1))
    assert started >= 8


def test_layout_that_leaves_no_room_for_fragments_is_refused_as_the_search_refuses_it() -> None:
    """95 % of a device in tensors and a context is what runs die of: reserved is 5 % more on average."""
    given, facts = recipe(*LARGER, *ROWS, layout="shard=8"), with_memory(48.0, 8)
    plan = resolve(given, facts)
    held, needed = (
        device_bytes(plan.shape, plan.pretrain, facts),
        needed_bytes(plan.shape, plan.pretrain, facts),
    )
    between = replace(facts, memory_bytes=(round(held / 0.95) + needed) // 2)
    assert held < 0.95 * between.memory_bytes and needed > between.memory_bytes
    with pytest.raises(RefusedError, match="does not fit in memory") as caught:
        check_start(given, plan.shape, plan.pretrain, between)
    assert "with room for fragments" in caught.value.found
    check_start(given, plan.shape, plan.pretrain, replace(facts, memory_bytes=needed))


def test_parts_of_a_cpus_memory_that_a_plan_shows_are_the_whole() -> None:
    plan = planned()
    (row,) = rank_documents(plan, CPU, cluster_of(recipe(), CPU))
    assert sum(row["memory"].values()) == row["total"]
    assert row["memory"]["process"] > 0.4 * GIB


def test_micro_batch_that_does_not_fit_is_not_said_to_fit() -> None:
    for gib, said in ((1.0, "the least there is; it does not fit"), (6.0, "what fits in 85%")):
        plan = planned(*LONG, layout="shard=2", facts=with_memory(gib, 2))
        (rule,) = (row.rule for row in plan.derived if row.key == "pretrain.micro_batch")
        assert rule.startswith(said)


@pytest.mark.parametrize(
    ("gib", "layout", "words"),
    [(1.0, "replicate=1", "pretrain.micro_batch"), (1.4, "shard=2", "pretrain.recompute=full"),
     (1.4, "replicate=2", "parallel.layout")],
)  # fmt: skip
def test_what_a_refusal_tells_to_set_can_be_set_as_it_stands(gib: float, layout: str, words: str) -> None:
    settings, facts = ("pretrain.micro_batch=16",), replace(CPU, memory_bytes=round(gib * GIB))
    plan = planned(*settings, layout=layout, facts=facts)
    with pytest.raises(RefusedError, match="does not fit in memory") as caught:
        check_start(recipe(*settings, layout=layout), plan.shape, plan.pretrain, facts)
    assert words in caught.value.fix
    told = caught.value.fix.removeprefix("set ").rpartition(":")[0].split(" and ")
    mended = planned(*settings, *told, layout=layout, facts=facts)
    check_start(recipe(*settings, *told, layout=layout), mended.shape, mended.pretrain, facts)
