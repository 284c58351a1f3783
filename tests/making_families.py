"""Small random models of every family that we read, made by transformers: what ours is compared with.

Weights are large enough, and norms and biases far enough from their first values, that leaving any of them
out shows in the logits. Windows are shorter than the rows, and layers of each kind are there.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    Glm4MoeConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from bessemer.checkpoint.huggingface import load_into, read_shape
from bessemer.model.decoder import Decoder

VOCAB = 192
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
SWITCHED = {"use_sliding_window": True, "sliding_window": 24}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 2.0],
    "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
    "partial_rotary_factor": 0.75,
}
GEMMA = {**SIZES, "num_hidden_layers": 7, "head_dim": 16, "sliding_window": 24}
GEMMA_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "mistral window": MistralConfig(**SIZES, sliding_window=20),
    "qwen2": Qwen2Config(**SIZES),
    "qwen2 window": Qwen2Config(**SIZES, **SWITCHED, max_window_layers=1),
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
    "qwen3 window": Qwen3Config(
        **SIZES, **SWITCHED, head_dim=16,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "qwen3-moe": Qwen3MoeConfig(
        **SIZES, **SWITCHED, **EXPERTS, head_dim=16, num_experts=4, norm_topk_prob=True,
    ),
    "mixtral window": MixtralConfig(**SIZES, sliding_window=20, num_local_experts=4),
    "glm4-moe": Glm4MoeConfig(
        **SIZES, **EXPERTS, head_dim=16, attention_bias=True, n_routed_experts=4, use_qk_norm=True
    ),
    "gemma3": Gemma3TextConfig(**GEMMA, query_pre_attn_scalar=24),
    "gemma3 linear": Gemma3TextConfig(**GEMMA, query_pre_attn_scalar=16, rope_parameters=GEMMA_ROPE),
    "phi3": Phi3Config(**SIZES, sliding_window=30),
    "phi4 mini": Phi3Config(
        **{**SIZES, "hidden_size": 64, "max_position_embeddings": 4096},
        tie_word_embeddings=True, partial_rotary_factor=0.75, original_max_position_embeddings=256,
        rope_parameters=LONG,
    ),
}  # fmt: skip


def trusted(name: str) -> PreTrainedModel:
    """The model of transformers, in fp32."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.dim() == 1:
                tensor.add_(torch.empty_like(tensor).uniform_(-0.4, 0.4))
            else:
                tensor.mul_(4.0)
    return model  # type: ignore[no-any-return]


def imported(folder: Path) -> Decoder:
    model = Decoder(read_shape(folder), torch.float32)
    load_into(model, folder)
    return model
