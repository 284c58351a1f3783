"""A small trained stage as the loop leaves it: checkpoint, stage.json, tokenizer, a few rows."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers.decoders import ByteLevel

from bessemer.formulas.shape import ModelShape
from bessemer.model.decoder import Decoder
from bessemer.model.init import initialise

TEXT = ["the quick brown fox jumps over the lazy dog " * 3, "a b c, d: e (f) 3.14 := 'ä' \n\t x" * 3]
SHAPE = ModelShape(
    family="llama",
    layers=2,
    hidden=48,
    heads=4,
    kv_heads=2,
    head_dim=12,
    ffn=96,
    vocab=320,
    context=64,
    tie_embeddings=False,
    qk_norm=False,
    bos_id=0,
    eos_id=1,
)


def write_tokenizer(path: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<bos>", "<eos>", "<pad>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.save(str(path))


def write_checkpoint(stage: Path, shape: ModelShape, step: int = 30) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        model = Decoder(shape, torch.float32)
    initialise(model, shape, seed=step, device="cpu")
    weights = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    folder = stage / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    file = folder / "model-00000.safetensors"
    save_file(weights, file, {"slices": "{}"})
    content = file.read_bytes()
    files = {file.name: {"bytes": len(content), "xxh3_128": xxhash.xxh3_128_hexdigest(content)}}
    manifest = {"step": step, "layout": {}, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return weights


def make_stage(run: Path, **changes: Any) -> Path:
    shape = replace(SHAPE, **changes)
    stage = run / "pretrain"
    write_checkpoint(stage, shape)
    write_tokenizer(stage / "tokenizer.json")
    data = run.parent / "data" / "abc"
    data.mkdir(parents=True, exist_ok=True)
    source = {"name": "docs|x", "kind": "text", "licence": "CC-BY-4.0", "documents": 12, "tokens": 3456}
    (data / "manifest.json").write_text(json.dumps({"sources": [source]}))
    info = {
        "shape": shape.to_json(),
        "tokenizer": "tokenizer.json",
        "kind": "pretrain",
        "data": {"folder": str(data), "hash": "abc"},
        "context": shape.context,
    }
    (stage / "stage.json").write_text(json.dumps(info))
    row = {"attempt": 1, "step": 30, "tokens": 960, "loss": 5.5, "step_time_s": 0.5}
    energy = {"energy_j": 7.2e6, "energy_low_j": 5e6, "energy_high_j": 9e6, "energy_basis": "modelled"}
    (stage / "metrics.jsonl").write_text(json.dumps({**row, **energy}) + "\n")
    return stage


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    return lambda **changes: make_stage(tmp_path / "small", **changes)


@pytest.fixture
def damaged(make: Callable[..., Path]) -> Path:
    """A stage whose newest checkpoint, of step 40, has one bit flipped; that of step 30 is whole."""
    stage = make()
    write_checkpoint(stage, SHAPE, step=40)
    file = stage / "checkpoints/step-00000040/model-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return stage
