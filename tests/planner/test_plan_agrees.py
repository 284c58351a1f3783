"""A plan agrees with itself and with its hardware: saves and goodput, bands and peaks, fixes that do fix."""

import argparse
import json
from pathlib import Path

import pytest
from making_plans import run_plan

from bessemer.cli.energy_tables import validation
from bessemer.cli.plan_notes import remarks
from bessemer.cli.plan_validate import validated
from bessemer.energy.published import read_published, validate
from bessemer.errors import RecipeError, RefusedError
from bessemer.formulas import goodput as formula
from bessemer.formulas.layout import Layout
from bessemer.formulas.memory.parts import STATE_BYTES
from bessemer.hardware import lookup
from bessemer.planner.layout import check_cluster
from bessemer.planner.limits import check_start
from bessemer.planner.machine.cluster import catalogue_cluster
from bessemer.planner.machine.facts import Facts, cluster_facts
from bessemer.planner.plan import Plan
from bessemer.planner.resolve import resolve
from bessemer.planner.source import with_files
from bessemer.recipe.load import parse
from bessemer.recipe.schema import Recipe

LAYOUT = "parallel.layout=shard=64"
LONG = ("model.size=7B", "pretrain.tokens=140B", "pretrain.batch_tokens=4194304")


def recipe(*settings: str) -> Recipe:
    return parse('name = "a"\n', "r.toml", [*LONG, *settings])


def planned(*settings: str, device: str = "H100", devices: int = 64) -> Plan:
    return resolve(recipe(*settings), cluster_facts(device, devices))


def saved_s(plan: Plan) -> float:
    step_s = plan.predicted["step_time_s"].value
    assert step_s is not None
    return plan.pretrain.save_every * step_s


def likely_goodput(plan: Plan, interval_s: float, device_hours_per_failure: float) -> float:
    """Daly's equation for saves so far apart."""
    rank_bytes = STATE_BYTES * plan.params / 64
    return formula.goodput(
        interval_s,
        formula.save_seconds(rank_bytes).value,
        formula.restart_seconds(rank_bytes, 50.0).value,
        device_hours_per_failure / 64 * 3600.0,
    )


def rule_of(plan: Plan, key: str) -> str:
    return next(row.rule for row in plan.derived if row.key == key)


def test_saves_come_as_often_as_is_best_where_failures_are_frequent_and_goodput_is_of_them() -> None:
    plan = planned(LAYOUT, "cluster.device_hours_per_failure=2000")
    best = formula.reliability(64, STATE_BYTES * plan.params / 64, device_hours_per_failure=2000)
    step_s = plan.predicted["step_time_s"].value or 0.0
    assert best.interval_s < 1800
    assert abs(saved_s(plan) - best.interval_s) <= 0.5 * step_s
    assert "the best interval for the failures" in rule_of(plan, "pretrain.save_every")
    assert plan.predicted["goodput"].value == pytest.approx(likely_goodput(plan, saved_s(plan), 2000))


def test_saves_come_every_half_an_hour_where_failures_are_rare_and_goodput_is_of_them() -> None:
    plan = planned(LAYOUT)
    step_s = plan.predicted["step_time_s"].value or 0.0
    assert abs(saved_s(plan) - 1800) <= 0.5 * step_s
    rule = rule_of(plan, "pretrain.save_every")
    assert "half an hour at most" in rule and "would be best" in rule
    assert plan.predicted["goodput"].value == pytest.approx(likely_goodput(plan, saved_s(plan), 50_700))
    seldom = planned(LAYOUT, f"pretrain.save_every={plan.pretrain.steps}")
    assert (seldom.predicted["goodput"].value or 1) < (plan.predicted["goodput"].value or 0)


def test_saves_faster_than_storage_takes_them_make_training_wait() -> None:
    rank_bytes = STATE_BYTES * 7e9 / 64
    stored_s = rank_bytes / 1e9 / 0.12
    fast = formula.reliability(64, rank_bytes, interval_s=1.0).goodput.value
    assert fast == pytest.approx(1.0 / stored_s, rel=0.1)  # a second of work in the time of one checkpoint


def test_plan_tells_the_interval_that_the_run_saves_at() -> None:
    document, text = run_plan("llama-1b", "--cluster", "8xH100", "--layout", "shard=8")
    step_s = document["predicted"]["step_time_s"]["value"]
    saved = document["reliability"]["saved_every_s"]
    assert saved == pytest.approx(document["training"]["save_every"] * step_s)
    assert "this run saves every" in text


def test_no_end_of_a_band_is_beyond_the_peak_of_the_hardware() -> None:
    document, _ = run_plan("llama-8b", "--cluster", "64xTPUv5p")
    predicted, training = document["predicted"], document["training"]
    peak = lookup("TPUv5p").bf16_dense_tflops or 0.0
    assert predicted["mfu"]["high"] == pytest.approx(1.0)  # 104 % by the cost model alone
    assert predicted["tflops_per_device"]["high"] == pytest.approx(peak)
    least_s = document["flops"]["per_token"] * training["batch_tokens"] / 64 / peak / 1e12
    assert predicted["step_time_s"]["low"] == pytest.approx(least_s)
    assert predicted["hours"]["low"] >= training["steps"] * least_s / 3600


def test_copies_that_do_not_fit_are_to_be_shards() -> None:
    asked, facts = recipe("parallel.layout=replicate=64"), cluster_facts("H100", 64)
    plan = resolve(asked, facts)
    with pytest.raises(RefusedError, match="does not fit in memory") as caught:
        check_start(asked, plan.shape, plan.pretrain, facts, 64)
    assert caught.value.fix.startswith('set parallel.layout="shard=64"')
    check_start(recipe(LAYOUT), plan.shape, planned(LAYOUT).pretrain, facts, 64)


@pytest.mark.parametrize(
    ("layout", "near"),
    [
        (Layout(tensor=8, pipeline=3), "shard=4,tensor=8,pipeline=2"),
        (Layout(tensor=8, pipeline=3, split=(10, 11, 11)), "shard=4,tensor=8,pipeline=2"),
        (Layout(tensor=5, context=3), "shard=8,tensor=4,context=2"),
        (Layout(replicate=7, shard=9), "replicate=8,shard=8"),
    ],
)
def test_layout_that_does_not_divide_the_cluster_is_told_the_nearest_that_does(
    layout: Layout, near: str
) -> None:
    shape = planned(LAYOUT).shape
    facts: Facts = cluster_facts("H100", 64)
    with pytest.raises(RecipeError, match="does not fill the cluster") as caught:
        check_cluster(layout, facts, "--layout", shape, shape.context)
    assert caught.value.fix == f'--layout "{near}", or plan {layout.world} devices'


def test_device_without_bf16_gets_a_remark_and_others_none() -> None:
    for name in ("V100", "T4"):
        (remark,) = remarks(catalogue_cluster(lookup(name), 1))
        assert "no bf16" in remark and "MFU is not known" in remark and "dtype=fp32" in remark
        assert remarks(catalogue_cluster(lookup(name), 1), "fp32") == []
    assert remarks(catalogue_cluster(lookup("A40"), 1))[0].startswith("what an empty A40")


@pytest.mark.parametrize(("dtype", "reason"), [("fp8", "costed and not trained"), ("fp16", "not trained")])
def test_compute_type_that_is_not_trained_is_told_so(dtype: str, reason: str) -> None:
    with pytest.raises(RecipeError, match="does not take this value") as caught:
        recipe(f"pretrain.dtype={dtype}")
    assert reason in caught.value.fix and "did you mean" not in caught.value.fix


def test_size_that_nothing_decides_is_told_as_such() -> None:
    asked = parse('name = "a"\n', "r.toml", ["model.size=auto", "pretrain.steps=10"])
    rule = rule_of(resolve(asked, cluster_facts("H100", 1)), "model.size")
    assert rule.startswith("30M, as there is no limit in [budget]")
    plain = resolve(parse('name = "a"\n', "r.toml", ["pretrain.steps=10"]), cluster_facts("H100", 1))
    assert rule_of(plain, "model.size").startswith("the nearest to 30M")


@pytest.mark.parametrize("bias", [False, True])  # read exactly, or as far as a plan needs it
def test_heads_that_share_no_keys_evenly_are_refused_also_for_a_plan(tmp_path: Path, bias: bool) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "mlp_bias": bias,
        "num_hidden_layers": 2, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 8192,
        "vocab_size": 32000,
    }  # fmt: skip
    asked = parse('name = "a"\n[model]\nfrom = "."\n', "r.toml", [])
    for heads in (32, 31):
        (tmp_path / "config.json").write_text(json.dumps({**config, "num_attention_heads": heads}))
        if heads == 32:
            assert with_files(cluster_facts("H100", 1), asked, tmp_path).source_shape is not None
    with pytest.raises(RecipeError, match="cannot be computed") as caught:
        with_files(cluster_facts("H100", 1), asked, tmp_path)
    assert caught.value.found == "config.json: num_attention_heads = 31, num_key_value_heads = 8"


def test_top_has_no_effect_on_published_runs_and_is_refused(tmp_path: Path) -> None:
    args = argparse.Namespace(rows=str(tmp_path / "rows.csv"), cluster=None, layout=None, rehearse=False)
    args.top, args.set = 3, []
    with pytest.raises(RecipeError, match="--top has no effect"):
        validated(args)


def test_energies_of_another_table_are_skipped_in_one_line(tmp_path: Path) -> None:
    rows = "".join(f"GPT-{number},H100,8\n" for number in range(300))
    (tmp_path / "rows.csv").write_text("model,gpu_type,gpu_count,gpu_hours\n" + rows.replace("8\n", "8,\n"))
    text = validation(validate(read_published(tmp_path / "rows.csv")))
    assert "Skipped: no device-hours (300 rows)" in text and len(text.splitlines()) < 6
