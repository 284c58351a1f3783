"""Recipes with experts: what a plan takes from them, what contradicts itself, what is not trained."""

from dataclasses import replace

import pytest

from bessemer.errors import RecipeError
from bessemer.formulas.huggingface.config import config_from_shape, shape_from_config
from bessemer.planner.limits import untrainable
from bessemer.planner.machine.facts import cluster_facts
from bessemer.planner.resolve import resolve
from bessemer.recipe.load import load, parse
from bessemer.recipe.schema import Recipe

FACTS = replace(cluster_facts("H100", 1), vocab=512, train_tokens=10_000_000)
DENSE = ["model.layers=4", "model.hidden=64", "model.heads=4", "model.context=128", "pretrain.steps=10"]
ROUTED = [*DENSE, "model.experts=8", "model.experts_per_token=2", "model.expert_ffn=48"]
FAMILIES = {
    "qwen3-moe": [*ROUTED, "model.family=qwen3-moe"],
    "mixtral": [*ROUTED, "model.family=mixtral"],
    "glm4-moe": [*ROUTED, "model.family=glm4-moe", "model.router=sigmoid_bias", "model.shared_ffn=48",
                 "model.dense_layers=1"],
}  # fmt: skip


def recipe(overrides: list[str]) -> Recipe:
    return parse('name = "a"\n', "r.toml", overrides)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_with_experts_are_trained_and_have_a_hugging_face_form(family: str) -> None:
    written = recipe(FAMILIES[family])
    shape = resolve(written, FACTS).shape
    assert (shape.family, shape.experts, shape.qk_norm) == (family, 8, family == "qwen3-moe")
    assert untrainable(written, shape) is None
    again = shape_from_config(config_from_shape(shape, torch_dtype="float32"), context=shape.context)
    assert replace(again, max_positions=None) == shape


def test_latent_attention_is_refused_with_the_family_that_works() -> None:
    written = load("deepseek-style-671b", []).recipe
    refusal = untrainable(written, resolve(written, cluster_facts("H100", 2048)).shape)
    assert refusal is not None
    found, wanted, fix = refusal
    assert "deepseek-v3" in found and "glm4-moe" in wanted and "glm4-moe" in fix


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        ([*ROUTED, "model.family=glm4-moe", "model.shared_ffn=48"], 'router = "softmax"'),
        ([*ROUTED, "model.family=glm4-moe", "model.router=sigmoid_bias"], "shared_ffn = None"),
        ([*FAMILIES["glm4-moe"], "model.shared_ffn=50"], "shared_ffn = 50"),
        ([*FAMILIES["glm4-moe"], "model.dense_layers=4"], "dense_layers = 4, layers = 4"),
        ([*FAMILIES["mixtral"], "model.dense_layers=1"], "dense_layers = 1"),
        ([*FAMILIES["mixtral"], "model.qk_norm=true"], "qk_norm = true"),
        ([*FAMILIES["qwen3-moe"], "model.shared_ffn=48"], "shared_ffn = 48"),
        ([*FAMILIES["qwen3-moe"], "model.router=sigmoid_bias"], 'router = "sigmoid_bias"'),
        ([*DENSE, "pretrain.router_balance=0.01"], "router_balance = 0.01"),
    ],
)
def test_contradictions_about_experts_are_errors(overrides: list[str], found: str) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve(recipe(overrides), FACTS)
    assert found in caught.value.found


def test_weight_of_the_balance_reaches_the_plan() -> None:
    plan = resolve(recipe([*FAMILIES["mixtral"], "pretrain.router_balance=0.02"]), FACTS)
    assert plan.pretrain.router_balance == 0.02
    assert resolve(recipe(FAMILIES["mixtral"]), FACTS).pretrain.router_balance == 0.001
