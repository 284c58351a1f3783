"""Which layout "auto" is for processes on a CPU: by what was calibrated, or by what fits. No torch."""

from dataclasses import replace
from typing import Any

import pytest
from test_calibrated import facts as calibrated_facts
from test_calibrated import made, speeds

from bessemer.cli.plan_search import processes_document
from bessemer.errors import RecipeError
from bessemer.formulas.layout import ONE_PROCESS, Layout
from bessemer.hardware import GIB
from bessemer.planner.calibrated.tables import EXCHANGES, Calibration, Table
from bessemer.planner.machine.facts import Facts
from bessemer.planner.resolve import resolve, resolve_searched
from bessemer.planner.search.processes import ChosenProcesses
from bessemer.planner.search.rejected_processes import rejected_processes
from bessemer.recipe.load import parse
from bessemer.recipe.schema import Recipe

# 5.9 GiB of two copies with 8 rows in a micro-batch, 5.1 of two shards, 3.7 cut by heads.
LARGE = ("model.size=40M", "pretrain.async_save=false", "pretrain.micro_batch=8")


def recipe(*overrides: str) -> Recipe:
    given = ["pretrain.steps=100", "pretrain.batch_tokens=16384", "model.context=512", "pretrain.dtype=fp32"]
    given += [] if any("model.layers" in word for word in overrides) else ["model.size=5M"]
    return parse('name = "a"\n', "r.toml", [*given, *overrides])


def facts(calibration: Calibration | None = None, **changes: Any) -> Facts:
    known = replace(calibrated_facts(calibration), vocab=4096, memory_bytes=16 * GIB)
    return replace(known, **changes)


def chosen(known: Facts, world: int | None, *overrides: str) -> ChosenProcesses:
    found = resolve_searched(recipe(*overrides), known, world=world)[1]
    assert isinstance(found, ChosenProcesses)
    return found


def exchanges(**seconds: float) -> dict[str, Table]:
    """Of 256 bytes to 16 MiB, each 1 s; those that are named take so long."""
    return {
        name: Table(((2.0**8, 2.0**24),), (seconds.get(name, 1.0),) * 2, (1,))
        for name in (each for each in EXCHANGES)
    }


@pytest.mark.parametrize(("quick", "axis"), [("all_reduce", "replicate"), ("send", "pipeline")])
def test_the_axis_is_taken_whose_exchanges_are_quick_here(quick: str, axis: str) -> None:
    """Of the layouts of two processes, each needs other exchanges."""
    known = facts(made(exchanges=exchanges(**{quick: 1e-6})))
    found = chosen(known, 2)
    assert getattr(found.layout, axis) == 2 and found.layout.world == 2
    assert found.ranked[0].step_s == min(way.step_s for way in found.ranked if way.step_s)
    told = resolve(recipe(), known, world=2).derived
    assert [row.value for row in told if row.key == "parallel.layout"] == [str(found.layout)]


def test_all_started_processes_have_work_and_every_axis_is_looked_at() -> None:
    shape = ("model.layers=8", "model.hidden=256", "model.heads=4", "model.kv_heads=4", "model.ffn=704")
    found = chosen(facts(), 4, "model.context=2048", *shape)
    looked_at = [way.layout for way in found.ranked]
    assert all(layout.world == 4 for layout in looked_at) and len(set(looked_at)) == len(looked_at)
    for axis in ("replicate", "shard", "tensor", "pipeline", "context"):
        assert any(getattr(layout, axis) > 1 for layout in looked_at), axis
    assert {layout.reshard for layout in looked_at if layout.shard == 4} == {True, False}
    assert {layout.schedule for layout in looked_at if layout.pipeline > 1} >= {"1f1b", "zbv"}


def test_one_process_stays_one_unless_several_gain_a_tenth() -> None:
    """Two that compute at half the rate of one process with all threads each, and faster ones."""
    slow = chosen(facts(), None)
    assert slow.layout == ONE_PROCESS and "replicate=1" in str(slow.layout)
    quick = made(
        speeds=(speeds(), speeds(threads=1, rate=0.5), speeds(2, 1, rate=0.9)),
        exchanges=exchanges(all_reduce=1e-6),
    )
    found = chosen(facts(quick), None)
    assert found.layout == Layout(replicate=2)
    times = {str(way.layout): way.step_s for way in found.ranked}
    assert times["replicate=1"] > 1.1 * times["replicate=2"]
    # A run that is over before several have begun is one process, too.
    found = chosen(facts(quick), None, "pretrain.steps=5")
    assert found.layout == ONE_PROCESS and found.ranked[1].layout == Layout(replicate=2)
    rows = rejected_processes(found, resolve(recipe("pretrain.steps=5"), facts(quick)).shape, facts(quick))
    assert any("too little for starting 2 processes" in row.reason for row in rows)
    # As many threads as the recipe asks for are those of one process.
    assert resolve_searched(recipe(), replace(facts(quick), threads=1))[1] is None


@pytest.mark.parametrize(("seconds", "layout"), [(5e-4, "shard=2"), (3e-3, "replicate=2")])
def test_what_is_little_faster_is_not_taken_over_a_plainer_layout(seconds: float, layout: str) -> None:
    """Copies are faster in both; shards need less memory, and are taken where they lose less than 5 %."""
    shards = exchanges(all_reduce=1e-6, all_gather=seconds, reduce_scatter=seconds)
    known = facts(made(exchanges=shards))
    found = chosen(known, 2)
    times = {str(way.layout): way.step_s or 0.0 for way in found.ranked}
    assert times["replicate=2"] < times["shard=2"]
    assert str(found.layout) == layout, times
    told = processes_document(found, recipe(), resolve(recipe(), known, world=2), known, 1)
    faster = [point["layout"]["words"] for point in told["front"][1:]]
    assert faster == (["replicate=2"] if layout == "shard=2" else [])


def test_copies_that_do_not_fit_are_not_taken_and_said() -> None:
    whole = facts(made(exchanges=exchanges(all_reduce=1e-6)))
    words = (*LARGE, "pretrain.recompute=none")
    copies = chosen(whole, 2, *words)
    assert copies.layout.replicate == 2
    small = replace(whole, memory_bytes=round(5.7 * GIB))
    found = chosen(small, 2, *words)
    assert found.layout.replicate == 1 and found.layout.world == 2
    rows = rejected_processes(found, resolve(recipe(*words), small, world=2).shape, small)
    assert any(row.layout == Layout(replicate=2) and "more than fits" in row.reason for row in rows)


def test_copies_that_fit_with_everything_recomputed_are_compared_with_what_fits_without() -> None:
    """Sums between copies are quick here, and other exchanges so slow that recomputation costs less."""
    known = replace(facts(made(exchanges=exchanges(all_reduce=1e-6))), memory_bytes=round(4.5 * GIB))
    found = chosen(known, 2, *LARGE)
    assert found.layout == Layout(replicate=2) and found.ranked[0].stage.recompute == "full"
    assert any(way.stage.recompute == "none" for way in found.ranked[1:])
    layouts = [way.layout for way in found.ranked]
    assert len(set(layouts)) == len(layouts)
    rows = rejected_processes(found, resolve(recipe(*LARGE), known, world=2).shape, known)
    copies = [row for row in rows if row.layout == Layout(replicate=2)]
    assert [row.count for row in copies] == [1] and copies[0].recompute == "none"
    assert "more than fits in the 4.28 GiB" in copies[0].reason


def test_without_a_calibration_copies_are_taken_where_they_fit_and_shards_elsewhere() -> None:
    known = facts(calibration=None)
    known = replace(known, calibration=None)
    plan = resolve(recipe(), known, world=2)
    assert str(plan.pretrain.layout) == "replicate=2"
    assert any("doctor --calibrate" in row.rule for row in plan.derived if row.key == "parallel.layout")
    assert resolve_searched(recipe(), known)[1] is None
    assert str(resolve(recipe(*LARGE), known, world=2).pretrain.layout) == "replicate=2"
    tight = replace(known, memory_bytes=round(5.7 * GIB))
    assert str(resolve(recipe(*LARGE), tight, world=2).pretrain.layout) == "shard=2"


@pytest.mark.parametrize("rows", [1, 32])
def test_what_the_calibration_does_not_cover_is_as_if_nothing_were_calibrated(rows: int) -> None:
    words = ("pretrain.dtype=bf16", f"pretrain.batch_tokens={512 * rows}")
    found = chosen(facts(), 2, *words)
    assert found.layout == Layout(replicate=2) and "nothing was calibrated in bf16" in found.rule
    assert resolve_searched(recipe(*words), facts())[1] is None


def test_more_ranks_than_cores_take_turns() -> None:
    two, eight = (chosen(facts(), world).ranked for world in (2, 8))
    best = {
        way.layout.replicate: way.step_s for way in (*two, *eight) if way.layout.replicate == way.layout.world
    }
    assert best[8] > 0.9 * best[2]


def test_a_layout_of_the_recipe_is_left_alone_and_a_preference_still_refused() -> None:
    assert resolve_searched(recipe("parallel.layout=shard=2"), facts(), world=2)[1] is None
    with pytest.raises(RecipeError, match="prefer has no effect") as caught:
        resolve(recipe("energy.prefer=energy"), facts(), world=2)
    assert caught.value.found == 'energy.prefer = "energy" on a CPU, whose energy goes with the time'


def test_the_others_are_told_with_the_part_that_makes_them_slower() -> None:
    known = facts(made(exchanges=exchanges(all_reduce=1e-6)))
    plan = resolve(recipe(), known, world=2)
    rows = rejected_processes(chosen(known, 2), plan.shape, known)
    shards = next(row for row in rows if row.layout is not None and row.layout.shard == 2)
    assert "slower: gradients and weights show for" in shards.reason and shards.count == 2
    assert sum(row.count for row in rows) == len(chosen(known, 2).ranked) - 1
