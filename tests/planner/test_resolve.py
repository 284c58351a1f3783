import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bessemer.errors import RecipeError, RefusedError
from bessemer.formulas.parameters import total_params
from bessemer.formulas.scaling.law import BESIROGLU
from bessemer.formulas.shape import ModelShape
from bessemer.hardware import GIB, Ceilings
from bessemer.planner.finetuning import resolve_finetune
from bessemer.planner.limits import check_start, check_trainable, untrainable
from bessemer.planner.machine.facts import Facts, cluster_facts, parse_cluster
from bessemer.planner.plan import Plan
from bessemer.planner.resolve import resolve
from bessemer.planner.rules.stage import check_micro_batch
from bessemer.planner.sizing.budget import check_budget, uses
from bessemer.recipe.load import load, parse, shipped_names
from bessemer.recipe.schema import Recipe

CEILINGS = Ceilings("a CPU", 2.0, 0.4, 20.0, 2, "2.13.0", "2026-01-01")
CPU = Facts(
    "a CPU", "cpu", cores=2, memory_bytes=16 * GIB, ceilings=CEILINGS, train_tokens=10_000_000, vocab=8000,
    bos_id=0, eos_id=1,
)  # fmt: skip


def recipe(*overrides: str) -> Recipe:
    return parse('name = "a"\n', "r.toml", list(overrides))


def refusal(*overrides: str, facts: Facts = CPU) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        resolve(recipe(*overrides), facts)
    return caught.value


def test_name_alone_is_a_recipe_and_every_derived_value_has_its_rule() -> None:
    plan = resolve(recipe(), CPU)
    assert total_params(plan.shape) == pytest.approx(30e6, rel=0.1)
    assert plan.shape.vocab == 8000 and (plan.shape.bos_id, plan.shape.eos_id) == (0, 1)
    derived = {row.key: row for row in plan.derived}
    stage_keys = {
        "steps",
        "batch_tokens",
        "lr",
        "warmup",
        "micro_batch",
        "dtype",
        "validate_every",
        "save_every",
    }
    model_keys = {"size", "vocab", "tie_embeddings"}
    assert set(derived) == {f"pretrain.{key}" for key in stage_keys} | {f"model.{key}" for key in model_keys}
    assert all(row.rule for row in plan.derived)
    assert derived["pretrain.lr"].value == plan.pretrain.lr
    assert derived["pretrain.batch_tokens"].value == plan.pretrain.batch_tokens


def test_given_values_are_taken_as_they_are() -> None:
    given = ["pretrain.steps=40", "pretrain.batch_tokens=8192", "pretrain.lr=1e-3", "pretrain.warmup=3",
             "pretrain.micro_batch=2", "pretrain.dtype=fp32", "pretrain.validate_every=9",
             "pretrain.save_every=11", "pretrain.grad_clip=off", "model.context=512"]  # fmt: skip
    stage = resolve(recipe(*given), CPU).pretrain
    assert (stage.steps, stage.batch_rows, stage.lr, stage.warmup) == (40, 16, 1e-3, 3)
    assert (stage.micro_batch, stage.dtype, stage.validate_every, stage.save_every) == (2, "fp32", 9, 11)
    assert stage.grad_clip is None and stage.decay_steps == 8 and stage.context == 512


def test_plan_survives_json() -> None:
    plan = resolve(recipe("pretrain.steps=10"), CPU)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_name_never_influences_a_number() -> None:
    one, other = resolve(recipe(), CPU), resolve(recipe("name=b"), CPU)
    assert replace(one, name="b") == other


@pytest.mark.parametrize("name", shipped_names())
def test_every_shipped_recipe_resolves_and_predicts(name: str) -> None:
    devices = 2048 if any(size in name for size in ("405b", "671b", "1.7t")) else 128
    plan = resolve(load(name, []).recipe, cluster_facts("H100", devices))
    assert plan.pretrain.layout.world == devices
    assert all(plan.predicted[key].value for key in ("hours", "usd", "memory_gib", "goodput"))
    assert plan.predicted["hours"].basis in ("assumed", "modelled")


def test_steps_follow_from_tokens() -> None:
    stage = resolve(recipe("pretrain.tokens=2M", "pretrain.batch_tokens=8192"), CPU).pretrain
    assert stage.steps == 245 and stage.batch_tokens == 8192


def test_steps_follow_from_the_budget_and_fill_it_but_for_a_tenth() -> None:
    plan = resolve(recipe("budget.hours=0.5"), replace(CPU, train_tokens=None))
    assert plan.predicted["hours"].value == pytest.approx(0.9 * 0.5, rel=0.05)
    half = resolve(recipe("budget.hours=0.5", "budget.device_hours=0.25"), replace(CPU, train_tokens=None))
    assert half.predicted["hours"].value == pytest.approx(0.9 * 0.25, rel=0.05)


def test_money_is_turned_into_hours_at_the_given_price() -> None:
    plan = resolve(
        recipe("budget.usd=10", "cluster.usd_per_device_hour=2.0"),
        replace(cluster_facts("H100", 1), vocab=8000),
    )
    assert plan.predicted["usd"].value == pytest.approx(0.9 * 10, rel=0.05)


def test_automatic_length_stops_at_four_epochs_and_else_at_compute_optimal() -> None:
    short = resolve(recipe(), CPU)
    assert short.pretrain.steps * short.pretrain.batch_tokens == pytest.approx(40e6, rel=0.02)
    free = resolve(recipe(), replace(CPU, train_tokens=None))
    tokens = free.pretrain.steps * free.pretrain.batch_tokens
    assert tokens == pytest.approx(BESIROGLU.best_tokens(free.params), rel=0.01)


def test_micro_batch_divides_the_batch_and_shrinks_until_it_fits() -> None:
    stage = resolve(recipe("pretrain.batch_tokens=32768", "pretrain.steps=10"), CPU).pretrain
    assert stage.batch_rows % stage.micro_batch == 0 and stage.micro_batch * stage.context <= 4096
    small = replace(CPU, memory_bytes=int(1.9 * GIB))
    squeezed = resolve(recipe("pretrain.batch_tokens=32768", "pretrain.steps=10"), small)
    assert squeezed.pretrain.micro_batch < stage.micro_batch
    check_start(recipe(), squeezed.shape, squeezed.pretrain, small, None)


@pytest.mark.parametrize(
    ("rows", "size"),
    [(1, 1), (3, 3), (4, 4), (5, 3), (6, 3), (8, 4), (10, 2), (13, 2), (16, 4), (17, 3), (31, 4)],
)
def test_micro_batch_leaves_the_fewest_rows_empty_and_is_never_tiny(rows: int, size: int) -> None:
    given = recipe(f"pretrain.batch_tokens={1024 * rows}", "pretrain.steps=10")
    stage = resolve(given, CPU).pretrain
    assert stage.micro_batch == size
    most = min(rows, 4)
    assert -rows % size == min(-rows % other for other in range((most + 1) // 2, most + 1))


def test_micro_batch_beyond_the_batch_is_refused_by_the_name_of_its_section() -> None:
    check_micro_batch(8, 8, "finetune")
    with pytest.raises(RecipeError, match="larger than the batch") as caught:
        check_micro_batch(9, 8, "finetune")
    assert caught.value.fix.startswith("set finetune.micro_batch=8,")


def test_slow_bf16_cpu_trains_in_fp32_and_an_accelerator_in_bf16() -> None:
    slow = replace(CPU, ceilings=replace(CEILINGS, matmul_bf16_tflops=0.2))
    assert resolve(recipe(), slow).pretrain.dtype == "fp32"
    assert resolve(recipe(), CPU).pretrain.dtype == "bf16"
    assert resolve(recipe(), cluster_facts("H100", 1)).pretrain.dtype == "bf16"


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        (["model.size=30M", "model.layers=3"], "model.size and model.layers"),
        (["model.layers=3"], "layers"),
        (["model.layers=2", "model.hidden=128", "model.heads=4", "model.kv_heads=3"], "kv_heads = 3"),
        (["model.layers=2", "model.hidden=130", "model.heads=4"], "hidden = 130"),
        (["model.layers=2", "model.hidden=12", "model.heads=4"], "head_dim = 3"),
        (["model.qk_norm=true"], "qk_norm"),
        (["model.experts=4"], 'experts with family = "llama"'),
        (["model.family=mixtral"], "without experts"),
        (["model.size=100K"], "the nearest has"),
        (["pretrain.steps=5", "pretrain.tokens=2M"], "pretrain.steps = 5"),
        (["pretrain.batch_tokens=1000"], "context = 1024"),
        (["pretrain.batch_tokens=2048", "pretrain.micro_batch=4"], "micro_batch = 4"),
        (["pretrain.steps=10", "pretrain.warmup=10"], "warmup = 10"),
        (["pretrain.steps=10", "pretrain.warmup=9"], "2 steps of decay"),
        (["pretrain.schedule=cosine", "pretrain.decay=0.1"], 'decay = 0.1 with schedule = "cosine"'),
        (["pretrain.final_lr=0.2"], "final_lr"),
        (["tokenizer.vocab=4096", "tokenizer.path=t.json"], "tokenizer.vocab"),
        (["energy.prefer=cost"], "prefer"),
        (["budget.usd=5"], "budget.usd"),
        (["cluster.region=Atlantis"], "Atlantis"),
        (["model.context=20000000"], "10000000 training tokens"),
    ],
)
def test_contradiction_and_setting_without_effect_are_errors(overrides: list[str], found: str) -> None:
    assert found in refusal(*overrides).found


def test_layout_of_one_process_may_be_written_out() -> None:
    assert resolve(recipe("parallel.layout='shard=1, tensor=1'"), CPU).layout["tensor"] == 1


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        (["pretrain.optimizer=muon"], "muon"),
        (["model.family=gpt2"], "gpt2"),
        (
            [
                "model.family=deepseek-v3",
                "model.experts=4",
                "model.experts_per_token=2",
                "model.expert_ffn=64",
                "model.layers=2",
                "model.hidden=64",
                "model.heads=2",
            ],
            "deepseek-v3",
        ),
        (["model.family=phi3", "model.rope_scaling={rope_type='llama3'}"], "llama3"),
        (["model.norm=layer"], "norm"),
        (["model.rope_scaling={rope_type='yarn'}"], "yarn"),
    ],
)
def test_what_cannot_be_trained_yet_is_planned_and_then_refused(overrides: list[str], found: str) -> None:
    given = recipe(*overrides)
    plan = resolve(given, CPU)
    with pytest.raises(RecipeError, match=found):
        check_trainable(given, plan.shape)


def test_plain_recipe_is_trainable() -> None:
    assert untrainable(recipe(), resolve(recipe(), CPU).shape) is None


def test_run_beyond_memory_is_refused_with_numbers_and_a_fix_that_fits() -> None:
    given = recipe("pretrain.micro_batch=32", "pretrain.batch_tokens=32768", "pretrain.steps=10")
    small = replace(CPU, memory_bytes=3 * GIB)
    plan = resolve(given, small)
    with pytest.raises(RefusedError) as caught:
        check_start(given, plan.shape, plan.pretrain, small, None)
    assert "GiB predicted, 3.00 GiB" in caught.value.found
    rows = int(caught.value.fix.split("micro_batch=")[1].split(":")[0])
    fitting = resolve(
        recipe(f"pretrain.micro_batch={rows}", "pretrain.batch_tokens=32768", "pretrain.steps=10"), small
    )
    check_start(given, fitting.shape, fitting.pretrain, small, None)


def test_run_beyond_its_budget_is_refused() -> None:
    given = recipe("pretrain.steps=1000", "budget.hours=0.01", "budget.usd=1e9",
                   "cluster.usd_per_device_hour=1.0")  # fmt: skip
    plan = resolve(recipe("pretrain.steps=1000"), CPU)
    for start in (
        lambda: resolve(given, CPU),
        lambda: check_budget(uses(given, CPU, plan.predicted), plan.pretrain.steps),
    ):
        with pytest.raises(RefusedError, match="does not fit its budget") as caught:
            start()
        assert "budget.hours = 0.01, which binds" in caught.value.wanted
        enough = int(caught.value.fix.split("(")[1].split()[0])
        resolve(recipe(f"pretrain.steps={enough}", "budget.hours=0.01"), CPU)


def test_deterministic_is_always_so_on_a_cpu_and_refused_on_an_accelerator() -> None:
    given = recipe("deterministic=true", "pretrain.steps=10")
    gpu = replace(cluster_facts("H100", 1), vocab=8000)
    for facts in (CPU, gpu):
        plan = resolve(given, facts)
        check_start(recipe(), plan.shape, plan.pretrain, facts, None)
    check_start(given, plan.shape, plan.pretrain, CPU, None)
    with pytest.raises(RefusedError, match="not built yet") as caught:
        check_start(given, plan.shape, plan.pretrain, gpu, None)
    assert "H100" in caught.value.found


def test_shape_of_a_source_is_taken_whole_and_other_keys_beside_it_refused() -> None:
    source = ModelShape("qwen3", 2, 128, 4, 2, 32, 320, 8192, 512, tie_embeddings=True, qk_norm=True)
    facts = replace(CPU, source_shape=source)
    assert resolve(recipe("model.from=x"), facts).shape == source
    assert "model.layers" in refusal("model.from=x", "model.layers=2", facts=facts).found
    assert "qwen3" in refusal("model.from=x", "model.family=llama", facts=facts).found
    assert "9000 words" in refusal("model.from=x", facts=replace(facts, vocab=9000)).found


def test_finetune_runs_its_epochs_at_a_tenth_of_the_rate() -> None:
    given = parse('name = "a"\n[finetune]\nepochs = 3\n', "r", [])
    plan = resolve(given, CPU)
    stage, derived = resolve_finetune(given, plan.shape, 1000, CPU, plan.pretrain)
    assert stage.steps * stage.batch_rows >= 3000 > (stage.steps - 1) * stage.batch_rows
    assert stage.lr == pytest.approx(plan.pretrain.lr / 10, rel=0.05)
    assert stage.batch_rows <= plan.pretrain.batch_rows
    assert {"finetune.steps", "finetune.lr"} <= {row.key for row in derived}
    alone, _ = resolve_finetune(given, plan.shape, 10, CPU)
    assert alone.batch_rows == 1 and alone.steps == 30


def test_finetune_rows_longer_than_the_model_has_seen_are_refused() -> None:
    given = parse('name = "a"\n[finetune]\ncontext = 4096\n', "r", [])
    with pytest.raises(RecipeError, match=r"finetune\.context"):
        resolve_finetune(given, resolve(given, CPU).shape, 10, CPU)
    with pytest.raises(RecipeError, match="no \\[finetune\\]"):
        resolve_finetune(recipe(), resolve(recipe(), CPU).shape, 10, CPU)


def test_cluster_is_read_in_any_spelling_and_unknown_devices_are_errors() -> None:
    assert parse_cluster("64xH100") == ("H100-SXM5-80GB", 64)
    assert parse_cluster("a100_80gb") == ("A100-SXM4-80GB", 1)
    for wrong in ("64xH1000000", "0xH100", "64x"):
        with pytest.raises(RecipeError):
            parse_cluster(wrong)


def test_resolving_needs_no_torch() -> None:
    code = "import sys, bessemer.planner.resolve, bessemer.planner.limits; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
