"""Adapters in PEFT's form that ours cannot stand for: refused by their configuration."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bessemer.checkpoint.peft import CONFIG, WEIGHTS, partly_joined, peft_config, peft_shapes
from bessemer.checkpoint.peft_start import check_peft
from bessemer.errors import RecipeError
from bessemer.formulas.shape import Adapter, ModelShape

SHAPE = ModelShape("llama", 2, 32, 4, 2, 8, 48, 64, 16, tie_embeddings=False, qk_norm=False)
LLAMA = replace(SHAPE, adapter=Adapter(4, 8.0, ("q_proj", "v_proj")))
PHI = replace(SHAPE, family="phi3", adapter=Adapter(4, 8.0, ("q_proj", "v_proj")))


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
