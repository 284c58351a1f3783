"""Adapters in PEFT's form that ours cannot stand for: refused by their configuration."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from bessemer.checkpoint.peft import CONFIG, WEIGHTS, partly_joined, peft_config, peft_scales, peft_shapes
from bessemer.checkpoint.peft_start import check_peft
from bessemer.errors import RecipeError
from bessemer.formulas.shape import Adapter, ModelShape

SHAPE = ModelShape("llama", 2, 32, 4, 2, 8, 48, 64, 16, tie_embeddings=False, qk_norm=False)
LLAMA = replace(SHAPE, adapter=Adapter(4, 8.0, ("q_proj", "v_proj")))
PHI = replace(SHAPE, family="phi3", adapter=Adapter(4, 8.0, ("q_proj", "v_proj")))
LAYERS = r"model\.layers\.\d+\.self_attn"
SAME = [
    (LLAMA, {"r": 8, "rank_pattern": {"q_proj": 4, rf"{LAYERS}\.v_proj": 4}}),
    (LLAMA, {"lora_alpha": 16, "alpha_pattern": {"self_attn.[qv]_proj": 8.0, ".*": 64}}),
    (LLAMA, {"rank_pattern": {"k_proj": 64, "proj": 2, "layers": 3}}),
    (PHI, {"alpha_pattern": {rf"{LAYERS}\.qkv_proj": 16}, "rank_pattern": {".*qkv.*": 8}}),
]


def written(folder: Path, shape: ModelShape, **changes: Any) -> Path:
    config = {**peft_config(shape, None), **changes}
    (folder / CONFIG).write_text(json.dumps(config))
    save_file({name: torch.zeros(size) for name, size in peft_shapes(shape).items()}, folder / WEIGHTS)
    return folder


def refused(folder: Path, shape: ModelShape, **changes: Any) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        check_peft(written(folder, shape, **changes), shape)
    return caught.value


@pytest.mark.parametrize("shape", [LLAMA, PHI], ids=["apart", "joined"])
def test_what_our_export_writes_is_taken(shape: ModelShape, tmp_path: Path) -> None:
    check_peft(written(tmp_path, shape), shape)
    check_peft(written(tmp_path, shape, init_lora_weights="gaussian"), shape)


@pytest.mark.parametrize("shape", [LLAMA, PHI], ids=["apart", "joined"])
def test_a_module_with_a_scale_of_its_own_is_refused(shape: ModelShape, tmp_path: Path) -> None:
    module = "q_proj" if shape is LLAMA else "qkv_proj"
    error = refused(tmp_path, shape, alpha_pattern={module: 32})
    assert "alpha_pattern" in error.found and "32" in error.found and "merge_and_unload" in error.fix


@pytest.mark.parametrize(("shape", "changes"), SAME)
def test_other_words_for_the_same_ranks_and_scales_are_taken(
    shape: ModelShape, changes: dict[str, Any], tmp_path: Path
) -> None:
    check_peft(written(tmp_path, shape, **changes), shape)


def test_what_is_refused_says_for_which_module_and_what_would_do(tmp_path: Path) -> None:
    error = refused(tmp_path, LLAMA, rank_pattern={r"layers.1.self_attn.v_proj": 2})
    assert "2 for model.layers.1.self_attn.v_proj" in error.found and error.wanted.startswith("4:")
    error = refused(tmp_path, LLAMA, r=64, rank_pattern={"[qv]_proj": 2})
    assert error.fix.startswith("set finetune.lora.rank=2, or merge them")
    assert refused(tmp_path, LLAMA, lora_alpha=32).fix == "set finetune.lora.alpha=32"
    assert "unterminated" in refused(tmp_path, LLAMA, alpha_pattern={"[q": 2}).found


# peft 0.21 asks transformers 5.24 by a name that it gives up in 6, and warns of what has no effect.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning")
@pytest.mark.parametrize("changes", [changes for shape, changes in SAME if shape is LLAMA])
def test_ranks_and_scales_are_those_that_peft_gives(changes: dict[str, Any]) -> None:
    config = LoraConfig(target_modules=["q_proj", "v_proj"], **changes)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, vocab_size=64, **sizes)), config)
    theirs = {
        name.removeprefix("base_model.model."): (module.r["default"], module.lora_alpha["default"])
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    assert len(theirs) == 4 and peft_scales(config.to_dict(), LLAMA) == theirs


@pytest.mark.parametrize("begun", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga"])
def test_adapters_that_changed_their_base_are_refused(begun: str, tmp_path: Path) -> None:
    error = refused(tmp_path, LLAMA, init_lora_weights=begun)
    assert begun in error.found and "save_pretrained" in error.fix


def test_magnitudes_of_a_part_of_a_joined_matrix_are_told() -> None:
    some, whole = ("q_proj", "gate_proj"), ("q_proj", "k_proj", "v_proj")
    dora = Adapter(4, 8.0, some, dora=True)
    assert partly_joined(replace(SHAPE, family="phi3", adapter=dora)) == "qkv_proj"
    assert partly_joined(replace(SHAPE, family="phi3", adapter=replace(dora, targets=whole))) is None
    assert partly_joined(replace(SHAPE, adapter=dora)) is None and partly_joined(PHI) is None
