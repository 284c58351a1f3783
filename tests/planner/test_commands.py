"""The verbs of this part as main calls them: a document that is JSON, and text for a person."""

import argparse
import gc
import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

from bessemer.errors import RecipeError, RefusedError
from bessemer.log import Console
from bessemer.recipe.schema import Recipe


def call(verb: str, *words: str, settings: tuple[str, ...] = ()) -> tuple[dict[str, Any], str]:
    module = importlib.import_module(f"bessemer.cli.{verb}")
    parser = argparse.ArgumentParser()
    module.arguments(parser)
    args = parser.parse_args(list(words))
    args.set = list(settings)
    args.console = Console(quiet=True)
    document = module.run(args)
    json.dumps(document, allow_nan=False)
    return document, module.show(document)


def test_plan_has_the_keys_that_others_read() -> None:
    document, text = call("plan", "llama-1b", "--cluster", "1xH100", settings=("pretrain.steps=10",))
    assert document["model"]["params"] == 1_235_814_400 and document["model"]["layers"] == 16
    assert document["cluster"]["device"] == "H100-SXM5-80GB" and document["cluster"]["devices"] == 1
    assert {"replicate", "shard", "tensor", "pipeline", "context", "expert", "micro_batch", "schedule",
            "interleave", "recompute"} <= set(document["layout"])  # fmt: skip
    assert set(document["predicted"]) == {
        "memory_gib", "step_time_s", "tokens_per_s", "tflops_per_device", "mfu", "hours", "device_hours",
        "usd", "kwh", "kg_co2e", "goodput",
    }  # fmt: skip
    assert all(set(row) == {"value", "low", "high", "basis"} for row in document["predicted"].values())
    assert document["candidates"] and document["rejected"] == []
    assert "1.24B parameters" in text and "pretrain.micro_batch" in text


def test_plan_of_a_cluster_has_a_layout_that_fills_it() -> None:
    document, text = call("plan", "llama-8b")  # its recipe names 64 H100s
    layout = document["layout"]
    degrees = ("replicate", "shard", "tensor", "pipeline", "context")
    assert math.prod(layout[axis] for axis in degrees) == document["cluster"]["devices"] == 64
    assert document["predicted"]["memory_gib"]["value"] and layout["words"] in text


def test_plan_says_why_training_would_be_refused() -> None:
    assert call("plan", "llama-1b", "--cluster", "H100")[0]["refused_because"] is None
    assert "deepseek-v3" in call("plan", "deepseek-style-671b", "--cluster", "256xH100")[0]["refused_because"]
    given = call("plan", "llama-70b", "--cluster", "8xH100", "--layout", "shard=8")[0]
    assert "memory" in given["refused_because"]


def test_plan_of_several_cpus_says_that_their_layout_is_not_searched() -> None:
    document, text = call("plan", "llama-1b", "--cluster", "4xEPYC-9654")
    assert document["layout"] is None and document["step"] is None
    assert "layouts of CPUs" in text and '--layout "shard=4"' in text and "Not chosen" not in text
    given = call("plan", "llama-1b", "--cluster", "4xEPYC-9654", "--layout", "shard=4")[0]
    assert given["predicted"]["memory_gib"]["value"] > 0


def test_plan_looks_for_circles_of_objects_again_when_it_is_done() -> None:
    assert gc.isenabled()
    call("plan", "llama-8b", "--cluster", "8xH100")
    assert gc.isenabled()
    with pytest.raises(RecipeError):
        call("plan", "llama-8b", "--cluster", "8xNOTHING")
    assert gc.isenabled()


def test_model_that_fits_on_no_layout_of_the_cluster_is_an_error_that_says_what_would_do() -> None:
    with pytest.raises(RefusedError, match="does not fit on this cluster") as caught:
        call("plan", "llama-405b", "--cluster", "H100")
    assert "H100" in caught.value.fix


RECIPE = """name = "small"
[model]
layers = 4
hidden = 64
heads = 4
context = 64
[tokenizer]
vocab = 256
[[data.source]]
name = "texts"
kind = "text"
path = "*.txt"
[pretrain]
steps = 2
batch_tokens = 1024
micro_batch = 1
"""


def test_a_rehearsal_tells_exchanges_and_memory_of_the_chosen_rank(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(RECIPE)
    words = ("plan", str(tmp_path / "small.toml"), "--cluster", "8xH100", "--layout", "shard=4,pipeline=2")
    document, text = call(*words, "--rehearse", "--rank", "4")
    rehearsal = document["rehearsal"]
    assert (rehearsal["rank"], rehearsal["of"]) == (4, 8)
    assert rehearsal["exchanges_of_a_step"]["send"]["count"] == rehearsal["micro_batches_of_a_step"] == 4
    assert rehearsal["peak_bytes"] > 0 and "Rehearsed: rank 4 of 8" in text
    with pytest.raises(RecipeError, match="not of this layout"):
        call(*words, "--rehearse", "--rank", "8")
    with pytest.raises(RecipeError, match="no effect"):
        call(*words, "--rank", "4")


def test_recipes_are_listed_shown_and_copied_once(tmp_path: Path) -> None:
    document, text = call("recipes")
    names = [row["name"] for row in document["recipes"]]
    assert {"gpt1-117m", "llama-1b", "llama-405b", "deepseek-style-671b"} <= set(names)
    assert all(name in text for name in names)
    assert call("recipes", "show", "llama-1b")[1].startswith("# Llama 3.2 1B")
    copied, _ = call("recipes", "copy", "llama-1b", str(tmp_path))
    assert Path(copied["copied"]).read_text() == call("recipes", "show", "llama-1b")[0]["text"]
    with pytest.raises(RecipeError, match="is there already"):
        call("recipes", "copy", "llama-1b", str(tmp_path))
    with pytest.raises(RecipeError, match="NAME and DIR"):
        call("recipes", "copy", "llama-1b")


def test_schema_names_every_key_with_what_it_affects() -> None:
    document, text = call("schema")
    assert json.loads(text) == document
    assert set(document["properties"]) == set(Recipe.model_fields)
    assert document["$defs"]["Model"]["properties"]["from"]["affects"] == "model"


def test_doctor_tells_what_is_here_and_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # leave the user's measurements alone
    monkeypatch.setattr("bessemer.measure.ceiling._SIZES", (256,))
    monkeypatch.setattr("bessemer.measure.ceiling._MATMUL_S", 0.01)
    monkeypatch.setattr("bessemer.measure.ceiling._COPY_BYTES", {"cpu": 2**24})
    document, text = call("doctor")
    assert document["devices"][0]["kind"] == "cpu" and document["devices"][0]["copy_gb_per_s"] > 0
    assert document["meters"] and document["memory"]["available_bytes"] > 0
    assert all({"what", "why", "get"} <= set(row) for row in document["missing"])
    assert document["cpu"]["name"] in text and "memory" in text
