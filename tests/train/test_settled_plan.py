"""The plan of a run that goes on: what is told of it is what it does."""

from dataclasses import replace
from pathlib import Path

import pytest

from bessemer.durable import write_json
from bessemer.hardware import GIB, Ceilings
from bessemer.planner.machine.facts import Facts
from bessemer.planner.plan import Plan
from bessemer.planner.resolve import resolve
from bessemer.recipe.load import LoadedRecipe, parse
from bessemer.recipe.write import recipe_text
from bessemer.train.settle import allowed_changes, settle_plan

FACTS = Facts(
    "a CPU", "cpu", cores=2, vocab=4096, memory_bytes=16 * GIB,
    ceilings=Ceilings("a CPU", 2.0, 0.4, 20.0, 2, "2.13.0+cpu", "2026-01-01"),
)  # fmt: skip
WORDS = ("pretrain.steps=100", "pretrain.batch_tokens=16384", "model.context=512", "model.size=40M")


def loaded(*overrides: str) -> LoadedRecipe:
    recipe = parse('name = "a"\n', "r.toml", [*WORDS, "pretrain.async_save=false", *overrides])
    return LoadedRecipe(recipe, Path(), "", "r.toml")


def told(plan: Plan) -> dict[str, object]:
    return {row.key: row.value for row in plan.derived}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Begun by two processes, whose memory holds one of them with everything recomputed."""
    (tmp_path / "pretrain").mkdir()
    write_json(tmp_path / "pretrain/stage.json", {})
    recipe = loaded("pretrain.micro_batch=8").recipe
    plan = resolve(recipe, replace(FACTS, memory_bytes=round(3.6 * GIB)), world=2)
    write_json(tmp_path / "plan.json", plan.to_json())
    return tmp_path


def test_recomputation_that_was_chosen_is_told(run: Path) -> None:
    plan = settle_plan(loaded("pretrain.micro_batch=8"), run, FACTS, world=2)
    assert told(plan)["pretrain.recompute"] == plan.pretrain.recompute == "full"
    assert told(plan)["parallel.layout"] == str(plan.pretrain.layout)


def test_what_was_decided_for_another_layout_is_no_longer_told(run: Path) -> None:
    for world, words in ((4, ()), (2, ("parallel.layout=shard=2",))):
        plan = settle_plan(loaded("pretrain.micro_batch=8", *words), run, FACTS, world=world)
        assert plan.pretrain.layout.world == world and plan.pretrain.recompute == "none"
        assert not {"parallel.layout", "pretrain.recompute"} & told(plan).keys()
        assert told(plan)["pretrain.warmup"] == plan.pretrain.warmup


def test_recomputation_that_the_recipe_no_longer_asks_for_ends(run: Path) -> None:
    """Also under a layout that was searched, whose own choice would stay: what the console says is done."""
    asked, now = loaded("pretrain.micro_batch=8", "pretrain.recompute=full"), loaded("pretrain.micro_batch=8")
    plan = resolve(asked.recipe, FACTS, world=2)
    assert plan.pretrain.recompute == "full" and plan.pretrain.layout.world == 2
    write_json(run / "plan.json", plan.to_json())
    (run / "recipe.toml").write_text(recipe_text(asked.recipe))
    changes = allowed_changes(now, run)
    assert [(change.key, change.new) for change in changes] == [("pretrain.recompute", "none")]
    found = settle_plan(now, run, FACTS, world=2, changes=changes)
    assert found.pretrain.recompute == "none" and found.pretrain.layout == plan.pretrain.layout
