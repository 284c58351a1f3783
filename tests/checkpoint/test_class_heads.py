"""Heads of classes: read from transformers' own classes, written back, and put on models that have none."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from making_layouts import SHAPES

from bessemer.checkpoint.huggingface import load_into, read_shape
from bessemer.errors import DataError, RecipeError
from bessemer.formulas.huggingface.config import config_from_shape
from bessemer.model.decoder import Decoder
from bessemer.model.init import initialise

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MORE: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": None},
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Phi3": {},
    "Gemma3Text": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16},
}


def made(name: str, folder: Path, labels: int = 3, **more: Any) -> Any:
    """transformers' classifier of a family with random weights, and its folder."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **MORE[name], **more, "num_labels": labels})
    model = getattr(transformers, f"{name}ForSequenceClassification")(config).eval()
    model.save_pretrained(folder)
    return model


def loaded(folder: Path) -> Decoder:
    model = Decoder(read_shape(folder, context=16), torch.float32)
    load_into(model, folder)
    return model


@pytest.mark.parametrize("name", MORE)
def test_logits_are_those_of_transformers_own_class(name: str, tmp_path: Path) -> None:
    theirs, ours = made(name, tmp_path), loaded(tmp_path)
    tokens_BT = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = ours.logits(ours(tokens_BT)[:, -1])
        torch.testing.assert_close(found, theirs(tokens_BT).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MORE)
def test_the_config_that_is_written_names_the_class_and_reads_back(name: str, tmp_path: Path) -> None:
    made(name, tmp_path, labels=1)
    shape = read_shape(tmp_path, context=16)
    assert shape.labels == 1 and not shape.tie_embeddings
    config = config_from_shape(shape, torch_dtype="float32")
    wanted = "Llama" if name == "Mistral" else name  # which it is, without a window
    assert config["architectures"] == [f"{wanted}ForSequenceClassification"]
    assert config["problem_type"] == "regression" and config["id2label"] == {"0": "LABEL_0"}


def test_a_family_without_such_a_class_is_refused_by_name() -> None:
    with pytest.raises(RecipeError, match="Glm4Moe"):
        config_from_shape(replace(SHAPES["glm"], shared_ffn=24, labels=2), torch_dtype="float32")


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "its own head"])
def test_a_model_of_words_gets_a_new_head_and_keeps_all_else(tied: bool, tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**SIZES, tie_word_embeddings=tied)
    words = transformers.LlamaForCausalLM(config)
    words.save_pretrained(tmp_path)
    shape = replace(read_shape(tmp_path, context=16), labels=5, tie_embeddings=False)
    with torch.device("meta"):
        model = Decoder(shape, torch.float32)
    initialise(model, shape, 3, "cpu")
    first = model.head_weight.detach().clone()
    load_into(model, tmp_path)
    assert torch.equal(model.head_weight, first) and first.shape == (5, 32) and first.any()
    theirs = words.state_dict()
    assert all(
        torch.equal(each, theirs[name]) for name, each in model.named_parameters() if "score" not in name
    )


def test_another_number_of_labels_is_a_new_head_and_a_missing_block_is_not_forgiven(tmp_path: Path) -> None:
    made("Llama", tmp_path, labels=3)
    shape = read_shape(tmp_path, context=16)
    other = replace(shape, labels=4)
    with torch.device("meta"):
        model = Decoder(other, torch.float32)
    initialise(model, other, 3, "cpu")
    load_into(model, tmp_path)
    assert model.head_weight.shape == (4, 32)
    with pytest.raises(DataError, match=r"missing: model\.layers\.2"):
        load_into(Decoder(replace(shape, layers=3), torch.float32), tmp_path)
