"""Adapters beside a base in 4 or 8 bits: what is learnt, what memory it takes, how it goes on."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from making_processes import finish, start
from making_runs import assert_same_training, curve, fail, place, pretrained, tensors_of, write_recipe
from safetensors.torch import save_file

from bessemer.checkpoint.base import merged_weights
from bessemer.checkpoint.folder import listed
from bessemer.checkpoint.load import COMPUTE, load_model
from bessemer.finetune.run import finetune
from bessemer.formulas.huggingface.config import config_from_shape
from bessemer.formulas.memory.parts import Workload, device_memory
from bessemer.formulas.shape import Adapter, ModelShape
from bessemer.formulas.tensors import count_params, tensor_table
from bessemer.model.decoder import Decoder
from bessemer.model.init import initial_values
from bessemer.model.pieces import packings
from bessemer.recipe.load import load

SHORT = "pretrain.steps=4"
QLORA = ("finetune.method=qlora", "finetune.lora.rank=4", "finetune.lr=5e-3", "finetune.epochs=6")
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def made(cache: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a run pre-trained for four steps."""
    folder = tmp_path_factory.mktemp("made")
    write_recipe(folder, task=True)
    pretrained(folder, SHORT)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def finetuned(folder: Path, *settings: str, run: str = "run") -> dict[str, Any]:
    return finetune(load(str(folder / "tiny.toml"), [SHORT, *settings]), place(folder, run))


@pytest.mark.parametrize("base", ["nf4", "int8"])
def test_the_task_is_learnt_beside_a_packed_base_and_goes_on_bit_for_bit(folder: Path, base: str) -> None:
    settings = (*QLORA, f"finetune.lora.base={base}")
    finetuned(folder, *settings)
    stage = folder / "run/finetune"
    losses = [row[1] for row in curve(stage)]
    assert losses[-1] < 0.8 * losses[0]
    assert all("lora_" in name for name in tensors_of(stage))
    shutil.copytree(folder / "run", folder / "cut")
    shutil.rmtree(listed(folder / "cut/finetune")[0])
    assert finetuned(folder, *settings, run="cut")["attempts"] == 2
    assert_same_training(folder / "cut/finetune", stage, len(losses))


def test_the_model_of_the_stage_computes_with_packed_weights(folder: Path) -> None:
    finetuned(folder, *QLORA)
    loaded = load_model(folder / "run/finetune", None, fail)
    assert loaded.shape.adapter is not None and loaded.shape.adapter.base == "nf4"
    assert len(packings(loaded.model)) == 7 * loaded.shape.layers
    tokens = torch.arange(24).unsqueeze(0)
    with torch.no_grad():
        found = loaded.model.logits(loaded.model(tokens))
        whole = load_model(folder / "run/pretrain", None, fail).model
        whole.load_state_dict(dict(merged_weights(folder / "run/finetune", loaded.folder)))
        merged = whole.logits(whole(tokens))
    assert 0.0 < float((found - merged).abs().max()) < 0.5 * float(merged.abs().max())


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelShape]:
    """A Hugging Face folder of 103 MB of fp32 weights."""
    folder = tmp_path_factory.mktemp("large")
    shape = ModelShape(
        "llama", 8, 512, heads=8, kv_heads=8, head_dim=64, ffn=1408, vocab=512, context=64,
        tie_embeddings=False, qk_norm=False,
    )  # fmt: skip
    save_file(
        {spec.name: initial_values(spec, 0) for spec in tensor_table(shape)}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps(config_from_shape(shape, torch_dtype="float32")))
    return folder, shape


@pytest.mark.parametrize("base", ["nf4", "int8"])
def test_the_model_is_never_there_in_float(base: str, large: tuple[Path, ModelShape]) -> None:
    folder, shape = large
    script = Path(__file__).with_name("measuring_load.py")
    command = [sys.executable, str(script), str(folder), base]
    # What is freed goes back at once: the question is what is held, not what malloc keeps for later.
    at_once = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=120, env={**os.environ, **at_once}
    )
    told = json.loads(done.stdout)
    packed, whole = told["parameter_bytes"], 4 * count_params(shape)
    assert packed < (0.2 if base == "nf4" else 0.32) * whole and whole > 100 * MEGABYTE
    # Beside it one tensor (3 MB) while it is read, and what a step needs; not the 105 MB of a second model.
    assert told["loaded_bytes"] < packed + 5 * MEGABYTE
    assert told["stepped_bytes"] < packed + 20 * MEGABYTE


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("base", ["float", "nf4", "int8"])
def test_the_formula_has_the_bytes_of_the_model(base: str, dtype: str) -> None:
    adapter = Adapter(8, 16.0, ("q_proj", "down_proj"), base=base)
    shape = ModelShape(
        "llama", 3, 192, heads=6, kv_heads=2, head_dim=32, ffn=500, vocab=640, context=64,
        tie_embeddings=False, qk_norm=True, adapter=adapter,
    )  # fmt: skip
    with torch.device("meta"):
        model = Decoder(shape, COMPUTE[dtype])
    held = sum(weight.nbytes for weight in model.parameters())
    norms = sum(weight.numel() for name, weight in model.named_parameters() if "norm" in name)
    told = device_memory(shape, Workload(64, dtype, "none", compiled=False)).weights
    assert told == held - (2 * norms if dtype == "bf16" else 0)  # norms stay in fp32, which it leaves out


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["shard=2", "tensor=2", "replicate=2"])
def test_ranks_that_load_a_packed_base_train_as_one_process_does(folder: Path, layout: str) -> None:
    """By the command line, on processes of their own, each of which reads and packs its part of the base."""
    shutil.copytree(folder / "run", folder / "wide")
    finetuned(folder, *QLORA)
    settings = [word for each in (SHORT, *QLORA, f'parallel.layout="{layout}"') for word in ("--set", each)]
    command = ["finetune", "tiny.toml", "--run", "wide", "--store", "data", *settings]
    code, _, error = finish(start(folder, *command))
    assert code == 0, error
    wanted, found = (curve(folder / run / "finetune") for run in ("run", "wide"))
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one[1] == pytest.approx(other[1], abs=1e-4)
