"""The plan of a recipe that only fine-tunes: what it would train by, before its data is prepared."""

from pathlib import Path
from typing import Any

import pytest
from making_plans import run_plan

from bessemer.errors import RecipeError
from bessemer.planner.rules.rollout import rollouts_of
from bessemer.planner.stage import Rules
from bessemer.recipe.schema import Finetune

SIZE = {"layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "ffn": 128, "context": 64}


def planned(folder: Path, *settings: str) -> dict[str, Any]:
    lines = ["[model]", 'family = "llama"', *(f"{key} = {value}" for key, value in SIZE.items())]
    lines += ["tie_embeddings = false", "[tokenizer]", "vocab = 512"]
    lines += ["[cluster]", 'device = "h100-sxm"', "devices = 1", "[finetune]", "batch_tokens = 256"]
    lines += ["[finetune.data]", 'path = "task.jsonl"']
    recipe = folder / "task.toml"
    recipe.write_text("\n".join(['name = "task"', *lines]))
    return run_plan(str(recipe), settings=settings)[0]


def derived(document: dict[str, Any]) -> dict[str, Any]:
    return {row["key"]: row["value"] for row in document["derived"]}


@pytest.mark.parametrize(
    "method", [("finetune.method=grpo",), ("finetune.method=distill", "finetune.on_policy=true")]
)
def test_rounds_of_sampled_answers_are_planned_with_assumed_prompts(
    method: tuple[str, ...], tmp_path: Path
) -> None:
    found = planned(tmp_path, *method, "finetune.answer_tokens=24", "finetune.rounds=2", "finetune.epochs=1")
    row = derived(found)
    assert (row["finetune.prompts"], row["finetune.prompt_tokens"]) == (1000, 24)
    # A row of 64 tokens holds one answer to each of two prompts of 24; four rows a step, 500 prompts a round.
    answers = 500 * (8 if "grpo" in method[0] else 1)
    assert row["finetune.steps"] == 2 * -(-answers // 4)


def test_adapters_under_preferences_are_planned_at_the_rate_that_they_train_with(tmp_path: Path) -> None:
    found = planned(tmp_path, "finetune.method=dpo", "finetune.adapter=lora")
    assert derived(found)["finetune.lr"] == pytest.approx(1e-5)
    assert derived(planned(tmp_path, "finetune.method=lora"))["finetune.lr"] == pytest.approx(2e-4)


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        (("finetune.method=reward",), 1),
        (("finetune.method=classify",), 2),
        (("finetune.method=classify", "finetune.class_weights={ ill = 3.0 }"), 2),
        (("finetune.method=classify", 'finetune.data.labels=["a", "b", "c"]'), 3),
    ],
)
def test_a_head_of_classes_is_counted_in_place_of_one_of_words(
    settings: tuple[str, ...], labels: int, tmp_path: Path
) -> None:
    words, found = planned(tmp_path), planned(tmp_path, *settings)
    assert words["model"]["params"] - found["model"]["params"] == (512 - labels) * SIZE["hidden"]
    assert ("finetune.data.labels" in derived(found)) == (labels == 2)


def test_a_task_without_prompts_is_refused_and_not_a_crash() -> None:
    with pytest.raises(RecipeError, match="nothing to ask"):
        rollouts_of(Finetune(method="grpo"), [], 128, Rules("finetune"))


def test_a_rank_of_a_fine_tuning_with_adapters_is_rehearsed(tmp_path: Path) -> None:
    planned(tmp_path)  # writes the recipe
    words = (str(tmp_path / "task.toml"), "--cluster", "2xH100", "--layout", "tensor=2", "--rehearse")
    settings = ("finetune.method=dpo", "finetune.adapter=qlora", "finetune.lora.rank=4")
    document, text = run_plan(*words, "--rank", "1", settings=settings)
    rehearsal = document["rehearsal"]
    name = "model.layers.0.self_attn.q_proj"
    # Half of the rows of 64 columns: a block of NF4 and its scale. Of the adapter A is whole, B is half.
    assert rehearsal["parameters"][f"{name}.weight"] == (32, 36)
    assert rehearsal["parameters"][f"{name}.lora_A.weight"] == (4, 64)
    assert rehearsal["parameters"][f"{name}.lora_B.weight"] == (32, 4)
    assert rehearsal["peak_bytes"] > 0 and rehearsal["exchanges"] == rehearsal["exchanges_of_a_step"]
    assert "with the loss of next_token in place of dpo" in text
