"""model.from and budget.runs: what a plan reads beside the recipe, without torch."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bessemer.cli.main import main
from bessemer.errors import RecipeError, RefusedError
from bessemer.formulas.parameters import total_params
from bessemer.formulas.scaling.law import BESIROGLU
from bessemer.formulas.scaling.sizing import shape_of_size
from bessemer.formulas.shape import ModelShape
from bessemer.planner.limits import check_start
from bessemer.planner.machine.facts import cluster_facts
from bessemer.planner.resolve import resolve
from bessemer.planner.sizing.own_runs import law_for, law_from_runs
from bessemer.planner.source import with_cluster_file, with_files
from bessemer.recipe.load import load, parse
from bessemer.recipe.schema import Recipe

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 512,
         "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8,
         "num_key_value_heads": 4, "vocab_size": 32000, "max_position_embeddings": 4096}  # fmt: skip
GPT2 = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 768, "n_layer": 12,
        "n_head": 12, "vocab_size": 50257, "n_positions": 1024}  # fmt: skip
GPU = cluster_facts("H100", 1)
BASE = ModelShape("llama", 1, 1, 1, 1, 1, 1, 512, 64, tie_embeddings=True, qk_norm=False)


def recipe(*overrides: str) -> Recipe:
    return parse('name = "a"\n', "r.toml", list(overrides))


def hugging_face(folder: Path, config: dict[str, Any]) -> Recipe:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return recipe("model.from=hf", "pretrain.steps=100", "pretrain.batch_tokens=65536")


def test_model_that_can_be_trained_is_read_exactly(tmp_path: Path) -> None:
    given = hugging_face(tmp_path / "hf", LLAMA)
    facts = with_files(GPU, given, tmp_path)
    assert facts.source_shape is not None and facts.source_refused is None
    assert (facts.source_shape.context, facts.source_shape.max_positions) == (1024, 4096)
    plan = resolve(given, facts)
    check_start(given, plan.shape, plan.pretrain, facts, None)
    named = recipe("model.from=hf/config.json", "model.context=2048")
    shape = with_files(GPU, named, tmp_path).source_shape
    assert shape is not None and shape.context == 2048


@pytest.mark.parametrize(
    ("config", "said"),
    [(GPT2, "GPT2LMHeadModel"), ({**LLAMA, "attention_bias": True}, "attention_bias"),
     ({**LLAMA, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type")],
)  # fmt: skip
def test_model_that_cannot_be_trained_is_planned_and_its_training_refused_with_the_reason(
    tmp_path: Path, config: dict[str, Any], said: str
) -> None:
    given = hugging_face(tmp_path / "hf", config)
    facts = with_files(GPU, given, tmp_path)
    plan = resolve(given, facts)
    assert plan.predicted["step_time_s"].value and plan.predicted["memory_gib"].value
    with pytest.raises(RefusedError, match="planned but not trained") as caught:
        check_start(given, plan.shape, plan.pretrain, facts, None)
    assert said in caught.value.found


def test_folder_that_is_none_and_rows_longer_than_positions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot read"):
        with_files(GPU, recipe("model.from=nowhere"), tmp_path)
    hugging_face(tmp_path / "hf", GPT2)
    with pytest.raises(RecipeError, match="longer than this model's positions"):
        with_files(GPU, recipe("model.from=hf", "model.context=2048"), tmp_path)


def finished_run(folder: Path, params: float, tokens: float, loss: float, **changes: Any) -> None:
    """The files that a run of this size leaves; `changes` to its last row or its stage.json."""
    shape, steps = shape_of_size(round(params), BASE), 100
    stage = {"shape": shape.to_json(), "plan": {"steps": steps}, "origin": None, "data": {"hash": "one"}}
    last = {"step": steps, "attempt": 1, "tokens": tokens, "loss": loss, "validation_loss": loss}
    for key, value in changes.items():
        (stage if key in stage else last)[key] = value
    (folder / "pretrain").mkdir(parents=True)
    (folder / "pretrain" / "stage.json").write_text(json.dumps(stage))
    rows = [{**last, "step": 50, "tokens": tokens / 2, "validation_loss": 9.0}, last]
    (folder / "pretrain" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def own_runs(folder: Path, shift: float = 1.0) -> list[Path]:
    """Runs whose loss is that of the published law and `shift` more."""
    for number, (size, tokens) in enumerate(((5e6, 1e8), (5e6, 4e8), (2e7, 2e8), (2e7, 8e8), (8e7, 1e9))):
        params = total_params(shape_of_size(round(size), BASE))
        finished_run(folder / f"run-{number}", size, tokens, shift + BESIROGLU.loss(params, tokens))
    return sorted(folder.iterdir())


def test_law_is_fitted_to_the_files_of_own_runs(tmp_path: Path) -> None:
    law = law_from_runs(own_runs(tmp_path / "runs"))
    assert law.name == "5 own runs"
    truth = 1.0 + BESIROGLU.loss(3e8, 6e9)
    found = law.loss_range(3e8, 6e9)
    assert found.low < truth < found.high and found.value == pytest.approx(truth, rel=0.02)


def test_size_from_a_budget_follows_own_runs_and_says_so(tmp_path: Path) -> None:
    own_runs(tmp_path / "runs")
    given = recipe("model.size=auto", "budget.hours=4", "budget.runs=runs/*")
    facts = with_files(GPU, given, tmp_path)
    plan = resolve(given, facts)
    rules = {row.key: row.rule for row in plan.derived}
    assert "5 own runs" in rules["model.size"] and "another tokenizer" not in rules["loss"]
    assert plan.predicted["loss"].basis == "modelled"
    published = resolve(recipe("model.size=auto", "budget.hours=4"), GPU).predicted["loss"]
    assert (plan.predicted["loss"].value or 0) == pytest.approx((published.value or 0) + 1.0, rel=0.02)
    absolute = recipe("model.size=auto", "budget.hours=4", f"budget.runs={tmp_path}/runs/run-*")
    assert with_files(GPU, absolute, Path("/")).law == facts.law


def test_runs_that_are_no_points_of_one_law_are_left_out_or_refused(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    whole = law_from_runs(own_runs(runs))
    finished_run(runs / "unfinished", 1e7, 1e8, 9.0, step=60)
    finished_run(runs / "continued", 1e7, 1e8, 9.0, origin={"kind": "checkpoint"})
    finished_run(runs / "never-validated", 1e7, 1e8, 9.0, validation_loss=None)
    (runs / "something-else").mkdir()
    assert law_from_runs(sorted(runs.iterdir())) == whole
    finished_run(runs / "other-data", 1e7, 1e8, 2.0, data={"hash": "two"})
    with pytest.raises(RecipeError, match="different data") as caught:
        law_from_runs(sorted(runs.iterdir()))
    assert "other-data" in caught.value.found
    with pytest.raises(RecipeError, match="do not show a law") as few:
        law_from_runs([runs / "run-0", runs / "unfinished", runs / "something-else"])
    assert "1 of 3 folders" in few.value.found


def test_plan_of_a_config_json_needs_no_torch(tmp_path: Path) -> None:
    hugging_face(tmp_path / "hf", GPT2)
    (tmp_path / "r.toml").write_text('name = "a"\n[model]\nfrom = "hf"\n[pretrain]\ntokens = "1B"\n')
    script = (
        "import sys\nfrom bessemer.cli.main import main\n"
        "code = main(['plan', 'r.toml', '--cluster', '8xH100', '--json'])\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\nsys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["model"]["params"] == 124_439_808
    assert "gpt2" in document["refused_because"]


def test_law_of_runs_does_not_depend_on_the_order_of_their_folders(tmp_path: Path) -> None:
    runs = own_runs(tmp_path / "runs")
    one, other = law_from_runs(runs), law_from_runs(runs[::-1])
    np.testing.assert_allclose(one.values, other.values, rtol=1e-9)
    assert replace(one, values=other.values, covariance=other.covariance) == other


def test_runs_whose_files_say_something_else_do_not_count(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    whole = law_from_runs(own_runs(runs))
    finished_run(runs / "no-steps", 1e7, 1e8, 9.0, plan={})
    finished_run(runs / "half-a-shape", 1e7, 1e8, 9.0, shape={"layers": 2})
    finished_run(runs / "no-shape", 1e7, 1e8, 9.0, shape=None)
    finished_run(runs / "no-loss", 1e7, 1e8, 9.0, validation_loss=0.0)
    assert law_from_runs(sorted(runs.iterdir())) == whole


def test_pattern_that_is_no_glob_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no pattern") as caught:
        law_for(recipe("budget.runs=**x"), tmp_path)
    assert "**x" in caught.value.found


CLUSTER = """device = "H100"
devices = 8
link_gb_per_s = 450
usd_per_device_hour = 7.5
region = "DEU"
pue = 1.5
device_hours_per_failure = 1000
"""


def test_training_counts_with_price_and_place_of_the_cluster_file(tmp_path: Path) -> None:
    (tmp_path / "ours.toml").write_text(CLUSTER)
    (tmp_path / "r.toml").write_text('name = "a"\n[cluster]\nfile = "ours.toml"\npue = 1.1\n')
    loaded = with_cluster_file(load(str(tmp_path / "r.toml"), []))
    keys = loaded.recipe.cluster
    assert (keys.usd_per_device_hour, keys.region, keys.device_hours_per_failure) == (7.5, "DEU", 1000)
    assert (
        keys.pue == 1.1 and keys.device is None and keys.devices is None
    )  # the recipe's own, and this machine
    assert parse(loaded.text, "recipe.toml", []) == loaded.recipe
    assert with_cluster_file(loaded) == loaded


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "cannot read cluster file"), ('device = "H100"\ndevices = 8\n', "link_gb_per_s is missing"),
     (CLUSTER.replace("DEU", "XYZ"), "unknown grid region")],
)  # fmt: skip
def test_broken_cluster_file_stops_training_before_data_is_prepared(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str | None,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("ours.toml").write_text(text)
    Path("r.toml").write_text('name = "a"\n[cluster]\nfile = "ours.toml"\n')
    for verb in ("pretrain", "run"):
        assert main([verb, "r.toml"]) == 2
        assert said in capsys.readouterr().err
    assert not Path("runs").exists() and not Path("data").exists()
