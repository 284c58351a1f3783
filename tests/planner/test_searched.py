from dataclasses import replace

import pytest

from bessemer.errors import RecipeError, RefusedError
from bessemer.formulas.shape import ModelShape
from bessemer.hardware import GIB, Ceilings
from bessemer.planner.finetuning import resolve_finetune
from bessemer.planner.machine.facts import Facts, cluster_facts
from bessemer.planner.plan import Plan
from bessemer.planner.resolve import resolve, resolve_searched
from bessemer.planner.searched import Place, with_devices
from bessemer.recipe.load import load, parse
from bessemer.recipe.schema import Recipe

CEILINGS = Ceilings("a CPU", 2.0, 0.4, 20.0, 2, "2.13.0", "2026-01-01")
CPU = Facts("a CPU", "cpu", cores=2, memory_bytes=16 * GIB, ceilings=CEILINGS, vocab=8000)
# As a machine with eight accelerators is gathered, for a process that trains there.
MACHINE = replace(cluster_facts("H100", 1), vocab=8000, local_devices=8, cluster=None)


def recipe(*overrides: str) -> Recipe:
    given = ["pretrain.steps=100", "pretrain.batch_tokens=262144", "model.size=300M", *overrides]
    return parse('name = "a"\n', "r.toml", given)


def rule_of(plan: Plan) -> str:
    return next((row.rule for row in plan.derived if row.key == "parallel.layout"), "")


def test_planned_cluster_gets_a_searched_layout_with_the_rule_it_came_from() -> None:
    plan, chosen = resolve_searched(recipe(), cluster_facts("H100", 16))
    assert chosen is not None and plan.pretrain.layout == chosen.layout
    assert plan.pretrain.layout.world == 16 and plan.layout["shard"] == chosen.layout.shard
    assert plan.pretrain.micro_batch == chosen.micro_batch and plan.pretrain.recompute == chosen.recompute
    assert "fastest" in rule_of(plan) and "candidates" in rule_of(plan)
    assert plan.predicted["step_time_s"].value == pytest.approx(chosen.search.best.step_s, rel=0.02)


def test_layout_of_the_recipe_is_kept_without_a_search() -> None:
    plan, chosen = resolve_searched(recipe("parallel.layout=shard=8,pipeline=2"), cluster_facts("H100", 16))
    assert chosen is None and str(plan.pretrain.layout) == "shard=8,pipeline=2" and not rule_of(plan)


def test_processes_that_were_started_all_get_a_place_in_the_searched_layout() -> None:
    plan = resolve(recipe(), replace(MACHINE, local_devices=4), world=8)
    assert plan.pretrain.layout.world == 8 and "candidates" in rule_of(plan)
    with pytest.raises(RecipeError, match="cannot be split"):
        resolve(recipe("pretrain.batch_tokens=4096"), MACHINE, world=19)


def test_machine_with_several_accelerators_is_filled_as_far_as_the_batch_goes() -> None:
    assert resolve(recipe(), MACHINE).pretrain.layout.world == 8
    few = resolve(recipe("pretrain.batch_tokens=2048", "model.context=1024"), MACHINE)
    assert few.pretrain.layout.world in (1, 2, 4, 8)
    assert few.pretrain.batch_tokens == 2048


def test_cpus_and_strangers_stay_one_process_or_as_many_as_were_started() -> None:
    stranger = Facts("Some New GPU", "gpu", local_devices=8, ceilings=CEILINGS, vocab=8000)
    for facts, layout in ((CPU, "replicate=2"), (stranger, "shard=2")):
        assert resolve(recipe(), facts).pretrain.layout.world == 1
        assert str(resolve(recipe(), facts, world=2).pretrain.layout) == layout
        assert with_devices(recipe(), facts, Place(2)) == facts


def test_one_accelerator_has_nothing_to_search() -> None:
    plan, chosen = resolve_searched(recipe(), replace(MACHINE, local_devices=1))
    assert chosen is None and plan.pretrain.layout.world == 1
    plan, chosen = resolve_searched(recipe(), MACHINE, world=1)
    assert chosen is None and plan.pretrain.layout.world == 1


def test_preference_is_followed_where_there_is_a_choice_and_refused_where_there_is_none() -> None:
    fast = resolve(recipe(), cluster_facts("H100", 16)).predicted
    frugal = resolve(recipe("energy.prefer=energy"), cluster_facts("H100", 16)).predicted
    assert (frugal["kwh"].value or 0) <= 1.001 * (fast["kwh"].value or 0)
    assert (frugal["step_time_s"].value or 0) >= 0.999 * (fast["step_time_s"].value or 0)
    for facts, layout in ((CPU, "auto"), (cluster_facts("H100", 16), "shard=16")):
        with pytest.raises(RecipeError, match="prefer has no effect"):
            resolve(recipe("energy.prefer=energy", f"parallel.layout={layout}"), facts)


def test_model_that_fits_nowhere_is_refused_with_what_would_do() -> None:
    given = load("llama-405b", []).recipe
    with pytest.raises(RefusedError, match="does not fit") as caught:
        resolve(given, cluster_facts("H100", 64))
    assert "take" in caught.value.fix


def test_fine_tuning_on_several_accelerators_is_searched_too() -> None:
    given = parse('name = "a"\n[finetune]\ndata = { path = "t.jsonl" }\nbatch_tokens = 65536\n', "r", [])
    shape = ModelShape("llama", 8, 512, 8, 4, 64, 1376, 8000, 1024, tie_embeddings=True, qk_norm=False)
    stage, derived = resolve_finetune(given, shape, 10_000, MACHINE)
    assert stage.layout.world == 8 and any(row.key == "parallel.layout" for row in derived)
    alone, _ = resolve_finetune(given, shape, 10_000, CPU)
    assert alone.layout.world == 1
