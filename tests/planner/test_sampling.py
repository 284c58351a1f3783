"""Time of sampled answers: counted against real sampling, and part of hours and budgets."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from making_plans import run_plan
from test_task_plan import planned
from torch.utils.flop_counter import FlopCounterMode

from bessemer.formulas import objective as objectives
from bessemer.formulas.flops import attention_flops_per_token
from bessemer.formulas.objective import Objective, Rollouts
from bessemer.formulas.rollout_time import LAYER_START_S, chunk_work, chunks
from bessemer.formulas.shape import Adapter, ModelShape
from bessemer.model.decoder import Decoder, KeyValueCache
from bessemer.model.generate import sample
from bessemer.model.init import initialise
from bessemer.planner.layout import parse_layout
from bessemer.planner.machine.facts import cluster_facts
from bessemer.planner.plan import Estimate, StagePlan
from bessemer.planner.sampling import round_time
from bessemer.planner.sizing.budget import later_tokens
from bessemer.recipe.schema import Finetune, Model, Recipe

SHAPE = ModelShape("llama", 2, 64, 4, 2, 16, 128, 96, 64, tie_embeddings=False, qk_norm=False)
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ROLLOUTS = Rollouts(rounds=3, prompts=3, group_size=2, answer_tokens=10, prompt_tokens=7, answers_per_step=6)
SAMPLED = Objective("distill", rollouts=ROLLOUTS)
TFLOPS = Estimate(100.0, 80.0, 120.0, "modelled")


def made(shape: ModelShape) -> Decoder:
    with torch.device("meta"):
        model = Decoder(shape, torch.float32)
    initialise(model, shape, 0, "cpu")
    return model


@pytest.mark.parametrize("adapter", [None, Adapter(8, 16.0, LINEAR)])
def test_flops_of_reading_and_drawing_are_those_that_torch_counts(adapter: Adapter | None) -> None:
    shape = replace(SHAPE, adapter=adapter)
    rows, prompt, answer = ROLLOUTS.answers, ROLLOUTS.prompt_tokens, ROLLOUTS.answer_tokens
    in_place = {torch.ops.aten.addmm_: _product}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        uniform = torch.rand((rows, answer), dtype=torch.float64)
        sample(
            made(shape), [[1] * prompt] * rows, max_tokens=answer, eos_id=None, temperature=1.0,
            uniform_BT=uniform,
        )  # fmt: skip
    found = counter.get_flop_counts()["Global"].items()
    counted = sum(flops for operator, flops in found if "mm" in str(operator) and "bmm" not in str(operator))
    work = chunk_work(shape, SAMPLED, "fp32")
    attention = prompt * attention_flops_per_token(shape, prompt / 2)
    attention += (answer - 1) * attention_flops_per_token(shape, prompt + answer / 2)
    predicted = work.forward_flops + work.steps * work.step_flops - rows * attention
    assert predicted == counted


def _product(added: list[int], one: list[int], other: list[int], **_: object) -> int:
    return 2 * one[0] * one[1] * other[1]


def test_bytes_of_a_step_are_the_weights_and_the_cache_half_full_of_answers() -> None:
    model, rows = made(SHAPE), ROLLOUTS.answers
    tokens = ROLLOUTS.prompt_tokens + ROLLOUTS.answer_tokens // 2
    assert model.model.embed_tokens is not None
    weights = sum(weight.nbytes for weight in model.parameters()) - model.model.embed_tokens.weight.nbytes
    cache = KeyValueCache(SHAPE, rows, tokens, torch.empty(0))
    held = sum(value.nbytes for value in [*cache.keys, *cache.values])
    work = chunk_work(SHAPE, SAMPLED, "fp32")
    assert (work.weight_bytes, work.other_bytes) == (weights, held + 48 * rows * SHAPE.vocab)
    assert work.steps == 9 and work.start_s == 2 * LAYER_START_S


def test_who_is_asked_about_answers_adds_forward_passes() -> None:
    alone = chunk_work(SHAPE, SAMPLED, "fp32").forward_flops
    grpo = chunk_work(SHAPE, replace(SAMPLED, kind="grpo"), "fp32").forward_flops
    both = chunk_work(SHAPE, replace(SAMPLED, kind="grpo", asked=SHAPE), "fp32").forward_flops
    assert both - grpo == grpo - alone > 0
    assert chunk_work(SHAPE, replace(SAMPLED, asked=SHAPE), "fp32").forward_flops == grpo


def test_chunks_are_those_that_rollouts_cut() -> None:
    for prompts, group in ((3, 2), (64, 2), (65, 2), (5, 200), (1000, 8)):
        rollouts = replace(ROLLOUTS, prompts=prompts, group_size=group)
        each = max(1, objectives.CHUNK_ANSWERS // group)
        assert chunks(Objective("grpo", rollouts=rollouts)) == len(range(0, prompts, each))


def test_ranks_share_chunks_and_bytes_or_flops_bind() -> None:
    objective = Objective("grpo", rollouts=replace(ROLLOUTS, prompts=1024, group_size=8))
    sizes = {"steps": 3, "context": 64, "batch_rows": 4, "micro_batch": 1}
    stage = StagePlan(**sizes, lr=1e-3, dtype="bf16", objective=objective)
    one = round_time(SHAPE, stage, cluster_facts("H100-SXM5-80GB", 1), TFLOPS)
    layout = parse_layout("shard=8")
    eight = round_time(SHAPE, replace(stage, layout=layout), cluster_facts("H100-SXM5-80GB", 8), TFLOPS)
    assert one.value is not None and one.low is not None and one.high is not None
    assert eight.value == pytest.approx(one.value / 8) and one.low < one.value < one.high
    assert one.basis == "assumed"
    work = chunk_work(SHAPE, stage.objective, "bf16")
    read_s = (work.weight_bytes + work.other_bytes) / 1e9
    assert work.seconds(1e30, 1e9) == pytest.approx(work.steps * (read_s + work.start_s))
    whole = work.forward_flops + work.steps * work.step_flops
    assert work.seconds(1e9, 1e30) == pytest.approx(whole / 1e9 + work.steps * work.start_s)


METHODS = [("finetune.method=grpo",), ("finetune.method=distill", "finetune.on_policy=true")]


@pytest.mark.parametrize("method", METHODS)
def test_hours_of_a_plan_have_the_rounds_in_them(method: tuple[str, ...], tmp_path: Path) -> None:
    document = planned(tmp_path, *method, "finetune.answer_tokens=24", "finetune.rounds=2")
    row, steps = document["predicted"], document["training"]["steps"]
    seconds = steps * row["step_time_s"]["value"] + 2 * row["sampling_time_s"]["value"]
    assert row["hours"]["value"] * 3600 == pytest.approx(seconds / row["goodput"]["value"])
    assert row["sampling_time_s"]["value"] > 0 and row["sampling_time_s"]["basis"] in ("modelled", "assumed")
    assert "sampling_time_s" not in planned(tmp_path)["predicted"]


def test_answers_twice_as_long_are_drawn_twice_as_long(tmp_path: Path) -> None:
    short, long = (
        planned(tmp_path, *METHODS[0], f"finetune.answer_tokens={tokens}")["predicted"]["sampling_time_s"]
        for tokens in (8, 16)
    )
    assert 1.8 < long["value"] / short["value"] < 2.2


def test_a_budget_counts_the_rounds_of_the_fine_tuning_after_pre_training() -> None:
    def tokens(**section: Any) -> float:
        return later_tokens(Recipe(name="r", model=Model(context=64), finetune=Finetune(epochs=1, **section)))

    assert tokens() == 64_000
    assert tokens(method="grpo", group_size=4, answer_tokens=16) == 1000 * 2 * 4 * 32
    assert tokens(method="distill", on_policy=True, answer_tokens=16) == 1000 * 2 * 32
    assert tokens(method="distill") == 64_000


def test_a_plan_on_a_budget_tells_the_hours_of_the_rounds(tmp_path: Path) -> None:
    words = (*METHODS[0], "finetune.answer_tokens=24", "budget.hours=100")
    document = planned(tmp_path, *words)
    assert document["budget"][0]["takes"]["value"] == document["predicted"]["hours"]["value"]
    _, text = run_plan(str(tmp_path / "task.toml"), settings=words)
    assert "sampling_time_s" in text
