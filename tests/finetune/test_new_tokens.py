"""finetune.add_tokens, from a run and from a Hugging Face folder: tokenizer, rows, resume, export."""

from pathlib import Path
from typing import Any

import pytest
import torch
from making_runs import QUIET, place, pretrained, tensors_of, write_recipe
from safetensors.torch import load_file
from transformers import AutoTokenizer

from bessemer.checkpoint.load import load_model
from bessemer.errors import RecipeError
from bessemer.export.huggingface import export_huggingface
from bessemer.finetune.run import finetune
from bessemer.recipe.load import load
from bessemer.rundir import read_object

# More than the 320 rows of the model have room for.
TOKENS = ["<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(40))]
SETTINGS = ("pretrain.steps=4", "finetune.data.template=chatml", f"finetune.add_tokens={TOKENS}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, cache: None) -> Path:
    """With a run, pre-trained for four steps, and its export."""
    folder = tmp_path_factory.mktemp("new")
    write_recipe(folder, task=True)
    pretrained(folder, "pretrain.steps=4")
    export_huggingface(folder / "run/pretrain", folder / "hf", step=None, dtype=None, console=QUIET)
    return folder


def finetuned(folder: Path, run: str, from_: Path, *settings: str) -> dict[str, Any]:
    return finetune(load(str(folder / "tiny.toml"), [*SETTINGS, *settings]), place(folder, run), str(from_))


def test_tokens_are_added_trained_and_exported_from_a_run_and_from_a_folder(folder: Path) -> None:
    finetuned(folder, "own", folder / "run", "finetune.lr=1e-9")
    finetuned(folder, "others", folder / "hf", "finetune.lr=1e-9")
    info = read_object(folder / "own/finetune/stage.json")
    assert info is not None and len(info["new_tokens"]) == len(TOKENS)
    first, last = info["new_tokens"][0], info["new_tokens"][-1]
    before = tensors_of(folder / "run/pretrain")
    for run in ("own", "others"):
        after = tensors_of(folder / run / "finetune")
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            if name in before:
                old = before[name]
                torch.testing.assert_close(after[name][:first], old[:first], rtol=0, atol=1e-6)
                mean = old[:first].mean(0)
                torch.testing.assert_close(after[name][first], mean, rtol=0, atol=1e-6)
                torch.testing.assert_close(after[name][last], mean, rtol=0, atol=1e-6)
        receipt = export_huggingface(folder / run / "finetune", folder / f"{run}-hf", step=None, dtype=None,
                                     console=QUIET)  # fmt: skip
        assert receipt["max_absolute_logit_difference"] < 1e-4
        tokenizer = AutoTokenizer.from_pretrained(folder / f"{run}-hf")
        assert tokenizer.convert_tokens_to_ids(TOKENS) == info["new_tokens"]
        assert tokenizer("<|im_start|>", add_special_tokens=False)["input_ids"] == [first]
        rows = load_file(folder / f"{run}-hf/model.safetensors")["model.embed_tokens.weight"].shape[0]
        assert rows == 384 > last


def test_the_same_command_goes_on_with_the_tokens_it_began_with(folder: Path) -> None:
    first = finetuned(folder, "again", folder / "hf")
    info = (folder / "again/finetune/stage.json").read_text()
    assert finetuned(folder, "again", folder / "hf")["checkpoint"] == first["checkpoint"]
    assert (folder / "again/finetune/stage.json").read_text() == info


@pytest.mark.slow
def test_layout_begins_with_the_rows_of_one_process(folder: Path) -> None:
    for run, layout in (("one", "replicate=1"), ("two", "tensor=2")):
        finetuned(folder, run, folder / "hf", "finetune.lr=1e-9", f"parallel.layout={layout}")
    one, two = (load_model(folder / run / "finetune", None, print).model for run in ("one", "two"))
    for mine, other in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)


def test_frozen_embeddings_get_no_new_tokens(folder: Path) -> None:
    with pytest.raises(RecipeError, match="never learn"):
        finetuned(folder, "lora", folder / "hf", "finetune.method=lora")
    assert not (folder / "lora/finetune").exists()


def test_tokens_that_are_there_need_no_new_rows(folder: Path) -> None:
    settings = ("finetune.data.template=plain", 'finetune.add_tokens=["<|eos|>"]')
    finetuned(folder, "known", folder / "run", *settings)
    info = read_object(folder / "known/finetune/stage.json")
    assert info is not None and info["new_tokens"] == []
