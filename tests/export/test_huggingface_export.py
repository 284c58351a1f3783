import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import xxhash
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from bessemer.cli import export as verb
from bessemer.energy.accounting.account import account
from bessemer.errors import CheckpointError, RecipeError
from bessemer.export.card import model_card
from bessemer.export.huggingface import export_huggingface
from bessemer.export.weights import write_weights
from bessemer.formulas.shape import ModelShape
from bessemer.log import Console
from bessemer.units import format_seconds

QUIET = Console(quiet=True)
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def weights_of(stage: Path) -> dict[str, torch.Tensor]:
    return load_file(stage / "checkpoints/step-00000030/model-00000.safetensors")


def shape_of(stage: Path) -> ModelShape:
    return ModelShape.from_json(json.loads((stage / "stage.json").read_text())["shape"])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_embeddings": True},
        {"family": "qwen3", "qk_norm": True, "head_dim": 16},
        {"rope_scaling": LLAMA3, "rope_theta": 5e4, "norm_eps": 1e-3},
    ],
    ids=["llama", "tied", "qwen3", "llama3 rope"],
)
def test_export_is_bitwise_and_loads_in_transformers_with_our_logits(make, tmp_path, changes):
    stage = make(**changes)
    receipt = export_huggingface(stage, tmp_path / "hf", step=None, dtype=None, console=QUIET)
    exported, trained = load_file(tmp_path / "hf/model.safetensors"), weights_of(stage)
    assert exported.keys() == trained.keys()
    assert all(torch.equal(exported[name], trained[name]) for name in trained)
    assert receipt["weights"] == "bit for bit as in the checkpoint"
    assert receipt["max_absolute_logit_difference"] < 1e-5 < 1e-2 < receipt["largest_logit"]
    assert receipt["same_next_token"] == 1.0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", local_files_only=True)
    assert model.dtype == torch.float32
    assert torch.equal(model.state_dict()["model.norm.weight"], trained["model.norm.weight"])


def test_tokenizer_gives_the_tokens_that_training_used(make, tmp_path):
    stage = make()
    export_huggingface(stage, tmp_path / "hf", step=None, dtype=None, console=QUIET)
    ours = Tokenizer.from_file(str(stage / "tokenizer.json"))
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf", local_files_only=True)
    for text in ["the quick brown fox", "  ä\n\tx := (3.14) ", "<bos>hello<eos>", ""]:
        assert theirs(text)["input_ids"] == ours.encode(text).ids
        assert theirs.decode(theirs(text)["input_ids"]) == ours.decode(
            ours.encode(text).ids, skip_special_tokens=False
        )
    assert (theirs.bos_token, theirs.eos_token, theirs.pad_token) == ("<bos>", "<eos>", "<pad>")
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 1, 2)
    assert (tmp_path / "hf/tokenizer.json").read_bytes() == (stage / "tokenizer.json").read_bytes()


def test_weights_are_rounded_only_when_asked_and_the_receipt_says_so(make, tmp_path):
    stage = make()
    receipt = export_huggingface(stage, tmp_path / "hf", step=None, dtype="bf16", console=QUIET)
    exported, trained = load_file(tmp_path / "hf/model.safetensors"), weights_of(stage)
    assert all(torch.equal(exported[name], trained[name].to(torch.bfloat16)) for name in trained)
    assert (receipt["dtype"], receipt["weights"]) == ("bfloat16", "rounded from float32")
    assert json.loads((tmp_path / "hf/config.json").read_text())["dtype"] == "bfloat16"


def test_shards_hold_every_tensor_once_and_load(make, tmp_path):
    stage = make()
    export_huggingface(stage, tmp_path / "hf", step=None, dtype=None, console=QUIET)
    (tmp_path / "hf/model.safetensors").unlink()
    checkpoint = stage / "checkpoints/step-00000030"
    write_weights(checkpoint, shape_of(stage), tmp_path / "hf", None, shard_bytes=40_000)
    shards = sorted((tmp_path / "hf").glob("model-*.safetensors"))
    assert len(shards) > 3
    together = [name for shard in shards for name in load_file(shard)]
    assert len(together) == len(set(together)) == len(weights_of(stage))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", local_files_only=True)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in weights_of(stage).items())


def name_files(checkpoint: Path) -> None:
    """The manifest of the files that are there."""
    files = {
        file.name: {"bytes": file.stat().st_size, "xxh3_128": xxhash.xxh3_128_hexdigest(file.read_bytes())}
        for file in checkpoint.glob("*.safetensors")
    }
    manifest = {"step": 30, "layout": {}, "files": files}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def test_slices_of_several_ranks_are_joined(make, tmp_path):
    stage = make()
    checkpoint, whole = stage / "checkpoints/step-00000030", weights_of(stage)
    (checkpoint / "model-00000.safetensors").unlink()
    for rank in range(2):
        parts, slices = {}, {}
        for name, tensor in whole.items():
            half = tensor.shape[0] // 2
            offset = [rank * half] + [0] * (tensor.dim() - 1)
            parts[name] = tensor[rank * half : (rank + 1) * half].clone()
            slices[name] = {"shape": list(tensor.shape), "offset": offset}
        save_file(parts, checkpoint / f"model-{rank:05d}.safetensors", {"slices": json.dumps(slices)})
    name_files(checkpoint)
    write_weights(checkpoint, shape_of(stage), tmp_path, None)
    joined = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(joined[name], tensor) for name, tensor in whole.items())
    (checkpoint / "model-00001.safetensors").unlink()
    name_files(checkpoint)
    with pytest.raises(CheckpointError, match="not whole"):
        write_weights(checkpoint, shape_of(stage), tmp_path, None)


def test_same_export_again_changes_nothing_and_a_new_checkpoint_replaces_it(make, tmp_path):
    stage, out = make(), tmp_path / "hf"
    first = export_huggingface(stage, out, step=None, dtype=None, console=QUIET)
    written = (out / "model.safetensors").stat().st_mtime_ns
    again = export_huggingface(stage, out, step=None, dtype=None, console=QUIET)
    assert not first["already_done"] and again["already_done"]
    assert (out / "model.safetensors").stat().st_mtime_ns == written
    export_huggingface(stage, out, step=None, dtype="bf16", console=QUIET)
    with safe_open(out / "model.safetensors", framework="pt") as file:
        assert file.get_slice("model.norm.weight").get_dtype() == "BF16"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_foreign_folder_is_refused_and_left_as_it_was(make, tmp_path):
    stage, out = make(), tmp_path / "hf"
    export_huggingface(stage, out, step=None, dtype=None, console=QUIET)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(RecipeError, match=r"notes\.txt"):
        export_huggingface(stage, out, step=None, dtype="bf16", console=QUIET)
    assert (out / "notes.txt").read_text() == "mine"
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    with pytest.raises(RecipeError, match="not an export of ours"):
        export_huggingface(stage, other, step=None, dtype=None, console=QUIET)


def test_failed_export_leaves_nothing_behind(make, tmp_path):
    stage = make(family="llama", qk_norm=True)
    with pytest.raises(RecipeError, match="qk_norm"):
        export_huggingface(stage, tmp_path / "out" / "hf", step=None, dtype=None, console=QUIET)
    assert not list((tmp_path / "out").glob("*")) and not list((tmp_path / "out").glob(".*"))


def test_card_tells_data_training_energy_and_padding(make, tmp_path):
    stage = make()
    results = {"stages": {"pretrain": {"validation_loss": 5.123, "bits_per_byte": 2.345, "perplexity": None}}}
    (stage.parent / "evaluate").mkdir()
    (stage.parent / "evaluate/results.json").write_text(json.dumps(results))
    export_huggingface(stage, tmp_path / "hf", step=None, dtype=None, console=QUIET)
    card = (tmp_path / "hf/README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "cc-by-4.0" and front["library_name"] == "transformers"
    for told in [
        "| docs\\|x | text | CC-BY-4.0 | 12 | 3,456 |",
        "| pretrain | bits per byte | 2.345 |",
        "2 kWh (modelled)",
        "embedding rows are padding",
        "Largest difference of a logit",
    ]:
        assert told in card, told
    assert "perplexity" not in card


def test_card_has_the_energy_that_the_account_has_with_the_last_save_and_what_was_run_again(make):
    stage = make()
    with open(stage / "events.jsonl", "a") as file:
        ends = dict.fromkeys(("energy_j", "energy_low_j", "energy_high_j"), 2.5 * 3.6e6)
        more = {"energy_basis": "measured", "energy_parts_j": None, "energy_gaps": 0, "energy_gap_s": 0.0}
        phases = {"energy_phases_j": None, "time_phases_s": None}
        done = {"time": 0.0, "attempt": 1, "kind": "done", "step": 30, **ends, **more, **phases}
        file.write(json.dumps(done) + "\n")
    receipt = {"step": 30, "dtype": "float32", "weights": "bit for bit", "reason": "not asked for",
               "max_absolute_logit_difference": None}  # fmt: skip
    card = model_card(stage, shape_of(stage), {"bos": None, "size": 300}, receipt)
    assert account(stage.parent)["total"]["energy_j"]["value"] == 2.5 * 3.6e6
    assert "2.5 kWh (measured)" in card


def test_front_matter_has_the_carbon_of_the_stages_that_went_into_the_model(make, tmp_path):
    stage = make()
    run = stage.parent
    finetune = run / "finetune"
    shutil.copytree(stage, finetune)
    info = json.loads((stage / "stage.json").read_text())
    receipt = {"step": 30, "dtype": "float32", "weights": "bit for bit", "reason": "not asked for",
               "max_absolute_logit_difference": None}  # fmt: skip

    def emissions(exported: Path, origin: Path | None) -> dict:
        began = {"origin": None if origin is None else {"folder": str(origin), "kind": "checkpoint"}}
        (finetune / "stage.json").write_text(json.dumps({**info, "kind": "finetune", **began}))
        card = model_card(exported, shape_of(stage), {"bos": None, "size": 300}, receipt)
        return yaml.safe_load(card.split("---")[1]).get("co2_eq_emissions")

    assert emissions(stage, None) is None  # no region, so carbon is not known
    (run / "recipe.toml").write_text('name = "small"\n[energy]\nregion = "DEU"\n[cluster]\npue = 1.0\n')
    one = 2 * 344.1  # 2 kWh each
    both = emissions(finetune, stage)
    assert both["emissions"] == pytest.approx(2 * one, rel=0.01) and both["training_type"] == "fine-tuning"
    assert emissions(finetune, Path("/moved") / run.name / "pretrain") == both
    for origin in (None, Path("/runs/other/pretrain")):
        assert emissions(finetune, origin)["emissions"] == pytest.approx(one, rel=0.01)
    first = emissions(stage, None)
    assert first["emissions"] == pytest.approx(one, rel=0.01) and first["training_type"] == "pre-training"


def test_card_weighs_rows_by_the_steps_that_they_tell_of(make, tmp_path):
    stage = make()
    more = {"attempt": 1, "step": 40, "tokens": 1280, "loss": 5.4, "step_time_s": 6.0}
    with open(stage / "metrics.jsonl", "a") as file:
        file.write(json.dumps(more) + "\n")
    export_huggingface(stage, tmp_path / "hf", step=None, dtype=None, console=QUIET)
    seconds = 30 * 0.5 + 10 * 6.0
    assert f"| {format_seconds(seconds)} |" in (tmp_path / "hf/README.md").read_text()


def test_damaged_newest_checkpoint_is_named_and_the_one_before_is_exported(damaged, tmp_path, capsys):
    receipt = export_huggingface(damaged, tmp_path / "hf", step=None, dtype=None, console=Console())
    assert receipt["step"] == 30
    said = capsys.readouterr().err
    assert "step-00000040" in said and "trying the one before" in said


def dead_process() -> int:
    """The number of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_what_a_killed_export_left_is_swept(make, tmp_path):
    stage, out, dead = make(), tmp_path / "hf", dead_process()
    for name in (f".hf.{dead}.tmp", f".hf.{dead}.old", f".hf.{os.getppid()}.tmp", f".other.{dead}.tmp"):
        (tmp_path / name).mkdir()
    export_huggingface(stage, out, step=None, dtype=None, console=QUIET)
    (tmp_path / f".hf.{dead}.old").mkdir()
    assert export_huggingface(stage, out, step=None, dtype=None, console=QUIET)["already_done"]
    # Of a living process, and of another export: not ours to remove.
    left = {path.name for path in tmp_path.iterdir() if path.name.startswith(".")}
    assert left == {f".hf.{os.getppid()}.tmp", f".other.{dead}.tmp"}


def test_export_killed_between_its_two_renames_gets_the_old_folder_back(make, tmp_path):
    stage, out, dead = make(), tmp_path / "hf", dead_process()
    export_huggingface(stage, out, step=None, dtype=None, console=QUIET)
    written = (out / "model.safetensors").stat().st_mtime_ns
    out.rename(tmp_path / f".hf.{dead}.old")
    again = export_huggingface(stage, out, step=None, dtype=None, console=QUIET)
    assert again["already_done"] and (out / "model.safetensors").stat().st_mtime_ns == written
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_without_transformers_the_receipt_says_so(make, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    receipt = export_huggingface(make(), tmp_path / "hf", step=None, dtype=None, console=QUIET)
    assert receipt["max_absolute_logit_difference"] is None
    assert "pip install transformers" in receipt["reason"]
    assert "Not compared with transformers" in (tmp_path / "hf/README.md").read_text()


def test_wrong_export_is_never_published(make, tmp_path, monkeypatch):
    monkeypatch.setattr("bessemer.export.parity.TOLERANCE", 0.0)
    with pytest.raises(AssertionError, match="differs from ours"):
        export_huggingface(make(), tmp_path / "out" / "hf", step=None, dtype=None, console=QUIET)
    assert not (tmp_path / "out" / "hf").exists()


def test_verb_exports_the_stage_that_it_stands_in(make, monkeypatch):
    stage = make()
    parser = argparse.ArgumentParser()
    parser.set_defaults(console=QUIET)
    verb.arguments(parser)
    monkeypatch.chdir(stage)
    document = verb.run(parser.parse_args(["."]))
    assert (document["run"], document["out"]) == ("..", "../export/hf")
    assert (stage.parent / "export/hf/model.safetensors").is_file()


def test_verb_exports_to_the_run_by_default_and_refuses_what_is_not_built(make):
    stage = make()
    parser = argparse.ArgumentParser()
    parser.set_defaults(console=QUIET)
    verb.arguments(parser)
    document = verb.run(parser.parse_args([str(stage.parent)]))
    json.dumps(document)
    assert Path(document["out"]) == stage.parent / "export" / "hf"
    assert "bit for bit" in verb.show(document)
    with pytest.raises(RecipeError, match="not built yet"):
        verb.run(parser.parse_args([str(stage.parent), "--format", "gguf"]))
    with pytest.raises(RecipeError, match="--dtype int8"):
        verb.run(parser.parse_args([str(stage.parent), "--dtype", "int8"]))
