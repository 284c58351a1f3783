"""What is measured, on a run that was trained for it; what is kept; what a damaged checkpoint does."""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from making_runs import own_cache, pretrained, write_recipe

from bessemer.cli import evaluate as verb
from bessemer.data.labels import labels
from bessemer.data.prepared import Prepared, open_prepared
from bessemer.log import Console


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """Ten steps, saved at the fifth and the last."""
    write_recipe(tmp_path)
    with own_cache(tmp_path / "cache"):
        pretrained(tmp_path, "pretrain.steps=10")
        yield tmp_path / "run"


def evaluated(target: Path | str) -> dict:
    parser = argparse.ArgumentParser()
    parser.set_defaults(set=[], console=Console())
    verb.arguments(parser)
    return verb.run(parser.parse_args([str(target)]))


def test_every_held_out_token_but_the_begin_tokens_counts_in_bits_per_byte(run: Path) -> None:
    result = evaluated(run)["stages"]["pretrain"]
    data = open_prepared(Path(json.loads((run / "pretrain/stage.json").read_text())["data"]["folder"]))
    assert isinstance(data, Prepared)
    documents = len(labels(data, "validation"))
    assert documents > 0 and result["target_tokens"] == data.validation_tokens - documents
    bits = result["validation_loss"] * result["target_tokens"] / math.log(2)
    assert result["bits_per_byte"] == pytest.approx(bits / data.validation_bytes)


def test_stages_of_a_comparison_are_not_measured(run: Path) -> None:
    (run / "pretrain").rename(run / "finetune-scratch-100")
    assert list(evaluated(run)["stages"]) == ["finetune-scratch-100"]  # there is nothing else
    (run / "finetune-scratch-100").rename(run / "pretrain")
    other = run / "finetune-scratch-100"
    (other / "checkpoints").mkdir(parents=True)
    (other / "metrics.jsonl").write_text("")
    (other / "checkpoints/step-00000001").mkdir()
    (other / "checkpoints/step-00000001/manifest.json").write_text("{}")
    assert list(evaluated(run)["stages"]) == ["pretrain"]


def test_run_is_found_from_inside_its_stage_and_not_measured_twice(run: Path, monkeypatch) -> None:
    assert not evaluated(run)["already_done"]
    monkeypatch.chdir(run / "pretrain")
    document = evaluated(".")
    assert document["already_done"] and document["run"] == ".."
    assert list(document["stages"]) == ["pretrain"]


def test_damaged_newest_checkpoint_is_named_and_the_one_before_measured(run: Path, capsys) -> None:
    file = run / "pretrain/checkpoints/step-00000010/model-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    capsys.readouterr()
    assert evaluated(run)["stages"]["pretrain"]["step"] == 5
    assert f"{file} is damaged" in (said := capsys.readouterr().err) and "trying the one before" in said
