"""A decoder of the Llama family: RMSNorm, RoPE, grouped-query attention, SwiGLU.

Modules are named so that `state_dict` has Hugging Face's names; how the model is split is a table
elsewhere (formulas/tensors.py). Weights are fp32; the compute type is written here and nowhere else:
every matmul casts its weight on use, activations and residual stream are in the compute type, norms
and softmax work in fp32 inside. No autocast, so that every layout computes the same.
Q, K, V (and gate, up) are separate tensors fused into one matmul on the fly.
Dims: B rows, T tokens, D hidden, H query heads, G key-value heads, K head_dim, F ffn, V vocabulary.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from bessemer.formulas.shape import ModelShape
from bessemer.model.attention import Kind, Mask, allowed_keys, attention, choose, make_mask


class KeyValueCache:
    """Keys and values of the tokens so far, per layer [B, S, G, K]; `length` of S are filled."""

    def __init__(self, shape: ModelShape, rows: int, size: int, like: Tensor) -> None:
        def empty() -> Tensor:
            return like.new_empty((rows, size, shape.kv_heads, shape.head_dim))

        self.keys = [empty() for _ in range(shape.layers)]
        self.values = [empty() for _ in range(shape.layers)]
        self.length = 0

    def extend(self, layer: int, k_BTGK: Tensor, v_BTGK: Tensor) -> tuple[Tensor, Tensor]:
        end = self.length + k_BTGK.shape[1]
        self.keys[layer][:, self.length : end] = k_BTGK
        self.values[layer][:, self.length : end] = v_BTGK
        return self.keys[layer][:, :end], self.values[layer][:, :end]


class Decoder(nn.Module):
    """Tokens to hidden states; `head_weight` turns those into logits."""

    def __init__(self, shape: ModelShape, compute: torch.dtype) -> None:
        super().__init__()
        self.shape = shape
        self.compute = compute
        self.model = Trunk(shape, compute)
        self.lm_head = None if shape.tie_embeddings else Linear(shape.hidden, shape.vocab)

    @property
    def head_weight(self) -> Tensor:
        """[V, D] fp32; the embedding itself when tied."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def forward(
        self, tokens_BT: Tensor, starts_BT: Tensor | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """Hidden states after the final norm, [B, T, D] in the compute type.

        starts_BT: index of the first token of each token's document; None: one document a row.
        With a cache, tokens_BT continue the rows after `cache.length` tokens.
        """
        return self.model(tokens_BT, starts_BT, cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., V] in the compute type. Training does not call this: see model/loss.py."""
        return functional.linear(hidden, self.head_weight.to(hidden.dtype))


class Trunk(nn.Module):
    """Embedding, blocks, final norm. A module of its own for the `model.` in Hugging Face's names."""

    def __init__(self, shape: ModelShape, compute: torch.dtype) -> None:
        super().__init__()
        self.shape = shape
        self.compute = compute
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Block(shape, index) for index in range(shape.layers))
        self.norm = RMSNorm(shape.hidden, shape.norm_eps)
        self.recompute = False  # keep only each block's input, and make the rest again in the backward pass

    def forward(self, tokens_BT: Tensor, starts_BT: Tensor | None, cache: KeyValueCache | None) -> Tensor:
        starts_BT = torch.zeros_like(tokens_BT) if starts_BT is None else starts_BT
        kind = self._kind(tokens_BT.device.type, cache)
        first = cache.length if cache else 0
        if cache:
            mask = Mask(allowed_B1TS=allowed_keys(starts_BT, first + tokens_BT.shape[1], first))
        else:
            mask = make_mask(kind, starts_BT)
        positions_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device) + first - starts_BT
        rope = rotary_angles(self.shape, positions_BT)
        x_BTD = self.embed_tokens(tokens_BT).to(self.compute)
        for block in self.layers:
            if self.recompute and cache is None and torch.is_grad_enabled():
                x_BTD = checkpoint(block, x_BTD, rope, mask, kind, use_reentrant=False)
            else:
                x_BTD = block(x_BTD, rope, mask, kind, cache)
        if cache:
            cache.length += tokens_BT.shape[1]
        return self.norm(x_BTD)

    def _kind(self, device_type: str, cache: KeyValueCache | None) -> Kind:
        return "sdpa" if cache else choose(device_type, self.compute, self.shape.head_dim)


class Block(nn.Module):
    def __init__(self, shape: ModelShape, index: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden, shape.norm_eps)
        self.self_attn = Attention(shape, index)
        self.post_attention_layernorm = RMSNorm(shape.hidden, shape.norm_eps)
        self.mlp = FeedForward(shape.hidden, shape.ffn)

    def forward(
        self,
        x_BTD: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Mask,
        kind: Kind,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), rope, mask, kind, cache)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class Attention(nn.Module):
    def __init__(self, shape: ModelShape, index: int) -> None:
        super().__init__()
        self.index = index
        self.heads, self.kv_heads, self.head_dim = shape.heads, shape.kv_heads, shape.head_dim
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = Linear(shape.hidden, queries)
        self.k_proj = Linear(shape.hidden, keys)
        self.v_proj = Linear(shape.hidden, keys)
        self.o_proj = Linear(queries, shape.hidden)
        self.q_norm = RMSNorm(shape.head_dim, shape.norm_eps) if shape.qk_norm else None
        self.k_norm = RMSNorm(shape.head_dim, shape.norm_eps) if shape.qk_norm else None

    def forward(
        self,
        x_BTD: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Mask,
        kind: Kind,
        cache: KeyValueCache | None,
    ) -> Tensor:
        rows, tokens, _ = x_BTD.shape
        mixed = fused_linear(x_BTD, self.q_proj, self.k_proj, self.v_proj)
        mixed = mixed.view(rows, tokens, self.heads + 2 * self.kv_heads, self.head_dim)
        q_BTHK, k_BTGK, v_BTGK = mixed.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
        if self.q_norm is not None and self.k_norm is not None:
            q_BTHK, k_BTGK = self.q_norm(q_BTHK), self.k_norm(k_BTGK)
        q_BTHK, k_BTGK = rotate(q_BTHK, rope), rotate(k_BTGK, rope)
        if cache:
            k_BTGK, v_BTGK = cache.extend(self.index, k_BTGK, v_BTGK)
        out_BTHK = attention(kind, q_BTHK, k_BTGK, v_BTGK, mask)
        return self.o_proj(out_BTHK.reshape(rows, tokens, self.heads * self.head_dim))


class FeedForward(nn.Module):
    def __init__(self, hidden: int, ffn: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden, ffn)
        self.up_proj = Linear(hidden, ffn)
        self.down_proj = Linear(ffn, hidden)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate_BTF, up_BTF = fused_linear(x_BTD, self.gate_proj, self.up_proj).chunk(2, dim=-1)
        return self.down_proj(functional.silu(gate_BTF) * up_BTF)


class Linear(nn.Module):
    """y = x Wᵀ with an fp32 weight, computed in the type of x."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight.to(x.dtype))


def fused_linear(x: Tensor, *parts: Linear) -> Tensor:
    """The parts' outputs side by side, from one matmul: their weights are joined while they are cast."""
    return functional.linear(x, torch.cat([part.weight.to(x.dtype) for part in parts]))


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dim, in fp32 inside (arXiv:1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale * self.weight).to(x.dtype)


def rotary_angles(shape: ModelShape, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, [B, T, 1, K] fp32 each, in the half-split order of Hugging Face's Llama.

    Computed in every forward pass (cheap against one layer) rather than kept as a buffer, which
    `to_empty` would leave unset. Source: arXiv:2104.09864; scaling: Llama 3.1's reference code.
    """
    half = torch.arange(0, shape.head_dim, 2, device=positions_BT.device, dtype=torch.float32)
    frequency_K = stretched(shape, shape.rope_theta ** -(half / shape.head_dim))
    angle_BTK = positions_BT[..., None].float() * frequency_K
    angle_BT1K = torch.cat([angle_BTK, angle_BTK], dim=-1).unsqueeze(2)
    return angle_BT1K.cos(), angle_BT1K.sin()


def stretched(shape: ModelShape, frequency_K: Tensor) -> Tensor:
    """Rotary frequencies for a longer context: "linear" or "llama3" scaling; none: unchanged."""
    scaling = shape.rope_scaling
    if not scaling:
        return frequency_K
    if scaling["rope_type"] == "linear":
        return frequency_K / scaling["factor"]
    original = scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns_K = original * frequency_K / (2.0 * math.pi)
    smooth_K = ((turns_K - low) / (high - low)).clamp(0.0, 1.0)
    return frequency_K * (smooth_K + (1.0 - smooth_K) / scaling["factor"])


def rotate(x_BTHK: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding of queries or keys, computed in fp32."""
    cos, sin = rope
    wide = x_BTHK.float()
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat([-second, first], dim=-1) * sin).to(x_BTHK.dtype)
