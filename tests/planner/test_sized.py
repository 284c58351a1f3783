from dataclasses import replace
from pathlib import Path

import pytest

from bessemer.errors import RecipeError, RefusedError
from bessemer.formulas.scaling.law import BESIROGLU
from bessemer.hardware import GIB, Ceilings
from bessemer.planner.machine.facts import Facts, cluster_facts, planned_facts
from bessemer.planner.plan import Plan
from bessemer.planner.resolve import resolve, resolve_searched
from bessemer.planner.sizing.budget import binding_rule, limits
from bessemer.recipe.load import parse
from bessemer.recipe.schema import Recipe

CEILINGS = Ceilings("a CPU", 2.0, 0.4, 20.0, 2, "2.13.0", "2026-01-01")
CPU = Facts("a CPU", "cpu", cores=2, memory_bytes=16 * GIB, ceilings=CEILINGS, vocab=8000)
GPU = cluster_facts("H100", 1)
CLUSTER = cluster_facts("H100", 64)


def recipe(*overrides: str) -> Recipe:
    return parse('name = "a"\n', "r.toml", ["model.size=auto", *overrides])


def planned(*overrides: str, facts: Facts = CPU) -> Plan:
    return resolve(recipe(*overrides), facts)


def rule_of(plan: Plan, key: str) -> str:
    return next(row.rule for row in plan.derived if row.key == key)


def tokens_of(plan: Plan) -> float:
    return plan.pretrain.steps * plan.pretrain.batch_tokens


@pytest.mark.parametrize(
    ("facts", "budget"),
    [(CPU, "budget.hours=48"), (GPU, "budget.usd=300"), (CLUSTER, "budget.device_hours=5000"),
     (GPU, "budget.kwh=40")],
)  # fmt: skip
def test_size_fills_its_budget_and_is_compute_optimal_for_it(facts: Facts, budget: str) -> None:
    plan = planned(budget, facts=facts)
    flops = 6 * plan.params * tokens_of(plan)
    # Sizes of the dial lie up to a tenth apart, and the optimum is flat.
    assert plan.params == pytest.approx(BESIROGLU.best_params(flops), rel=0.12)
    limit = limits(recipe(budget), facts, reserve=0.1)[0]  # nothing was run on these
    takes = plan.predicted[limit.name].value
    assert takes is not None and 0.95 * 0.9 * limit.amount <= takes <= 1.001 * 0.9 * limit.amount
    assert limit.planned_hours == pytest.approx(0.9 * limit.hours)
    assert ("budget.reserve", 0.1) in [(row.key, row.value) for row in plan.derived]
    assert plan.predicted["loss"].value == pytest.approx(
        BESIROGLU.loss(plan.params, tokens_of(plan)), rel=0.01
    )
    assert "compute-optimal between" in rule_of(plan, "model.size")
    assert "only as precise as its law" in rule_of(plan, "loss")


def test_larger_budget_never_gives_a_smaller_model_or_a_higher_loss() -> None:
    plans = [planned(f"budget.hours={2.0**power}") for power in (-2, 0, 3, 5, 8)]
    params = [plan.params for plan in plans]
    losses = [plan.predicted["loss"].value or 0.0 for plan in plans]
    assert params == sorted(params) and params[-1] > 3 * params[0]
    assert losses == sorted(losses, reverse=True)


def test_law_and_its_reach_are_said() -> None:
    far = planned("budget.hours=1000", facts=replace(GPU, vocab=32000))
    assert "2404.10102" in rule_of(far, "model.size") and "times the compute" not in rule_of(far, "loss")
    beyond = planned("budget.usd=1e6", facts=CLUSTER)
    assert "times the compute of its largest run" in rule_of(beyond, "loss")
    loss = beyond.predicted["loss"]
    assert loss.low is not None and loss.high is not None and loss.value is not None
    assert 1.7 < loss.low < loss.value < loss.high < 2.1 and loss.basis == "assumed"


def test_binding_limit_is_named_with_what_the_others_would_allow() -> None:
    given = recipe("budget.hours=10", "budget.usd=8", "budget.kwh=1000", "cluster.usd_per_device_hour=2")
    found = limits(given, GPU)
    assert [limit.name for limit in found] == ["usd", "hours", "kwh"]
    assert found[0].hours == pytest.approx(4.0)
    assert binding_rule(found).startswith("budget.usd = 8 binds: 4 hours (budget.hours = 10 allows 10, ")
    plan = resolve(given, GPU)
    assert ("budget", "usd") in [(row.key, row.value) for row in plan.derived]
    fixed = resolve(given.model_copy(update={"model": given.model.model_copy(update={"size": "30M"})}), GPU)
    assert "budget.usd = 8 binds" in rule_of(fixed, "budget")


def test_size_goes_with_the_speed_of_the_layout_that_is_chosen_for_it() -> None:
    plan, chosen = resolve_searched(recipe("budget.usd=20000", "model.context=4096"), CLUSTER)
    assert chosen is not None and plan.pretrain.layout == chosen.layout and plan.pretrain.layout.world == 64
    assert plan.predicted["usd"].value == pytest.approx(0.9 * 20000, rel=0.03)
    tokens_per_s, hours = plan.predicted["tokens_per_s"].value, plan.predicted["hours"].value
    assert tokens_per_s and hours
    kept = plan.predicted["goodput"].value or 0.0
    assert tokens_of(plan) == pytest.approx(tokens_per_s * 3600 * hours * kept, rel=0.01)


def test_tokens_of_use_make_it_smaller_and_longer_trained() -> None:
    plain = planned("budget.usd=2000", facts=GPU)
    used = planned("budget.usd=2000", "budget.inference_tokens=1T", facts=GPU)
    assert used.params < 0.7 * plain.params and tokens_of(used) > 1.5 * tokens_of(plain)
    assert "2401.00448" in rule_of(used, "model.size") and "1.00T tokens of use" in rule_of(
        used, "model.size"
    )
    assert (used.predicted["loss"].value or 0.0) > (plain.predicted["loss"].value or 9.0)


def test_given_tokens_or_steps_leave_only_the_size_to_the_budget() -> None:
    budget = f"budget.hours={2.0 / 0.9}"  # two hours without its reserve
    tokens = planned(budget, "pretrain.tokens=100M")
    assert tokens_of(tokens) == pytest.approx(1e8, rel=0.01)
    steps = planned(budget, "pretrain.steps=1000", "pretrain.batch_tokens=65536")
    assert steps.pretrain.steps == 1000
    for plan in (tokens, steps):
        assert plan.predicted["hours"].value == pytest.approx(2.0, rel=0.2)
        assert "as [pretrain] and the budget say" in rule_of(plan, "model.size")


def test_memory_holds_the_size_down_and_says_so() -> None:
    small = replace(GPU, memory_bytes=4 * GIB)
    plan = planned("budget.hours=10000", facts=small)
    assert 16 * plan.params < 4 * GIB
    assert "would be best, but 1 x H100-SXM5-80GB hold the state of" in rule_of(plan, "model.size")


def test_without_a_budget_auto_is_the_size_of_a_first_run() -> None:
    assert planned().params == pytest.approx(30e6, rel=0.1)
    assert "loss" not in planned().predicted


@pytest.mark.parametrize(
    ("overrides", "facts", "said"),
    [
        (["budget.usd=0.00001", "budget.hours=5", "cluster.usd_per_device_hour=1"], CPU, "budget.usd"),
        (["budget.hours=0.0001", "budget.usd=1000"], GPU, "budget.hours = 0.0001, which binds"),
        (["budget.kg_co2e=1"], GPU, "budget.kg_co2e"),
        (["budget.inference_tokens=1T"], GPU, "inference_tokens"),
        (["budget.runs=runs/*"], GPU, "budget.runs"),
        (["budget.hours=1"], Facts("a stranger", "gpu"), "no speed is known"),
        (["budget.hours=1", "model.layers=4"], GPU, "model.size and model.layers"),
        (["budget.hours=1", "model.family=deepseek-v3", "model.experts=8", "model.experts_per_token=2",
          "model.expert_ffn=64"], GPU, "experts"),
    ],
)  # fmt: skip
def test_budget_that_cannot_be_met_is_refused_with_its_name(
    overrides: list[str], facts: Facts, said: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        planned(*overrides, facts=facts)
    error = caught.value
    assert said in f"{error.problem} {error.found} {error.wanted} {error.fix}"


def test_fixed_run_beyond_its_budget_is_refused_with_the_limit_that_binds() -> None:
    given = parse('name = "a"\n', "r", ["pretrain.tokens=300B", "model.size=1B", "budget.usd=10",
                                       "budget.hours=100"])  # fmt: skip
    with pytest.raises(RefusedError, match="does not fit its budget") as caught:
        resolve(given, CLUSTER)
    assert "USD at the least" in caught.value.found and "budget.usd = 10, which binds" in caught.value.wanted


def test_energy_and_carbon_budgets_count_with_a_cluster_files_region_and_pue(tmp_path: Path) -> None:
    text = 'device = "H100"\ndevices = 8\nlink_gb_per_s = 450\npue = {pue}\nregion = "{region}"\n'
    hours = {}
    for pue, region in ((1.0, "FRA"), (2.0, "FRA"), (1.0, "POL")):
        (tmp_path / "c.toml").write_text(text.format(pue=pue, region=region))
        changed, facts = planned_facts(str(tmp_path / "c.toml"), recipe("budget.kg_co2e=100"), tmp_path)
        assert facts is not None
        hours[pue, region] = limits(changed, facts)[0].hours
    assert hours[2.0, "FRA"] == pytest.approx(hours[1.0, "FRA"] / 2)
    assert hours[1.0, "POL"] < hours[1.0, "FRA"] / 5


def test_use_that_asks_for_no_model_is_not_called_a_small_budget() -> None:
    with pytest.raises(RecipeError, match="smaller than any") as caught:
        planned("budget.usd=5000", "budget.inference_tokens=1000000T", facts=CLUSTER)
    assert caught.value.wanted.startswith("at most ") and "inference_tokens" in caught.value.fix
