"""A run with an automatic layout that goes on: as it was decided; on other nodes searched again. No torch."""

from dataclasses import replace

import pytest
from test_processes import LARGE
from test_processes import facts as cpu_facts
from test_processes import recipe as cpu_recipe

from bessemer.errors import RefusedError
from bessemer.formulas.layout import ONE_PROCESS
from bessemer.hardware import GIB
from bessemer.planner.limits import fits
from bessemer.planner.machine.facts import cluster_facts
from bessemer.planner.plan import Plan, StagePlan
from bessemer.planner.relaid import relaid
from bessemer.planner.resolve import resolve
from bessemer.recipe.load import load
from bessemer.recipe.schema import Recipe

# As a machine is gathered for one of the processes that train there.
NODE = replace(cluster_facts("H100", 1), vocab=128256, local_devices=8, cluster=None)


def recipe(*overrides: str) -> Recipe:
    """70B, of which one layer's activations in each of 80 are too much for 32 devices."""
    given = load("llama-70b", ["pretrain.batch_tokens=4194304", *overrides]).recipe
    here = given.cluster.model_copy(update={"device": None, "devices": None})
    return given.model_copy(update={"cluster": here})


@pytest.fixture(scope="module")
def begun() -> Plan:
    plan = resolve(recipe(), NODE, world=32)
    assert plan.pretrain.recompute == "full" and plan.pretrain.layout.world == 32
    return plan


def goes_on(begun: Plan, world: int | None, *overrides: str) -> StagePlan:
    given = recipe(*overrides)
    found = relaid(begun.pretrain, given, "pretrain", begun.shape, NODE, world)
    assert relaid(found, given, "pretrain", begun.shape, NODE, world) == found
    return found


@pytest.mark.parametrize("world", [32, None])
def test_what_the_search_chose_beside_the_layout_stays_with_it(begun: Plan, world: int | None) -> None:
    """Without the recomputation the run would end for want of memory as soon as it went on."""
    assert goes_on(begun, world) == begun.pretrain
    assert not fits(begun.shape, replace(begun.pretrain, recompute="none"), NODE)


def test_what_the_recipe_says_of_recomputation_holds(begun: Plan) -> None:
    assert goes_on(begun, 32, "pretrain.recompute=selective").recompute == "selective"


@pytest.mark.parametrize("world", [24, 64])
def test_other_nodes_get_the_layout_that_a_new_run_would(begun: Plan, world: int) -> None:
    found, new = goes_on(begun, world), resolve(recipe(), NODE, world=world).pretrain
    assert (found.layout, found.micro_batch, found.recompute) == (
        new.layout, new.micro_batch, new.recompute
    )  # fmt: skip
    assert found.layout.world == world and fits(begun.shape, found, NODE)
    assert (found.batch_rows, found.steps, found.lr) == (
        begun.pretrain.batch_rows, begun.pretrain.steps, begun.pretrain.lr
    )  # fmt: skip


def test_too_few_nodes_are_refused_with_what_would_do(begun: Plan) -> None:
    with pytest.raises(RefusedError, match="does not fit on this cluster in any layout"):
        goes_on(begun, 8)


def test_one_process_that_fits_with_everything_recomputed_alone_goes_on_so() -> None:
    given, known = cpu_recipe(*LARGE), replace(cpu_facts(), memory_bytes=round(2.4 * GIB))
    plan = resolve(given, known)
    assert (plan.pretrain.layout, plan.pretrain.recompute) == (ONE_PROCESS, "full")
    assert relaid(plan.pretrain, given, "pretrain", plan.shape, known) == plan.pretrain
    # Where it fits without, recomputation that the recipe no longer asks for ends.
    assert relaid(plan.pretrain, given, "pretrain", plan.shape, cpu_facts()).recompute == "none"


def test_an_amount_of_memory_decides_in_place_of_what_was_chosen() -> None:
    known = replace(cpu_facts(), memory_bytes=round(3.2 * GIB))
    plan = resolve(cpu_recipe(*LARGE), known, world=2)
    assert plan.pretrain.recompute == "full"
    given = cpu_recipe(*LARGE, "pretrain.activation_memory=700MiB")
    found = relaid(plan.pretrain, given, "pretrain", plan.shape, known, 2)
    assert found.recompute == "full" and 0 < (found.recompute_layers or 0) < plan.shape.layers


def test_processes_of_a_cpu_are_compared_again() -> None:
    given, known = cpu_recipe(), cpu_facts()
    plan = resolve(given, known, world=2)
    found = relaid(plan.pretrain, given, "pretrain", plan.shape, known, 4)
    new = resolve(given, known, world=4).pretrain
    assert (found.layout, found.micro_batch) == (new.layout, new.micro_batch) and found.layout.world == 4
    assert relaid(found, given, "pretrain", plan.shape, known, 4) == found
