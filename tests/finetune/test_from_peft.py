"""Going on from adapters in PEFT's form: its own, or an export of ours."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from making_runs import QUIET, curve, fail, place, pretrained, write_recipe
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from bessemer.checkpoint.load import load_model
from bessemer.errors import UserError
from bessemer.export.huggingface import export_huggingface
from bessemer.export.peft import export_peft
from bessemer.finetune.run import finetune
from bessemer.recipe.load import load
from bessemer.train.answers import Document
from bessemer.train.ranks import Company

# peft 0.21 asks transformers 5.24 by a name that it gives up in 6.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
SHORT = "pretrain.steps=4"
LORA = ("finetune.method=lora", "finetune.lora.rank=4", "finetune.lr=5e-3", "finetune.epochs=4")
TOKENS = torch.arange(3, 27).unsqueeze(0)


@pytest.fixture(scope="module")
def made(cache: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a Hugging Face folder `hf`."""
    folder = tmp_path_factory.mktemp("made")
    write_recipe(folder, task=True)
    pretrained(folder, SHORT)
    export_huggingface(folder / "run/pretrain", folder / "hf", step=None, dtype=None, console=QUIET)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def finetuned(folder: Path, from_: str, run: str, *settings: str) -> dict[str, Any]:
    loaded = load(str(folder / "tiny.toml"), [SHORT, *LORA, *settings])
    return finetune(loaded, place(folder, run), str(folder / from_))


def refused(folder: Path, from_: str, *settings: str) -> UserError:
    with pytest.raises(UserError) as caught:
        finetuned(folder, from_, "refused", *settings)
    assert not (folder / "refused").exists()
    return caught.value


@pytest.fixture
def exported(folder: Path) -> Path:
    finetuned(folder, "hf", "first")
    export_peft(folder / "first/finetune", folder / "peft", step=None, dtype=None, console=QUIET)
    return folder


def test_our_export_goes_on_where_it_ended(exported: Path) -> None:
    before = curve(exported / "first/finetune")
    finetuned(exported, "peft", "second", "finetune.epochs=1")
    after = curve(exported / "second/finetune")
    assert after[0][1] < 0.5 * (before[0][1] + before[-1][1])
    finetuned(
        exported, "peft", "still", "finetune.epochs=1", "finetune.lr=1e-12", "finetune.weight_decay=0.0"
    )
    with torch.no_grad():
        wanted, found = (
            model.logits(model(TOKENS))
            for model in (
                load_model(exported / run / "finetune", None, fail).model for run in ("first", "still")
            )
        )
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_adapters_that_peft_saved_are_gone_on_from(folder: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32)
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(base, settings)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    model.save_pretrained(folder / "theirs")
    targets = 'finetune.lora.targets=["q_proj", "v_proj"]'
    still = ("finetune.epochs=1", "finetune.lr=1e-12", "finetune.weight_decay=0.0")
    finetuned(folder, "theirs", "ours", targets, *still)
    ours = load_model(folder / "ours/finetune", None, fail).model
    with torch.no_grad():
        torch.testing.assert_close(
            ours.logits(ours(TOKENS)), model.eval()(TOKENS).logits, rtol=1e-5, atol=1e-5
        )


def test_adapters_of_another_size_or_kind_are_refused_with_what_to_set(exported: Path) -> None:
    assert refused(exported, "peft", "finetune.lora.rank=8").fix == "set finetune.lora.rank=4"
    assert refused(exported, "peft", "finetune.lora.dora=true").fix == "set finetune.lora.dora=false"
    error = refused(exported, "peft", 'finetune.lora.targets="attention"')
    assert "finetune.lora.targets" in error.fix and "tensors that differ" in error.found
    with pytest.raises(UserError, match="none are trained") as caught:
        finetune(
            load(str(exported / "tiny.toml"), [SHORT]), place(exported, "refused"), str(exported / "peft")
        )
    assert "merge them first" in caught.value.fix


def test_adapters_are_not_taken_for_their_base_where_a_whole_model_is_needed(exported: Path) -> None:
    """Each was silently the base alone: a teacher, a reference, the beginning of a pre-training."""
    taught = ('finetune.method="distill"', "finetune.adapter=lora", f"finetune.teacher={exported / 'peft'}")
    rewarded = (
        'finetune.method="grpo"',
        "finetune.adapter=lora",
        "finetune.beta=0.1",
        "finetune.answer_tokens=8",
    )
    errors = [refused(exported, "hf", *taught), refused(exported, "peft", *rewarded)]
    with pytest.raises(UserError) as caught:
        pretrained(exported, SHORT, run="third", from_=str(exported / "peft"))
    for error in (*errors, caught.value):
        assert "needs a whole model" in error.problem and str(exported / "peft") in error.found
        assert "merge them first" in error.fix
    assert not list((exported / "third").rglob("step-*"))


def test_the_first_rank_verifies_a_checkpoint_for_all_of_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    real = Company.first_does

    def first_does(company: Company, what: str, work: Callable[[], Document]) -> Document:
        asked.append(what)
        return real(company, what, work)

    monkeypatch.setattr(Company, "first_does", first_does)
    finetune(
        load(str(folder / "tiny.toml"), [SHORT, "finetune.epochs=1"]),
        place(folder, "other"),
        str(folder / "run"),
    )
    assert "base" in asked


def test_adapters_for_another_base_are_refused_by_its_hash(exported: Path) -> None:
    shutil.copytree(exported / "hf", exported / "other")
    weights = exported / "other/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    path = exported / "peft/adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "base_model_name_or_path": str(exported / "other")}))
    error = refused(exported, "peft")
    assert "for another model" in error.problem and str(exported / "other") in error.found
    path.write_text(json.dumps({**config, "base_model_name_or_path": "somebody/a-model"}))
    assert "somebody/a-model" in refused(exported, "peft").found
