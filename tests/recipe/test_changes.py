import pytest

from bessemer.errors import RecipeError
from bessemer.recipe.changes import check_change, differences
from bessemer.recipe.keys import all_keys, hash_of, leaves
from bessemer.recipe.load import parse
from bessemer.recipe.schema import Recipe

TEXT = """name = "a"
[model]
size = "30M"
[[data.source]]
name = "x"
kind = "text"
path = "x.txt"
[pretrain]
steps = 100
[finetune]
data = { path = "t.jsonl" }
"""
FORK = "bessemer pretrain r.toml --from runs/a --run runs/b"


def recipe(*overrides: str) -> Recipe:
    return parse(TEXT, "r", list(overrides))


@pytest.mark.parametrize(
    "override",
    ["pretrain.save_every=7", "pretrain.micro_batch=2", "pretrain.compile=false", "budget.hours=3",
     "parallel.layout='shard=2'", "pretrain.keep=5", "name=b", "pretrain.steps=200", "evaluate.examples=8"],
)  # fmt: skip
def test_key_of_execution_length_or_name_may_change(override: str) -> None:
    changes = check_change(recipe(), recipe(override), FORK)
    assert [change.key for change in changes] == [override.split("=")[0]]


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("pretrain.steps=50", "100 in the run, 50 now"),
        ("pretrain.lr=1e-3", '"auto" in the run, 0.001 now'),
        ("model.size=40M", '"30M" in the run, "40M" now'),
        ("seed=1", "0 in the run, 1 now"),
        ('data.source.0.licence="MIT"', 'nothing in the run, "MIT" now'),
        ("model.context=512", "1024 in the run, 512 now"),
        ("finetune.epochs=3", "2 in the run, 3 now"),
    ],
)
def test_anything_else_is_refused_with_key_values_and_the_fork(override: str, found: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check_change(recipe(), recipe(override), FORK)
    assert f"`{override.split('=')[0]}`" in caught.value.problem
    assert caught.value.found == found
    if override.startswith("model.size"):  # other weights: a run of its own
        assert f"`{FORK.split(' --from')[0]} --run DIR --set {override}" in caught.value.fix.replace('"', "")
    else:
        verb = "finetune" if override.startswith("finetune.") else "pretrain"
        assert FORK.replace("pretrain", verb) in caught.value.fix


def test_source_that_is_added_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"data\.source\.1\.name"):
        check_change(recipe(), recipe("data.source.1.name=y", "data.source.1.kind=text"), FORK)


def test_stage_that_has_not_begun_may_change_freely() -> None:
    changed = recipe("finetune.epochs=3")
    assert check_change(recipe(), changed, FORK, stages=("pretrain",))
    without = parse(TEXT.split("[finetune]")[0], "r", [])
    assert check_change(without, recipe(), FORK, stages=("pretrain",))


def test_length_that_was_automatic_may_be_raised_above_what_it_came_to() -> None:
    auto = recipe("pretrain.steps=auto")
    assert check_change(auto, recipe("pretrain.steps=150"), FORK, planned_steps=100)
    with pytest.raises(RecipeError):
        check_change(auto, recipe("pretrain.steps=50"), FORK, planned_steps=100)
    with pytest.raises(RecipeError):
        check_change(auto, recipe("pretrain.steps=50"), FORK)
    tokens = recipe("pretrain.steps=auto", "pretrain.tokens=2M")
    assert check_change(auto, tokens, FORK, planned_tokens=1_000_000)


def test_equal_recipes_do_not_differ() -> None:
    assert differences(recipe(), recipe()) == []
    assert check_change(recipe(), recipe(), FORK) == []


def test_every_key_says_what_it_affects() -> None:
    assert {key.affects for key in leaves(recipe())} == {
        "data",
        "mixture",
        "model",
        "learning",
        "execution",
        "nothing",
    }
    assert {"pretrain.lr", "data.source.path", "model.from", "finetune.data.path"} <= set(all_keys())


def test_hash_follows_the_keys_that_affect_it_and_no_others() -> None:
    base = hash_of(recipe(), {"model"})
    assert len(base) == 32
    assert hash_of(recipe("pretrain.lr=1e-3", "name=b"), {"model"}) == base
    assert hash_of(recipe("model.size=40M"), {"model"}) != base
    learning = hash_of(recipe(), {"learning"}, sections=("pretrain",))
    assert hash_of(recipe("finetune.epochs=3"), {"learning"}, sections=("pretrain",)) == learning
    assert hash_of(recipe("finetune.epochs=3"), {"learning"}) != hash_of(recipe(), {"learning"})
