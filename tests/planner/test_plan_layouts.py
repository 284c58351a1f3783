"""`bessemer plan` over several devices: what it tells of the layout, in JSON and in words."""

import json
import subprocess
import sys
from typing import Any

import pytest
from making_plans import run_plan

from bessemer.errors import RefusedError
from bessemer.units import format_bytes

PARTS = {
    "matmul_s", "attention_s", "vector_s", "recompute_s", "tensor_s", "context_s", "expert_s", "pipeline_s",
    "bubble_s", "data_s", "optimizer_s", "overhead_s",
}  # fmt: skip


@pytest.fixture(scope="module")
def seventy() -> tuple[dict[str, Any], str]:
    return run_plan("llama-70b", "--cluster", "64xH100", "--top", "3")


def test_step_is_told_part_by_part_and_the_parts_are_the_step(seventy: tuple[dict[str, Any], str]) -> None:
    document, text = seventy
    parts = document["step"]["parts"]
    assert set(parts) == PARTS
    assert sum(row["value"] for row in parts.values()) == pytest.approx(
        document["predicted"]["step_time_s"]["value"]
    )
    assert all(row["low"] <= row["value"] <= row["high"] and row["basis"] for row in parts.values())
    assert "matmuls" in text and "hide behind compute" in text


def test_memory_is_broken_down_for_every_pipeline_rank(seventy: tuple[dict[str, Any], str]) -> None:
    document, text = seventy
    names = {"weights", "gradients", "optimizer", "activations", "logits", "buffers", "allocator"}
    ranks = document["memory_by_pipeline_rank"]
    assert set(document["memory"]) == names and len(ranks) == document["layout"]["pipeline"]
    assert all(set(row["memory"]) == names for row in ranks)
    fullest = max(row["total"] for row in ranks) / 2**30
    assert document["predicted"]["memory_gib"]["value"] == pytest.approx(fullest)
    assert sum(document["memory"].values()) / 2**30 < document["cluster"]["memory_gib"]
    assert "allocator" in text
    apart = document["memory"]["allocator"] - document["memory_parts"]["base"]
    together = sum(document["memory"].values())
    assert together - apart == pytest.approx(fullest * 2**30)
    assert f"together {format_bytes(together)}; memory_gib has" in text


def test_candidates_are_ranked_and_start_with_the_chosen_one(seventy: tuple[dict[str, Any], str]) -> None:
    document, _ = seventy
    rows = document["candidates"]
    assert len(rows) == 3 and rows[0]["layout"]["words"] == document["layout"]["words"]
    times = [row["predicted"]["step_time_s"]["value"] for row in rows]
    assert times[0] <= 1.003 * min(times) and times[1:] == sorted(times[1:])
    assert times[0] == pytest.approx(document["predicted"]["step_time_s"]["value"], rel=1e-3)
    assert set(rows[1]["predicted"]) <= set(document["predicted"])


def test_front_and_rejected_layouts_are_told_in_words(seventy: tuple[dict[str, Any], str]) -> None:
    document, text = seventy
    assert document["front"][0]["sentence"] == "chosen"
    assert all("less" in point["sentence"] for point in document["front"][1:])
    reasons = [row["reason"] for row in document["rejected"]]
    assert any("GiB" in reason for reason in reasons) and any("slower" in reason for reason in reasons)
    assert all(reason in text for reason in reasons) and document["search"]["looked_at"] > 1000


def test_failures_and_the_checkpoint_interval_are_told(seventy: tuple[dict[str, Any], str]) -> None:
    document, text = seventy
    failures = document["reliability"]["expected_failures"]
    hours = document["predicted"]["hours"]["value"]
    assert failures["value"] == pytest.approx(hours * 64 / 50_700)
    assert 300 < document["reliability"]["checkpoint_interval_s"]["value"] < 36_000
    assert "Best checkpoint interval" in text


def test_given_layout_is_costed_alike_and_set_beside_the_best(seventy: tuple[dict[str, Any], str]) -> None:
    best, _ = seventy
    micro_batch = f"pretrain.micro_batch={best['layout']['micro_batch']}"
    recompute = f'pretrain.recompute="{best["layout"]["recompute"]}"'
    words = ("llama-70b", "--cluster", "64xH100", "--layout")
    same, _ = run_plan(*words, best["layout"]["words"], settings=(micro_batch, recompute))
    assert same["predicted"]["step_time_s"] == best["predicted"]["step_time_s"]
    assert abs(same["place"]["slower_than_best"]) < 0.001
    other, text = run_plan(*words, "shard=8,tensor=8", settings=("pretrain.micro_batch=1", recompute))
    assert other["place"]["slower_than_best"] > 0.1 and "slower than the best" in text


@pytest.mark.parametrize(
    ("recipe", "cluster"),
    [
        ("llama-405b", "16384xH100"),
        ("llama-70b", "64xH100"),
        ("qwen-moe-30b-a3b", "64xA100"),
        ("llama-8b", "8xL40S"),
    ],
)
def test_what_is_chosen_is_what_training_would_start(recipe: str, cluster: str) -> None:
    document, _ = run_plan(recipe, "--cluster", cluster)
    assert document["refused_because"] is None
    memory = document["predicted"]["memory_gib"]
    assert memory["high"] <= document["cluster"]["memory_gib"]
    assert document["candidates"][0]["predicted"]["memory_gib"]["value"] == pytest.approx(
        memory["value"], rel=0.01
    )


def test_preference_in_the_recipe_decides() -> None:
    frugal, _ = run_plan("llama-8b", "--cluster", "32xH100", settings=('energy.prefer="energy"',))
    fast, _ = run_plan("llama-8b", "--cluster", "32xH100")
    assert frugal["predicted"]["kwh"]["value"] <= 1.001 * fast["predicted"]["kwh"]["value"]
    assert frugal["search"]["preferred"] == "energy"


def test_model_that_fits_nowhere_is_refused_with_what_would_do() -> None:
    with pytest.raises(RefusedError, match="does not fit on this cluster") as caught:
        run_plan("llama-405b", "--cluster", "16xH100")
    assert "take " in caught.value.fix and "x H100" in caught.value.fix


def test_outside_what_was_validated_the_plan_says_so_and_its_band_is_wider() -> None:
    near, _ = run_plan("llama-8b", "--cluster", "64xH100")
    far, text = run_plan("llama-8b", "--cluster", "256xTPUv5p")
    assert "TPU" in " ".join(far["caveats"]) and "Outside what was validated" in text

    def width(document: dict[str, Any]) -> float:
        row = document["predicted"]["step_time_s"]
        return float((row["high"] - row["low"]) / row["value"])

    assert width(far) >= width(near)


def test_plan_of_a_cluster_needs_no_torch() -> None:
    code = (
        "import sys\nfrom bessemer.cli.main import main\n"
        "main(['plan', 'llama-8b', '--cluster', '64xH100', '--json'])\n"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('torch', 'pyarrow')]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["schema"] == "bessemer.plan/1"


def test_given_layout_that_does_not_fit_is_told_so_with_the_best_that_does() -> None:
    document, text = run_plan("llama-70b", "--cluster", "64xH100", "--layout", "replicate=64")
    place = document["place"]
    assert place["fits"] is False and place["needed_gib"] > place["usable_gib"] > 70
    assert "does not fit" in text and f"the best that fits is {place['best']['words']}" in text
    assert "No layout is faster" not in text


def test_given_layout_where_none_fits_is_told_so() -> None:
    document, text = run_plan("llama-405b", "--cluster", "16xH100", "--layout", "shard=16")
    assert document["place"]["best"] is None and "no other layout fits either" in text


def test_waiting_for_the_disk_costs_goodput_and_saves_less_often() -> None:
    words = ("llama-8b", "--cluster", "64xH100", "--layout", "shard=64")
    (writing, _), (waiting, _) = (
        run_plan(*words, settings=(f"pretrain.async_save={value}",)) for value in ("true", "false")
    )
    assert waiting["predicted"]["goodput"]["value"] < writing["predicted"]["goodput"]["value"]
    assert waiting["predicted"]["hours"]["value"] > writing["predicted"]["hours"]["value"]
    ends = [row["reliability"]["checkpoint_interval_s"]["value"] for row in (waiting, writing)]
    assert ends[0] > ends[1]


def test_what_must_be_compiled_gets_a_layout_that_can_be() -> None:
    document, _ = run_plan("llama-8b", "--cluster", "64xH100", settings=("pretrain.compile=true",))
    assert document["training"]["compile"] is True and document["layout"]["schedule"] != "zbv"
    assert all(row["layout"]["recompute"] != "selective" for row in document["candidates"])


def test_one_device_of_a_node_is_charged_for_a_workstation_not_for_a_server() -> None:
    one, node = (run_plan("llama-1b", "--cluster", f"{count}xH100")[0] for count in (1, 8))
    watts = [
        row["predicted"]["kwh"]["value"] / row["predicted"]["device_hours"]["value"] for row in (one, node)
    ]
    assert watts[0] < 0.8 * watts[1]
