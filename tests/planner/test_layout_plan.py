"""Layouts in a plan: what a stage gets, what must fit where, and what is recomputed so that it does."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from making_plans import run_plan

from bessemer.errors import RecipeError
from bessemer.formulas.layout import ONE_PROCESS, Layout
from bessemer.formulas.memory.parts import STATE_BYTES
from bessemer.formulas.memory.rank import rank_activation_bytes
from bessemer.formulas.parameters import total_params
from bessemer.hardware import GIB, Ceilings
from bessemer.planner.finetuning import resolve_finetune
from bessemer.planner.machine.facts import Facts, cluster_facts
from bessemer.planner.plan import Plan, StagePlan
from bessemer.planner.predict import device_bytes, rank_memories, workload
from bessemer.planner.relaid import relaid
from bessemer.planner.resolve import resolve
from bessemer.planner.speed import training_speed
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


def test_plan_has_the_layout_for_the_trainer_and_for_readers() -> None:
    plan = planned("pretrain.micro_batch=2", layout="shard=2,pipeline=2,split=3+5")
    assert plan.pretrain.layout == Layout(shard=2, pipeline=2, split=(3, 5))
    assert plan.pretrain.micro_batches == 8
    assert plan.layout == {
        "replicate": 1, "shard": 2, "tensor": 1, "pipeline": 2, "context": 1, "expert": 1, "micro_batch": 2,
        "schedule": "1f1b", "interleave": 1, "recompute": "none", "recompute_layers": None, "reshard": True,
        "context_kind": "gather", "split": (3, 5),
    }  # fmt: skip
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))).pretrain == plan.pretrain
    assert planned().layout["schedule"] is None and planned().pretrain.layout == ONE_PROCESS


def test_plan_from_before_layouts_is_one_process() -> None:
    values = planned().pretrain.to_json()
    del values["layout"], values["recompute_layers"]
    old = StagePlan.from_json(json.loads(json.dumps(values)))
    assert old.layout == ONE_PROCESS and old.recompute_layers is None


def test_processes_that_were_started_are_filled_and_finetuning_is_split_like_pretraining() -> None:
    plan = planned(layout="tensor=2", world=4)
    assert plan.pretrain.layout == Layout(shard=2, tensor=2)
    given = recipe("finetune.context=256", layout="context=2")
    stage, _ = resolve_finetune(given, plan.shape, 100, CPU, plan.pretrain, world=4)
    assert stage.layout == Layout(shard=2, context=2)


def test_layout_that_the_model_does_not_allow_is_refused_in_the_plan() -> None:
    with pytest.raises(RecipeError, match="tensor does not divide") as caught:
        planned(layout="tensor=3")
    assert caught.value.fix == 'set parallel.layout="tensor=2"'
    with pytest.raises(RecipeError, match=r"--layout: more pipeline stages"):
        planned(layout="pipeline=9", layout_from="--layout")


@pytest.mark.parametrize(
    ("layout", "size"),
    [
        ("shard=2", 8),
        ("pipeline=2", 8),
        ("pipeline=4", 4),
        ("pipeline=4,schedule=zbv", 2),
        ("shard=4,pipeline=4", 1),
        ("pipeline=4,shard=32", 1),
    ],
)
def test_pipeline_gets_two_micro_batches_for_each_stage_where_rows_allow(layout: str, size: int) -> None:
    stage = planned(layout=layout).pretrain
    assert stage.micro_batch == size
    assert stage.layout.pipeline == 1 or stage.micro_batches >= min(
        2 * stage.layout.num_stages, 32 // stage.layout.data
    )


@pytest.mark.parametrize("rows", range(1, 40))
def test_automatic_micro_batch_is_one_that_the_schedule_takes(rows: int) -> None:
    settings = f"pretrain.batch_tokens={512 * rows}"
    stage = planned(settings, layout="pipeline=4,interleave=2").pretrain
    assert stage.micro_batches <= 4 or stage.micro_batches % 4 == 0


def test_micro_batch_that_the_schedule_does_not_take_is_refused() -> None:
    with pytest.raises(RecipeError, match="cannot run 6 micro-batches") as caught:
        planned("pretrain.micro_batch=6", layout="pipeline=4,interleave=2")
    assert caught.value.fix == "set pretrain.micro_batch=4, or schedule=1f1b"


def test_v_shaped_pipelines_do_not_run_compiled() -> None:
    assert planned(layout="pipeline=2,schedule=zbv").pretrain.compile is False
    assert planned(layout="pipeline=2").pretrain.compile == "auto"
    with pytest.raises(RecipeError, match="schedule=zbv does not run compiled") as caught:
        planned("pretrain.compile=true", layout="pipeline=2,schedule=zbv")
    assert caught.value.found == "pretrain.compile = true" and "compile=false" in caught.value.fix


def test_selective_recomputation_does_not_run_compiled() -> None:
    assert planned("pretrain.recompute=selective").pretrain.compile is False
    with pytest.raises(RecipeError, match="recompute=selective does not run compiled") as caught:
        planned("pretrain.recompute=selective", "pretrain.compile=true")
    assert caught.value.found == 'pretrain.compile = true, pretrain.recompute = "selective"'
    assert caught.value.fix == "set pretrain.compile=false, or recompute=full"
    # A run that leaves it goes back to what the recipe says.
    eager = planned("pretrain.recompute=selective").pretrain
    plain = recipe()
    assert relaid(eager, plain, "pretrain", planned().shape, CPU).compile == "auto"


def test_ranks_share_the_memory_and_speed_of_a_cpu_and_have_an_accelerator_each() -> None:
    for layout in ("shard=2,tensor=2", "pipeline=4"):
        on_cpu, on_gpu = (
            planned("pretrain.micro_batch=2", layout=layout, facts=facts) for facts in (CPU, GPU)
        )
        ranks = [row.total for row in rank_memories(on_cpu.shape, on_cpu.pretrain, CPU, compiled=True)]
        eager = replace(on_cpu.pretrain, async_save=False)
        bare = [row.total for row in rank_memories(on_cpu.shape, eager, CPU, compiled=True)]
        assert device_bytes(on_cpu.shape, eager, CPU) == sum(bare) * (4 // len(bare))
        # All ranks of a machine together hold one copy of what is saved.
        copy = device_bytes(on_cpu.shape, on_cpu.pretrain, CPU) - device_bytes(on_cpu.shape, eager, CPU)
        assert copy == STATE_BYTES * total_params(on_cpu.shape)
        assert on_cpu.predicted["memory_gib"].value == max(ranks) / GIB
        assert device_bytes(on_gpu.shape, on_gpu.pretrain, GPU) == on_gpu.predicted["memory_gib"].value * GIB
        alone = planned("pretrain.micro_batch=2", facts=GPU).predicted["tokens_per_s"].value
        assert alone < on_gpu.predicted["tokens_per_s"].value < 4 * alone  # exchanges take their part
    one = planned("pretrain.micro_batch=2").predicted["step_time_s"]
    assert planned("pretrain.micro_batch=2", layout="shard=2").predicted["step_time_s"] == one


def test_memory_of_a_cluster_is_known_with_a_searched_layout_and_a_given_one() -> None:
    facts = replace(cluster_facts("H100", 8), vocab=8000)
    assert planned(facts=facts).predicted["memory_gib"].value
    assert planned(layout="shard=8", facts=facts).predicted["memory_gib"].value
    with pytest.raises(RecipeError, match="does not fill the cluster"):
        planned(layout="shard=4", facts=facts)


def activations(plan: Plan, **changes: Any) -> int:
    stage = replace(plan.pretrain, **changes)
    return rank_activation_bytes(plan.shape, workload(stage, CPU, compiled=True), stage.layout)


@pytest.mark.parametrize("layout", ["auto", "pipeline=2", "tensor=2"])
def test_fewest_layers_are_recomputed_so_that_activations_fit(layout: str) -> None:
    plain = planned("pretrain.micro_batch=4", layout=layout)
    for share, limit in [(1.0, None), (0.8, 8), (0.5, 8)]:
        amount = int(share * activations(plain))
        plan = planned("pretrain.micro_batch=4", f"pretrain.activation_memory={amount}", layout=layout)
        count = plan.pretrain.recompute_layers
        if limit is None:
            assert plan.pretrain.recompute == "none" and count is None
            continue
        assert plan.pretrain.recompute == "full" and count is not None and 0 < count <= limit
        assert activations(plan) <= amount
        assert count == 1 or activations(plan, recompute_layers=count - 1) > amount
        told = {row.key: row for row in plan.derived}["pretrain.recompute_layers"]
        assert told.value == count and plan.layout["recompute_layers"] == count


def test_activations_that_fit_by_no_means_are_refused_with_what_would_do() -> None:
    with pytest.raises(RecipeError, match="do not fit in activation_memory") as caught:
        planned("pretrain.micro_batch=4", "pretrain.activation_memory='4MiB'")
    assert "with every layer recomputed" in caught.value.found and "4.00 MiB" in caught.value.found
    enough = caught.value.fix.split("=")[1].split(",")[0]
    assert (
        planned("pretrain.micro_batch=4", f"pretrain.activation_memory='{enough}'").pretrain.recompute
        == "full"
    )
    with pytest.raises(RecipeError, match="do not fit") as caught:
        planned("pretrain.micro_batch=4", "pretrain.activation_memory='12MiB'")
    rows = int(caught.value.fix.split("micro_batch=")[1])
    planned(f"pretrain.micro_batch={rows}", "pretrain.activation_memory='12MiB'")


def test_automatic_micro_batch_makes_room_for_activations() -> None:
    plan = planned("pretrain.activation_memory='12MiB'")
    assert plan.pretrain.micro_batch < planned().pretrain.micro_batch and activations(plan) <= 12 * 2**20


@pytest.mark.parametrize("kind", ["selective", "full"])
def test_amount_and_kind_of_recomputation_exclude_each_other(kind: str) -> None:
    with pytest.raises(RecipeError, match="decides what is recomputed") as caught:
        planned("pretrain.activation_memory='1GiB'", f"pretrain.recompute={kind}")
    assert f'recompute = "{kind}"' in caught.value.found and caught.value.fix == "remove pretrain.recompute"


@pytest.mark.parametrize("text", ["8GB", "8", "GiB", "0GiB", "-1GiB"])
def test_amount_of_memory_has_a_binary_unit(text: str) -> None:
    with pytest.raises(RecipeError, match="activation_memory") as caught:
        recipe(f"pretrain.activation_memory='{text}'")
    assert text in caught.value.found and "amount of memory such as 8GiB" in caught.value.wanted


def test_amount_of_memory_is_read_in_any_binary_unit() -> None:
    for text, value in [("'1.5GiB'", 3 * 2**29), ("'512MiB'", 2**29), ("'2 KiB'", 2048), ("77", 77)]:
        assert recipe(f"pretrain.activation_memory={text}").pretrain.activation_memory == value


def test_selective_recomputation_is_planned_between_none_and_full() -> None:
    none, selective, full = (planned(f"pretrain.recompute={kind}") for kind in ("none", "selective", "full"))
    assert none.predicted["memory_gib"].value > selective.predicted["memory_gib"].value
    assert (
        activations(none, micro_batch=4)
        > activations(selective, micro_batch=4)
        > activations(full, micro_batch=4)
    )


def test_recomputing_some_layers_costs_their_share_of_the_time() -> None:
    shape = planned().shape
    none = training_speed(shape, CPU, "bf16", "none")
    half, full = (training_speed(shape, CPU, "bf16", "full", share) for share in (0.5, 1.0))
    assert none and half and full
    times = [1 / speed.tflops.value for speed in (none, half, full)]
    assert times[1] == pytest.approx((times[0] + times[2]) / 2)


def test_plan_command_shows_the_layout_and_each_rank() -> None:
    document, text = run_plan("llama-1b", "--cluster", "8xH100", "--layout", "shard=2,tensor=2,pipeline=2",
                          settings=("pretrain.steps=10", "parallel.layout='tensor=64'"))  # fmt: skip
    assert document["layout"]["tensor"] == 2 and document["training"]["layout"]["pipeline"] == 2
    first, last = document["memory_by_pipeline_rank"]
    assert (
        len(first["layers"]) + len(last["layers"]) == 16
        and last["parts"]["loss"] > first["parts"]["loss"] == 0
    )
    assert document["memory_parts"] == max(first, last, key=lambda row: row["total"])["parts"]
    assert (
        "8 ranks: shard=2,tensor=2,pipeline=2" in text and "Pipeline rank" in text and "the fullest" in text
    )
    assert document["candidates"] and not document["rejected"] and document["refused_because"] is None


def test_plan_command_of_one_process_shows_no_layout() -> None:
    document, text = run_plan("llama-1b", "--cluster", "H100", settings=("pretrain.steps=10",))
    assert document["training"]["layout"] == asdict(ONE_PROCESS) and "ranks" not in text
    assert "Memory of a device" in text and "gathered" not in text


@pytest.mark.parametrize(
    ("layout", "problem"),
    [
        ("tensr=2", "--layout: cannot read"),
        ("tensor=7", "--layout: tensor does not divide"),
        ("tensor=2", "--layout does not fill the cluster"),
    ],
)
def test_plan_command_refuses_its_option_by_name(layout: str, problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        run_plan("llama-1b", "--cluster", "8xH100", "--layout", layout)
    assert problem in caught.value.problem


def test_stage_under_way_takes_over_a_layout_and_keeps_what_was_decided() -> None:
    plan = planned()
    stage, shape = plan.pretrain, plan.shape

    def now(*settings: str, layout: str | None = None, **more: Any) -> StagePlan:
        given = recipe(*settings, layout=layout)
        found = relaid(stage, given, "pretrain", shape, CPU, **more)
        assert relaid(found, given, "pretrain", shape, CPU, **more) == found
        return found

    assert now() == stage
    piped = now(layout="pipeline=4")
    assert piped == replace(stage, layout=Layout(pipeline=4), micro_batch=4)
    assert now(world=2).layout == Layout(replicate=2)
    assert now("pretrain.micro_batch=2").micro_batch == 2
    assert now("pretrain.activation_memory='12MiB'", "pretrain.micro_batch=1").recompute_layers
    stage = piped
    assert now() == piped
    with pytest.raises(RecipeError, match="tensor does not divide"):
        now(layout="tensor=3")
    with pytest.raises(RecipeError, match="cannot run 6 micro-batches"):
        now("pretrain.micro_batch=6", layout="pipeline=4,interleave=2")
    stage = now(layout="pipeline=2,schedule=zbv")
    assert stage.compile is False and now(layout="pipeline=2").compile == "auto"
