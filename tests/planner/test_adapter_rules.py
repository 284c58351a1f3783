"""From [finetune] to adapters: what is meant, and what is refused with its reason."""

from dataclasses import replace
from typing import Any

import pytest

from bessemer.errors import RecipeError
from bessemer.formulas.adapters import ATTENTION, FEED_FORWARD
from bessemer.formulas.layout import Layout
from bessemer.formulas.shape import Adapter, ModelShape
from bessemer.planner.rules.adapter import (
    adapter_kind,
    adapter_lr,
    adapter_of,
    check_adapter_stages,
    full_lr,
)
from bessemer.recipe.schema import Finetune

DENSE = ModelShape("llama", 2, 32, 4, 2, 8, 64, 128, 64, tie_embeddings=True, qk_norm=False)
MOE = replace(DENSE, family="qwen3-moe", experts=4, experts_per_token=2, expert_ffn=16)


def made(shape: ModelShape = DENSE, **keys: Any) -> Adapter | None:
    return adapter_of(Finetune(**keys), shape)


def refused(shape: ModelShape = DENSE, **keys: Any) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        made(shape, **keys)
    return caught.value


def test_the_defaults_are_rank_16_at_twice_its_scale_on_every_linear_layer() -> None:
    assert made(method="lora") == Adapter(16, 32.0, (*ATTENTION, *FEED_FORWARD))
    assert made(method="full") is None and made() is None


def test_scale_is_alpha_over_rank_or_over_its_root() -> None:
    found = made(method="lora", lora={"rank": 4, "alpha": 8.0})
    assert found is not None and found.scale == 2.0 and replace(found, rslora=True).scale == 4.0


@pytest.mark.parametrize(
    ("method", "adapter", "kind"),
    [("dpo", "auto", "none"), ("dpo", "lora", "lora"), ("lora", "auto", "lora"), ("qlora", "auto", "qlora")],
)
def test_method_or_adapter_says_what_is_trained(method: str, adapter: str, kind: str) -> None:
    assert adapter_kind(Finetune(method=method, adapter=adapter)) == kind  # type: ignore[arg-type]


def test_linear_leaves_routed_experts_out_and_takes_shared_and_dense_layers_in() -> None:
    def targets(shape: ModelShape) -> tuple[str, ...]:
        found = made(shape, method="lora")
        assert found is not None
        return found.targets

    assert targets(MOE) == ATTENTION
    assert targets(replace(MOE, shared_ffn=8)) == (*ATTENTION, *FEED_FORWARD)
    assert targets(replace(MOE, dense_layers=1)) == (*ATTENTION, *FEED_FORWARD)


@pytest.mark.parametrize(
    ("shape", "name", "found", "fix"),
    [
        (DENSE, "q_prj", 'with "q_prj"', 'write "q_proj"'),
        (DENSE, "lm_head", "the head learns with all weights only", 'remove "lm_head"'),
        (MOE, "gate_proj", "routed experts have none", 'remove "gate_proj"'),
        (MOE, "w1", "routed experts have none", 'remove "w1"'),
        (MOE, "gate", "send tokens to other experts", 'remove "gate"'),
    ],
)
def test_a_target_that_cannot_be_is_refused_with_its_reason(
    shape: ModelShape, name: str, found: str, fix: str
) -> None:
    error = refused(shape, method="lora", lora={"targets": [name]})
    assert found in error.found and error.fix == fix and "q_proj" in error.wanted


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({"method": "lora", "adapter": "none"}, 'method = "lora" and finetune.adapter = "none"'),
        ({"method": "full", "adapter": "lora"}, 'method = "full" and finetune.adapter = "lora"'),
        ({"lora": {"rank": 4}}, "without adapters"),
        ({"method": "lora", "lora": {"base": "int8"}}, "without qlora"),
        ({"method": "lora", "lora": {"targets": []}}, "targets = []"),
    ],
)
def test_keys_that_contradict_each_other_or_have_no_effect_are_refused(
    keys: dict[str, Any], found: str
) -> None:
    assert found in refused(**keys).found


def test_a_pipeline_rank_without_anything_to_learn_is_refused() -> None:
    shape = replace(MOE, dense_layers=1, adapter=Adapter(4, 8.0, ("down_proj",)))
    check_adapter_stages(shape, Layout())
    check_adapter_stages(replace(shape, shared_ffn=8), Layout(pipeline=2))
    with pytest.raises(RecipeError, match="nothing to learn") as caught:
        check_adapter_stages(shape, Layout(pipeline=2))
    assert "layers [1] without an adapter" in caught.value.found


def test_adapters_learn_ten_times_as_fast_and_alone_at_the_usual_rate() -> None:
    assert adapter_lr(3e-5, alone=False)[0] == 3e-4 and full_lr(3e-4) == pytest.approx(3e-5)
    assert adapter_lr(3e-5, alone=True)[0] == 2e-4
