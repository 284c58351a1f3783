"""Mixtures of experts to and from Hugging Face: tiny random models of each class, in both directions."""

from pathlib import Path
from typing import Any

import pytest
import torch
from making_trained import trained_stage
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from bessemer.checkpoint.huggingface import load_into, read_shape
from bessemer.errors import DataError
from bessemer.export.huggingface import export_huggingface
from bessemer.log import Console
from bessemer.model.decoder import Decoder
from bessemer.model.generate import generate
from bessemer.model.pieces import stored, whole_pieces

QUIET = Console(quiet=True)
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-moe": {"family": "qwen3-moe", "layers": 3, "dense_layers": 1, "qk_norm": True, "expert_ffn": 32},
    "mixtral": {"family": "mixtral", "tie_embeddings": True, "ffn": 40, "expert_ffn": 40},
    "glm4-moe": {
        "family": "glm4-moe",
        "layers": 3,
        "dense_layers": 1,
        "qk_norm": True,
        "router": "sigmoid_bias",
        "expert_ffn": 24,
        "shared_ffn": 48,
        "rope_theta": 5e4,
    },
    "glm4-moe plain": {
        "family": "glm4-moe",
        "router": "sigmoid_bias",
        "expert_ffn": 20,
        "shared_ffn": 20,
        "norm_eps": 1e-3,
    },
}
EXPERTS = {"experts": 4, "experts_per_token": 2}
SIZES = {
    "vocab_size": 192,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "num_experts_per_tok": 2,
}


def by_stored_name(model: Decoder) -> dict[str, Tensor]:
    state = dict(stored(model))
    return {piece.name: piece.of(state[key]) for key, each in whole_pieces(model).items() for piece in each}


def qwen3_moe(**changes: Any) -> PreTrainedModel:
    values = {"head_dim": 16, "num_experts": 4, "moe_intermediate_size": 24, "norm_topk_prob": True}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **{**values, **changes}))


def mixtral(**changes: Any) -> PreTrainedModel:
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4, **changes))


def glm4_moe(**changes: Any) -> PreTrainedModel:
    values = {"n_routed_experts": 4, "moe_intermediate_size": 24, "partial_rotary_factor": 1.0}
    return Glm4MoeForCausalLM(Glm4MoeConfig(**SIZES, **{**values, **changes}))


def randomised(model: PreTrainedModel) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(4)
    for tensor in model.state_dict().values():
        noise = torch.randn(tensor.shape, generator=generator)
        tensor.copy_(1.0 + 0.2 * noise if tensor.dim() == 1 else noise * tensor.shape[-1] ** -0.5)
    return model.eval()


def imported(folder: Path) -> Decoder:
    model = Decoder(read_shape(folder), torch.float32)
    load_into(model, folder)
    return model


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES.keys())
def test_export_is_bitwise_and_loads_in_transformers_with_our_logits(make, tmp_path, changes):
    stage, shape, trained = trained_stage(make, **EXPERTS, **changes)
    receipt = export_huggingface(stage, tmp_path / "hf", step=None, dtype=None, console=QUIET)
    exported = load_file(tmp_path / "hf/model.safetensors")
    assert exported.keys() == trained.keys()
    assert all(torch.equal(exported[name], trained[name]) for name in trained)
    assert receipt["max_absolute_logit_difference"] < 2e-5 < 1e-1 < receipt["largest_logit"]
    read = read_shape(tmp_path / "hf", context=shape.context)
    assert read.to_json() | {"max_positions": None} == shape.to_json()


def test_export_in_bf16_keeps_the_routers_bias_in_fp32(make, tmp_path):
    stage, _, trained = trained_stage(make, **EXPERTS, **SHAPES["glm4-moe"])
    export_huggingface(stage, tmp_path / "hf", step=None, dtype="bf16", console=QUIET)
    for name, tensor in load_file(tmp_path / "hf/model.safetensors").items():
        kept = name.endswith("e_score_correction_bias")
        assert torch.equal(tensor, trained[name] if kept else trained[name].to(torch.bfloat16)), name
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", local_files_only=True)
    assert (model.dtype, model.model.layers[1].mlp.gate.weight.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize(
    "trusted",
    [
        qwen3_moe,
        lambda: qwen3_moe(mlp_only_layers=[0, 1], tie_word_embeddings=True),
        mixtral,
        lambda: glm4_moe(use_qk_norm=True, n_shared_experts=2),
        lambda: glm4_moe(first_k_dense_replace=0, head_dim=16),
    ],
    ids=["qwen3-moe", "qwen3-moe dense first", "mixtral", "glm4-moe", "glm4-moe no dense layer"],
)
def test_imported_model_is_bitwise_that_of_transformers_with_its_logits(trusted, tmp_path):
    torch.manual_seed(0)
    model = randomised(trusted())
    model.save_pretrained(tmp_path)
    ours, tokens = imported(tmp_path), torch.randint(0, 192, (2, 100))
    assert not [name for name in load_file(tmp_path / "model.safetensors") if "gate_up_proj" in name]
    held = by_stored_name(ours)
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        assert torch.equal(held[name], tensor), name
    with torch.inference_mode():
        torch.testing.assert_close(ours.logits(ours(tokens)), model(tokens).logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("trusted", [qwen3_moe, mixtral, glm4_moe], ids=["qwen3-moe", "mixtral", "glm4-moe"])
def test_generation_token_by_token_equals_reading_the_text_again(trusted, tmp_path):
    torch.manual_seed(0)
    randomised(trusted()).save_pretrained(tmp_path)
    model, text = imported(tmp_path), [5, 17, 90, 3]
    (got,) = generate(model, [text], max_tokens=12, eos_id=None)
    with torch.no_grad():
        for _ in range(12):
            text = [*text, int(model.logits(model(torch.tensor([text]))[0, -1]).argmax())]
    assert got == text[4:]
    assert len(set(got)) > 2


def test_missing_expert_is_named_before_any_weight_changes(tmp_path):
    mixtral().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    del tensors[name]
    save_file(tensors, file)
    with pytest.raises(DataError, match=f"missing: {name}"):
        imported(tmp_path)
