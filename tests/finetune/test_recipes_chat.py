"""The shipped recipes of chats and of QLoRA in miniature, by the command line; and what peft loads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from making_processes import ran_here
from making_runs import QUIET, curve, pretrained, tensors_of, write_recipe
from peft import PeftModel
from transformers import AutoModelForCausalLM

from bessemer.checkpoint.load import load_model
from bessemer.cli.main import main
from bessemer.export.huggingface import export_huggingface
from bessemer.rundir import read_object

# peft 0.21 asks transformers 5.24 by a name that it gives up in 6.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
Command = Callable[..., dict[str, Any]]
SIZES = {"layers": 2, "hidden": 32, "ffn": 48, "context": 256, "batch_tokens": 512}
SMALL = ("finetune.context=256", "finetune.epochs=2", "finetune.dtype=fp32", "finetune.lr=5e-3")
SMALL += ("finetune.batch_tokens=2048", "finetune.micro_batch=2")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run `base` that has a little pre-training behind it, its export, and the recipes."""
    folder = tmp_path_factory.mktemp("chats")
    write_recipe(folder, sizes=SIZES)
    pretrained(folder, "pretrain.steps=2", run="base")
    export_huggingface(folder / "base/pretrain", folder / "hf", step=None, dtype=None, console=QUIET)
    for name in ("sft-chat", "lora-chat", "qlora-70b"):
        assert main(["recipes", "copy", name, str(folder)]) == 0
    return folder


@pytest.fixture
def here(base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line in this process: what a command answers."""

    def command(*words: str) -> dict[str, Any]:
        monkeypatch.chdir(base)
        capsys.readouterr()
        assert main([*words, "--json"]) == 0
        return dict(json.loads(capsys.readouterr().out))

    return command


def finetuned(base: Path, recipe: str, from_: str, *settings: str) -> Path:
    given = [word for setting in (*SMALL, *settings) for word in ("--set", setting)]
    options = ["--from", from_, "--run", recipe, "--store", "data"]
    code, _, error = ran_here(base, "finetune", f"{recipe}.toml", *options, *given)
    assert code == 0, error
    stage = base / recipe / "finetune"
    rows = curve(stage)
    assert rows[-1][1] < 0.9 * rows[0][1]
    return stage


def test_the_recipe_sft_chat_learns_answers_alone(base: Path) -> None:
    stage = finetuned(base, "sft-chat", "base")
    data = read_object(stage / "stage.json") or {}
    manifest = read_object(Path(data["data"]["folder"]) / "manifest.json") or {}
    counts = manifest["splits"]["train"]
    assert manifest["task_format"] == "messages"
    assert 0 < counts["answer_tokens"] < 0.8 * counts["tokens"]
    assert len(tensors_of(stage)) > 50  # all weights, and their moments


def test_the_recipe_lora_chat_ends_in_adapters_that_peft_loads(base: Path, here: Command) -> None:
    stage = finetuned(base, "lora-chat", "hf", "finetune.lora.rank=4", "finetune.lr=2e-2")
    assert all("lora_" in name for name in tensors_of(stage))
    told = here("export", "lora-chat", "--format", "peft")
    assert told["max_absolute_logit_difference"] < 1e-5 and told["base"] == str(base / "hf")
    plain = AutoModelForCausalLM.from_pretrained(base / "hf", dtype=torch.float32)
    theirs = PeftModel.from_pretrained(plain, base / "lora-chat/export/peft").eval()
    ours, tokens = load_model(stage, None, print).model, torch.arange(40).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, ours.logits(ours(tokens)), rtol=1e-5, atol=1e-5)
    told = here("export", "lora-chat")
    assert told["merge"]["max_absolute_logit_difference"] < 1e-5 and told["merge"]["text"] == "held-out"


def test_the_recipe_qlora_70b_in_miniature_trains_and_merges(base: Path, here: Command) -> None:
    chats = 'finetune.data.path="lora-chat.jsonl"'
    small = ("model.context=256", "data.validation=0.1", "finetune.lr=2e-2", "finetune.epochs=4")
    stage = finetuned(
        base, "qlora-70b", "hf", chats, *small, "finetune.lora.alpha=128", "finetune.lora.rank=8"
    )
    info = read_object(stage / "stage.json") or {}
    assert info["shape"]["adapter"]["base"] == "nf4" and info["plan"]["recompute"] == "full"
    told = here("export", "qlora-70b")
    made = told["merge"]["quantisation"]
    assert told["merge"]["max_absolute_logit_difference"] < 1e-5
    assert 1e-4 < made["mean_absolute_logit_difference"] < 0.5


def test_the_plan_of_qlora_70b_is_of_a_base_in_four_bits(here: Command) -> None:
    plan = here("plan", "qlora-70b.toml")
    gib = 2.0**30
    adapters = 828_375_040
    base_gib = (plan["memory_parts"]["weights"] - 4 * adapters) / gib
    assert 35.0 < base_gib < 40.0, "0.5625 bytes for 68.4 G weights, 2 for embedding and head"
    assert plan["memory_parts"]["optimizer"] == 8 * adapters
    assert plan["predicted"]["memory_gib"]["value"] < 79.0 and plan["refused_because"] is None
    assert plan["training"]["layout"]["shard"] == 1 and plan["model"]["params"] > 70e9
