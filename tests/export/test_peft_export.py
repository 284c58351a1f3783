"""Adapters exported for PEFT, and merged: what `peft` and transformers compute, against our model."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from making_runs import QUIET
from making_trained import random_weights, trained_stage, write_stage_checkpoint
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from bessemer.checkpoint.base import Base, load_base
from bessemer.checkpoint.load import load_model
from bessemer.checkpoint.peft import own_tensors
from bessemer.cli import export as verb
from bessemer.errors import CheckpointError, RecipeError
from bessemer.export.huggingface import export_huggingface
from bessemer.export.peft import export_peft
from bessemer.formulas.shape import Adapter, ModelShape
from bessemer.model.decoder import Decoder
from bessemer.model.pieces import whole_pieces
from bessemer.train.origin import of_stage

# peft 0.21 asks transformers 5.24 by a name that it gives up in 6.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TOKENS = torch.randint(0, 300, (2, 24), generator=torch.Generator().manual_seed(1))
PHI = {"family": "phi3"}
CASES: dict[str, tuple[dict[str, Any], Adapter]] = {
    "lora": ({}, Adapter(4, 8.0, ALL)),
    "rslora of some": ({"tie_embeddings": True}, Adapter(3, 5.0, ("q_proj", "down_proj"), rslora=True)),
    "dora": ({"family": "qwen3", "qk_norm": True}, Adapter(4, 8.0, ALL, dora=True)),
    "joined matrices": (PHI, Adapter(4, 8.0, ALL, rslora=True)),
    "joined, some of them": (PHI, Adapter(4, 8.0, ("q_proj", "v_proj", "up_proj"))),
    "joined dora": (PHI, Adapter(2, 8.0, ALL, dora=True)),
}


def adapted_stage(make: Any, adapter: Adapter, **changes: Any) -> tuple[Path, Path]:
    """(a stage of adapters that moved, the Hugging Face folder of its base)."""
    base, shape, _ = trained_stage(make, **changes)
    folder = base.parent / "hf"
    export_huggingface(base, folder, step=None, dtype=None, console=QUIET)
    stage = base.parent / "finetune"
    shutil.copytree(base, stage)
    shape = replace(shape, adapter=adapter)
    learned = {name: value for name, value in random_weights(shape).items() if ".lora_" in name}
    # Training moves a matrix by a part of itself, not by several times its size.
    small = {name: 0.1 * value if "lora_B" in name else value for name, value in learned.items()}
    write_stage_checkpoint(stage, small)
    info = json.loads((stage / "stage.json").read_text())
    origin = {"kind": "huggingface", "folder": str(folder)}
    info |= {"kind": "finetune", "shape": shape.to_json(), "origin": origin}
    (stage / "stage.json").write_text(json.dumps(info))
    return stage, folder


@torch.no_grad()
def ours(stage: Path, tokens: Tensor = TOKENS) -> Tensor:
    model = load_model(stage, None, print).model
    return model.logits(model(tokens))


@torch.no_grad()
def theirs(base: Path, adapters: Path | None = None) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    if adapters is not None:
        model = PeftModel.from_pretrained(model, adapters)
    return model.eval()(TOKENS).logits


@pytest.mark.parametrize("case", CASES)
def test_peft_computes_our_logits_from_the_export(case: str, make: Any, tmp_path: Path) -> None:
    changes, adapter = CASES[case]
    stage, base = adapted_stage(make, adapter, **changes)
    receipt = export_peft(stage, tmp_path / "peft", step=None, dtype=None, console=QUIET)
    found, wanted = theirs(base, tmp_path / "peft"), ours(stage)
    assert float((theirs(base) - wanted).abs().max()) > 0.1, "the adapters change nothing"
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert receipt["max_absolute_logit_difference"] < 1e-5
    config = json.loads((tmp_path / "peft/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)


@pytest.mark.parametrize("case", ["lora", "joined, some of them", "joined dora"])
def test_our_tensors_come_back_from_the_export_bit_for_bit(case: str, make: Any, tmp_path: Path) -> None:
    changes, adapter = CASES[case]
    stage, _ = adapted_stage(make, adapter, **changes)
    export_peft(stage, tmp_path / "peft", step=None, dtype=None, console=QUIET)
    shape = ModelShape.from_json(json.loads((stage / "stage.json").read_text())["shape"])
    found = own_tensors(shape, load_file(tmp_path / "peft/adapter_model.safetensors"))
    wanted = load_file(stage / "checkpoints/step-00000030/model-00000.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


@pytest.mark.parametrize("case", ["lora", "dora", "joined dora"])
def test_a_merged_model_has_the_logits_of_the_adapters_apart(case: str, make: Any, tmp_path: Path) -> None:
    changes, adapter = CASES[case]
    stage, _ = adapted_stage(make, adapter, **changes)
    receipt = export_huggingface(stage, tmp_path / "merged", step=None, dtype=None, console=QUIET)
    torch.testing.assert_close(theirs(tmp_path / "merged"), ours(stage), rtol=1e-5, atol=1e-4)
    assert receipt["merge"]["max_absolute_logit_difference"] < 1e-4
    assert receipt["max_absolute_logit_difference"] < 1e-4 and "quantisation" not in receipt["merge"]
    assert "merged in float32" in receipt["weights"]


@pytest.mark.parametrize("base", ["nf4", "int8"])
def test_merging_onto_full_precision_tells_what_quantisation_made(
    base: str, make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage, folder = adapted_stage(make, Adapter(4, 8.0, ALL, base=base))
    receipt = export_huggingface(stage, tmp_path / "merged", step=None, dtype=None, console=QUIET)
    made = receipt["merge"]["quantisation"]
    # On other tokens than the receipt's, so not the same number.
    apart = float((theirs(tmp_path / "merged") - ours(stage)).abs().mean())
    assert made["base"] == base
    assert made["mean_absolute_logit_difference"] == pytest.approx(apart, rel=0.3)
    assert receipt["merge"]["max_absolute_logit_difference"] < 1e-4 < apart
    card = (tmp_path / "merged/README.md").read_text()
    assert f"trained beside weights in {base}" in card
    assert "trained beside weights" in verb.show({**receipt, "format": "hf"})
    export_peft(stage, tmp_path / "peft", step=None, dtype=None, console=QUIET)
    # The export holds adapters alone: on the base as it was they give what the merge gives.
    torch.testing.assert_close(
        theirs(folder, tmp_path / "peft"), theirs(tmp_path / "merged"), atol=1e-4, rtol=1e-5
    )


def test_a_second_export_writes_nothing_and_a_foreign_folder_is_left_alone(make: Any, tmp_path: Path) -> None:
    stage, _ = adapted_stage(make, CASES["lora"][1])
    first = export_peft(stage, tmp_path / "peft", step=None, dtype=None, console=QUIET)
    again = export_peft(stage, tmp_path / "peft", step=None, dtype=None, console=QUIET)
    assert (first["already_done"], again["already_done"]) == (False, True)
    (tmp_path / "peft/mine.txt").write_text("mine")
    with pytest.raises(RecipeError) as caught:
        export_peft(stage, tmp_path / "peft", step=None, dtype=None, console=QUIET)
    assert "mine.txt" in caught.value.found


def test_the_base_is_our_export_of_the_run_that_it_came_from(make: Any, tmp_path: Path) -> None:
    stage, _ = adapted_stage(make, CASES["lora"][1])
    before = stage.parent / "pretrain"
    info = json.loads((stage / "stage.json").read_text())
    (stage / "stage.json").write_text(
        json.dumps({**info, "origin": of_stage(before, None, print).hashed(stage).to_json()})
    )
    receipt = export_peft(stage, tmp_path / "one", step=None, dtype=None, console=QUIET)
    assert receipt["base"] is None and "not there as a Hugging Face folder" in receipt["reason"]
    export_huggingface(before, stage.parent / "export/hf", step=None, dtype=None, console=QUIET)
    receipt = export_peft(stage, tmp_path / "two", step=None, dtype=None, console=QUIET)
    assert receipt["base"] == str(stage.parent / "export/hf")
    assert receipt["max_absolute_logit_difference"] < 1e-5
    assert json.loads((tmp_path / "two/base.json").read_text())["hash"] == receipt["base_hash"]


def test_a_stage_without_adapters_is_refused(make: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        export_peft(make(), tmp_path / "peft", step=None, dtype=None, console=QUIET)
    assert "--format hf" in caught.value.fix and not (tmp_path / "peft").exists()


def test_adapters_are_not_exported_beside_a_base_that_changed(make: Any, tmp_path: Path) -> None:
    stage, base = adapted_stage(make, CASES["lora"][1])
    info = json.loads((stage / "stage.json").read_text())
    info["origin"]["hash"] = "0" * 32
    (stage / "stage.json").write_text(json.dumps(info))
    with pytest.raises(CheckpointError) as caught:
        export_huggingface(stage, tmp_path / "merged", step=None, dtype=None, console=QUIET)
    assert "adapters for another model" in caught.value.problem and str(base) in caught.value.found


def classifier(stage: Path, labels: int) -> Tensor:
    """Make a stage of adapters tell classes apart; its head."""
    info = json.loads((stage / "stage.json").read_text())
    info["shape"] |= {"labels": labels, "tie_embeddings": False}
    (stage / "stage.json").write_text(json.dumps(info))
    weights = load_file(stage / "checkpoints/step-00000030/model-00000.safetensors")
    head = torch.randn(labels, info["shape"]["hidden"], generator=torch.Generator().manual_seed(2))
    write_stage_checkpoint(stage, {**weights, "score.weight": head})
    return head


@pytest.mark.parametrize("labels", [1, 3, 4, 5])
def test_only_a_head_of_the_same_classes_is_taken_over_from_merged_adapters(labels: int, make: Any) -> None:
    stage, _ = adapted_stage(make, CASES["lora"][1])
    theirs_4H = classifier(stage, 4)
    base = Base(stage.parent / "next", "checkpoint", stage, stage / "checkpoints/step-00000030")
    shape = replace(base.shape(), adapter=None, labels=labels)
    model = Decoder(shape, torch.float32)
    first = torch.full_like(model.head_weight, 7.0)
    torch.nn.init.constant_(model.head_weight, 7.0)
    load_base(model, base, shape, whole_pieces(model))
    torch.testing.assert_close(model.head_weight.detach(), theirs_4H if labels == 4 else first)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_an_export_that_was_rounded_is_compared_as_it_was_written(
    stored: torch.dtype, make: Any, tmp_path: Path
) -> None:
    stage, _ = adapted_stage(make, CASES["lora"][1])
    before, bf16 = stage.parent / "pretrain", "bf16"
    base = stage.parent / "export/hf"
    export_huggingface(
        before, base, step=None, dtype=bf16 if stored is torch.bfloat16 else None, console=QUIET
    )
    info = json.loads((stage / "stage.json").read_text())
    origin = of_stage(before, None, print).hashed(stage).to_json()
    (stage / "stage.json").write_text(json.dumps({**info, "origin": origin}))
    receipt = export_peft(stage, tmp_path / "peft", step=None, dtype=bf16, console=QUIET)
    written = load_file(tmp_path / "peft/adapter_model.safetensors")
    assert {each.dtype for each in written.values()} == {torch.bfloat16}
    assert float((theirs(base, tmp_path / "peft") - ours(stage)).abs().max()) > 1e-3, "nothing was rounded"
    assert receipt["base"] == str(base) and receipt["max_absolute_logit_difference"] < 1e-5
    assert "both reading these files and their base in fp32" in (tmp_path / "peft/README.md").read_text()


def test_magnitudes_of_a_part_of_a_joined_matrix_are_refused_and_merge(make: Any, tmp_path: Path) -> None:
    stage, _ = adapted_stage(make, Adapter(4, 8.0, ("q_proj",), dora=True), **PHI)
    with pytest.raises(RecipeError) as caught:
        export_peft(stage, tmp_path / "peft", step=None, dtype=None, console=QUIET)
    assert "qkv_proj" in caught.value.found and "--format hf" in caught.value.fix
    assert not (tmp_path / "peft").exists()
    receipt = export_huggingface(stage, tmp_path / "merged", step=None, dtype=None, console=QUIET)
    assert receipt["merge"]["max_absolute_logit_difference"] < 1e-4


def test_a_head_of_classes_travels_with_the_adapters(make: Any, tmp_path: Path) -> None:
    stage, base = adapted_stage(make, CASES["lora"][1])
    classifier(stage, 3)
    export_peft(stage, tmp_path / "peft", step=None, dtype=None, console=QUIET)
    config = json.loads((tmp_path / "peft/adapter_config.json").read_text())
    assert (config["task_type"], config["modules_to_save"]) == ("SEQ_CLS", ["score"])
    plain = AutoModelForSequenceClassification.from_pretrained(base, dtype=torch.float32, num_labels=3)
    plain.config.pad_token_id = 2
    model = PeftModel.from_pretrained(plain, tmp_path / "peft").eval()
    with torch.no_grad():
        found = model(TOKENS[:1]).logits
    torch.testing.assert_close(found, ours(stage, TOKENS[:1])[:, -1], rtol=1e-5, atol=1e-5)
    assert "num_labels=3" in (tmp_path / "peft/README.md").read_text()
