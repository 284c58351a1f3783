"""Every family that we write: exported bit for bit, read again, and loaded by transformers."""

from typing import Any

import pytest
import torch
from making_trained import trained_stage
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from bessemer.checkpoint.huggingface import load_into, read_parts, read_shape
from bessemer.export.huggingface import export_huggingface
from bessemer.export.weights import write_weights
from bessemer.log import Console
from bessemer.model.decoder import Decoder

LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.5],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
    "original_max_position_embeddings": 64,
    "attention_factor": 1.0,
}
GEMMA = {"qk_norm": True, "sliding_window": 16, "local_rope_theta": 500.0, "tie_embeddings": True}
SHAPES: dict[str, dict[str, Any]] = {
    "llama with a window": {"sliding_window": 16},
    "qwen2": {"family": "qwen2", "qkv_bias": True},
    "qwen2 with windows": {"family": "qwen2", "qkv_bias": True, "sliding_window": 16, "full_layers": (0, 1),
                           "layers": 4},
    "qwen3 with windows": {"family": "qwen3", "qk_norm": True, "sliding_window": 16, "full_every": 2},
    "gemma3": {"family": "gemma3", **GEMMA, "full_every": 2, "layers": 3, "query_scalar": 20.0},
    "gemma3 from a recipe": {"family": "gemma3", **GEMMA, "full_every": 6},
    "phi3": {"family": "phi3", "sliding_window": 16},
    "phi4 mini": {"family": "phi3", "head_dim": 12, "rotary_share": 8 / 12, "rope_scaling": LONG,
                  "tie_embeddings": True},
}  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformers")


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES.keys())
def test_export_loads_in_transformers_with_our_logits_and_comes_back_bitwise(make, tmp_path, changes):
    stage, shape, trained = trained_stage(make, **changes)
    out = tmp_path / "hf"
    receipt = export_huggingface(stage, out, step=None, dtype=None, console=Console(quiet=True))
    assert receipt["max_absolute_logit_difference"] < 2e-5 < 1e-1 < receipt["largest_logit"]
    read = read_shape(out, context=shape.context)
    again = dict(read_parts(out, read))
    assert again.keys() == trained.keys()
    assert all(torch.equal(again[name], trained[name]) for name in trained)
    model, tokens = Decoder(shape, torch.float32), torch.arange(48)[None]
    model.load_state_dict(trained)
    reread = Decoder(read, torch.float32)
    load_into(reread, out)
    assert torch.equal(model(tokens), reread(tokens))
    assert read.window_of(0) == shape.window_of(0)


def test_shards_of_joined_tensors_are_those_of_one_file(make, tmp_path):
    stage, shape, trained = trained_stage(make, **SHAPES["phi3"])
    one, many = tmp_path / "one", tmp_path / "many"
    for folder, size in ((one, 10**9), (many, 30_000)):
        folder.mkdir()
        write_weights(stage / "checkpoints/step-00000030", shape, folder, None, shard_bytes=size)
    files = sorted(many.glob("*.safetensors"))
    together = {name: tensor for file in files for name, tensor in load_file(file).items()}
    whole = load_file(one / "model.safetensors")
    assert len(files) > 3 and together.keys() == whole.keys()
    assert all(torch.equal(together[name], whole[name]) for name in whole)
    joined = [trained[f"model.layers.0.self_attn.{part}_proj.weight"] for part in "qkv"]
    assert torch.equal(whole["model.layers.0.self_attn.qkv_proj.weight"], torch.cat(joined))


def test_exported_phi_generates_in_transformers_as_its_config_says(make, tmp_path):
    stage, *_ = trained_stage(make, **SHAPES["phi4 mini"])
    export_huggingface(stage, tmp_path / "hf", step=None, dtype="bf16", console=Console(quiet=True))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", local_files_only=True)
    assert model.dtype == torch.bfloat16
    assert model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4).shape[1] <= 7
