"""What an error proposes does when it is typed: every fix here is read from the error and tried."""

import re
from pathlib import Path

import pytest
from making_plans import run_plan

from bessemer.errors import RecipeError
from bessemer.formulas.layout import Layout
from bessemer.planner.machine.facts import cluster_facts
from bessemer.planner.resolve import resolve
from bessemer.recipe.load import parse

FIVE_LAYERS = 'name = "five"\n[model]\nlayers = 5\nhidden = 64\nheads = 4\n'


def refusal(*words: str, settings: tuple[str, ...] = ()) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        run_plan(*words, settings=settings)
    return caught.value


@pytest.fixture(scope="module")
def five_layers(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("recipe") / "five.toml"
    path.write_text(FIVE_LAYERS)
    return str(path)


@pytest.mark.parametrize(
    ("devices", "layout", "told"),
    [
        (8, "pipeline=8", "shard=2,pipeline=4"),
        (6, "pipeline=6", "shard=2,pipeline=3"),
        (8, "tensor=8", "shard=2,tensor=4"),
        (6, "tensor=3,pipeline=2", "shard=3,tensor=2"),
        (8, "tensor=3,pipeline=9,context=5", "tensor=2,context=4"),
        (8, "replicate=2,pipeline=4,interleave=4", "replicate=2,pipeline=4"),
        (8, "shard=8,expert=2", "shard=8"),
        (8, "shard=8,schedule=zbv", "shard=4,pipeline=2,schedule=zbv"),
        (8, "shard=8,split=1+1+3", "shard=4,pipeline=2"),
        (
            8,
            "shard=4,pipeline=2,schedule=zbv,interleave=2",
            "shard=4,pipeline=2,schedule=interleaved,interleave=2",
        ),
        (8, "tensor=2,context_kind=ulysses", "shard=2,tensor=2,context=2,context_kind=ulysses"),
        (8, "reshard=no", "shard=8,reshard=no"),
    ],
)
def test_layout_that_is_told_fills_the_cluster_that_is_planned_for(
    five_layers: str, devices: int, layout: str, told: str
) -> None:
    cluster = ("--cluster", f"{devices}xA100")
    fix = refusal(five_layers, *cluster, "--layout", layout).fix
    (found,) = re.findall(r'--layout "([^"]+)"', fix)
    assert found == told
    document, _ = run_plan(five_layers, *cluster, "--layout", found)
    assert Layout.from_json(document["training"]["layout"]).world == devices


def test_word_that_no_layout_of_so_many_devices_gives_an_effect_is_only_to_be_removed(
    five_layers: str,
) -> None:
    for devices, layout in ((4, "tensor=4,reshard=no"), (7, "shard=7,split=2+3")):
        rest, _, word = layout.partition(",")
        cluster = ("--cluster", f"{devices}xA100")
        assert refusal(five_layers, *cluster, "--layout", layout).fix == f"remove {word}"
        run_plan(five_layers, *cluster, "--layout", rest)


@pytest.mark.parametrize("layout", ["pipeline=64", "shard=64,schedule=zbv", "shard=64,interleave=2"])
def test_layout_that_is_told_for_a_shipped_recipe_plans(layout: str) -> None:
    cluster = ("--cluster", "64xH100")
    (found,) = re.findall(r'--layout "([^"]+)"', refusal("llama-8b", *cluster, "--layout", layout).fix)
    document, _ = run_plan("llama-8b", *cluster, "--layout", found)
    assert Layout.from_json(document["training"]["layout"]).world == 64


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(("hidden", "heads"), [(130, 3), (129, 3), (5, 4), (1000, 7)])
def test_shape_that_is_told_passes(family: str, hidden: int, heads: int) -> None:
    words = (f"family={family}", "layers=2", f"hidden={hidden}", f"heads={heads}")
    given = [f"model.{word}" for word in words]
    facts = cluster_facts("H100", 1)
    with pytest.raises(RecipeError) as caught:
        resolve(parse('name = "a"\n', "r", given), facts)
    (key, value) = re.findall(r"set (model\.\w+)=(\d+)", caught.value.fix)[0]
    shape = resolve(parse('name = "a"\n', "r", [*given, f"{key}={value}"]), facts).shape
    assert shape.head_dim % 2 == 0 and shape.heads == heads and abs(shape.hidden - hidden) <= heads


def test_size_that_is_set_replaces_the_shape_of_a_shipped_recipe() -> None:
    document, _ = run_plan("llama-8b", "--cluster", "8xH100", settings=("model.size=1B",))
    assert document["model"]["params"] == pytest.approx(1e9, rel=0.1)
    sized = ("model.size=auto", "pretrain.steps=auto", "budget.usd=1000")
    assert run_plan("llama-8b", "--cluster", "8xH100", settings=sized)[0]["model"]["params"] < 4e9


def test_one_hour_is_told_as_one() -> None:
    for words in (("budget.hours=1",), ("budget.device_hours=8",), ("pretrain.hours=1",)):
        settings = ("model.size=1B", "pretrain.steps=auto", *words)
        _, text = run_plan("llama-8b", "--cluster", "8xH100", settings=settings)
        assert re.search(r"\b1 hour\b", text) and not re.search(r"(?<![\d.])1 (device-)?hours\b", text)
