"""Money of plans, by the rule of the account (energy/accounting/facility.py), against closed forms."""

import re
from dataclasses import replace
from typing import Any

import pytest

from bessemer.energy.accounting.facility import prices
from bessemer.energy.quantity import exactly
from bessemer.errors import RecipeError
from bessemer.formulas.shape import ModelShape
from bessemer.hardware import lookup
from bessemer.planner.machine.cluster import catalogue_cluster
from bessemer.planner.machine.facts import cluster_facts
from bessemer.planner.machine.planned import cluster_of
from bessemer.planner.predict import kw_per_device, usd_per_device_hour
from bessemer.planner.resolve import resolve
from bessemer.planner.search.choose import search
from bessemer.planner.search.pareto import front
from bessemer.planner.search.question import Question
from bessemer.planner.sizing.budget import limits
from bessemer.recipe.load import parse
from bessemer.recipe.schema import Recipe

SHAPE = ModelShape("llama", 8, 2048, 16, 4, 128, 5632, 32000, 2048, tie_embeddings=False, qk_norm=False)
OWN = ("energy.tariff_usd_per_kwh=0.25", "energy.amortisation_usd_per_device_hour=0.5")


def recipe(*overrides: str) -> Recipe:
    return parse('name = "a"\n[model]\nsize = "1B"\n[pretrain]\ntokens = "1B"\n', "r.toml", list(overrides))


@pytest.mark.parametrize(
    ("devices", "more"), [(1, OWN), (8, OWN), (8, OWN[:1]), (8, (*OWN, "cluster.pue=1.4"))]
)
def test_own_machines_are_planned_with_their_electricity_and_their_wear(
    devices: int, more: tuple[str, ...]
) -> None:
    predicted = resolve(recipe(*more), cluster_facts("H100", devices)).predicted
    hours, kwh, usd = (predicted[name] for name in ("device_hours", "kwh", "usd"))
    wear = 0.5 if OWN[1] in more else 0.0
    for end in ("value", "low", "high"):
        assert getattr(usd, end) == pytest.approx(0.25 * getattr(kwh, end) + wear * getattr(hours, end))
    assert usd.basis == "assumed"  # as the watts are


def test_rented_devices_are_planned_by_the_hour_alone() -> None:
    predicted = resolve(recipe("cluster.usd_per_device_hour=2"), cluster_facts("H100", 8)).predicted
    assert predicted["usd"].value == pytest.approx(2.0 * (predicted["device_hours"].value or 0.0))
    listed = resolve(recipe(), cluster_facts("H100", 8)).predicted
    price = lookup("H100").usd_per_device_hour or 0.0
    assert listed["usd"].high == pytest.approx(3.0 * price * (listed["device_hours"].high or 0.0))


def test_plan_and_account_have_the_same_bill() -> None:
    given = recipe(*OWN, "cluster.pue=1.2")
    facts = cluster_facts("H100", 8)
    predicted = resolve(given, facts).predicted
    hours, kwh = predicted["device_hours"].value or 0.0, predicted["kwh"].value or 0.0
    bill = prices(given, lookup("H100")).usd(exactly(hours), exactly(kwh))
    assert predicted["usd"].value == pytest.approx(bill.value)


def test_budget_of_own_machines_counts_their_electricity() -> None:
    given, facts = recipe(*OWN, "budget.usd=100"), cluster_facts("H100", 8)
    (limit,) = limits(given, facts)
    assert limit.per_hour == pytest.approx(8 * (0.5 + 0.25 * (kw_per_device(given, facts).value or 0.0)))


def test_electricity_for_a_device_of_unknown_power_has_no_price() -> None:
    facts = cluster_facts("H100", 8)
    assert facts.cluster is not None
    unknown = replace(facts, cluster=replace(facts.cluster, device=replace(facts.cluster.device, tdp_w=None)))
    assert usd_per_device_hour(recipe(*OWN), unknown).value is None
    assert cluster_of(recipe(*OWN), facts).usd_per_kwh == 0.25


def test_two_prices_are_refused_by_the_search_too() -> None:
    given = recipe(*OWN, "cluster.usd_per_device_hour=2")
    with pytest.raises(RecipeError, match="two prices"):
        cluster_of(given, cluster_facts("H100", 8))


def question(**prices: Any) -> Question:
    cluster = replace(catalogue_cluster(lookup("H100"), 8), **prices)
    return Question(SHAPE, 2048, 32, 1000, "bf16", cluster, prefer="cost")


def test_cheapest_layout_of_own_machines_is_that_of_least_energy_where_only_that_costs() -> None:
    rented, own = search(question()), search(question(usd_per_device_hour=0.0, usd_per_kwh=0.25))
    energy = search(replace(question(), prefer="energy"))
    assert rented.best.layout == search(replace(question(), prefer="time")).best.layout
    assert own.best.layout == energy.best.layout
    assert own.best.usd == pytest.approx(0.25 * (own.best.kwh or 0.0))


def test_front_tells_less_money_where_less_energy_is_less_money() -> None:
    found = search(replace(question(usd_per_device_hour=0.0, usd_per_kwh=0.25), prefer="time"))
    points = front(found)[1:]
    assert points
    for point in points:
        shares = re.findall(r"(\d+)% less (energy|money)", point.sentence)
        assert {what for _, what in shares} == {"energy", "money"} and len(
            {share for share, _ in shares}
        ) == 1
