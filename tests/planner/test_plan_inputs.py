"""What `bessemer plan` makes of clusters, budgets and models of others: exit codes, and what is said."""

import json
from pathlib import Path
from typing import Any

import pytest

from bessemer.cli.main import main

CLUSTER = """
device = "H100"
devices = 32
per_node = 8
link_gb_per_s = 450
network_gb_per_s = 50
usd_per_device_hour = 2.5
region = "FRA"
"""
RECIPE = """
name = "ours"
[model]
size = "auto"
context = 2048
[budget]
usd = 5000
hours = 500
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("cluster.toml").write_text(CLUSTER)
    Path("r.toml").write_text(RECIPE)
    return tmp_path


def plan(*words: str) -> int:
    return main(["plan", "r.toml", *words])


def document(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert plan("--json", *words) == 0
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def test_cluster_file_is_planned_for(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "--cluster", "cluster.toml")
    assert found["cluster"]["devices"] == 32 and found["cluster"]["device"] == "H100-SXM5-80GB"
    assert 0.88 * 5000 < found["predicted"]["usd"]["value"] <= 0.901 * 5000  # a tenth is kept in reserve
    assert found["predicted"]["loss"]["low"] < found["predicted"]["loss"]["value"]
    named = document(capsys, "--set", "cluster.file=cluster.toml")
    assert named["predicted"] == found["predicted"]


def test_plan_for_people_says_size_loss_and_which_limit_binds(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--cluster", "cluster.toml") == 0
    told = capsys.readouterr().out
    for words in ("compute-optimal between", "budget.usd = 5000 binds", "only as precise as its law"):
        assert words in told, words


@pytest.mark.parametrize("key", ["link_gb_per_s", "network_gb_per_s"])
def test_cluster_file_with_a_link_missing_is_refused(capsys: pytest.CaptureFixture[str], key: str) -> None:
    lines = [line for line in CLUSTER.splitlines() if not line.startswith(key)]
    Path("cluster.toml").write_text("\n".join(lines))
    for words in (("--cluster", "cluster.toml"), ("--set", "cluster.file=cluster.toml")):
        assert plan(*words) == 2
        assert f"{key} is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--cluster", "64xH1000"], 2, "unknown device"),
        (["--cluster", "nowhere.toml"], 2, "cannot read cluster file"),
        (["--cluster", "64xH100", "--set", "budget.usd=0.001"], 2, "budget.usd = 0.001, which binds"),
        (["--cluster", "64xH100", "--set", "model.size=70B", "--set", "pretrain.tokens=1T"], 3,
         "budget.usd = 5000, which binds"),
        (["--cluster", "1xH100", "--set", "model.size=70B", "--set", "pretrain.steps=1"], 3, "does not fit"),
        (["--cluster", "64xH100", "--set", "budget.kg_co2e=1"], 2, "set cluster.region"),
        (["--cluster", "64xH100", "--set", "model.size=1B", "--set", "budget.inference_tokens=1T"], 2,
         "inference_tokens has no effect"),
        (["--cluster", "64xH100", "--set", "budget.inference_tokens=many"], 2, "is not a count"),
        (["--cluster", "64xH100", "--set", "budget.runs=nothing/*"], 2, "0 of 0 folders"),
        (["--cluster", "1xH100", "--set", "energy.prefer=energy"], 2, "prefer has no effect"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_its_exit_code(
    capsys: pytest.CaptureFixture[str], words: list[str], code: int, said: str
) -> None:
    assert plan(*words) == code
    assert said in capsys.readouterr().err


def test_model_of_others_is_planned_on_a_cluster_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    config = {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
              "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936,
              "tie_word_embeddings": True, "rope_scaling": {"type": "yarn", "factor": 4.0}}  # fmt: skip
    Path("config.json").write_text(json.dumps(config))
    Path("r.toml").write_text('name = "q"\n[model]\nfrom = "config.json"\n[pretrain]\ntokens = "1B"\n')
    found = document(capsys, "--cluster", "cluster.toml")
    assert found["model"]["params"] == 494_032_768  # Qwen2.5-0.5B
    assert "planned but not trained" in found["refused_because"] or "trained" in found["refused_because"]
