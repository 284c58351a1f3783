"""A decoder of the Llama family: RMSNorm, RoPE, grouped-query attention, SwiGLU or experts.

What other families have beside it (norms behind the layers, windows, biases, a GELU gate) follows from the
shape and from formulas/families.py.

Modules are named so that `state_dict` has Hugging Face's names; how the model is split is a table
elsewhere (formulas/tensors.py) and done elsewhere (parallel/). Weights are fp32; the compute type is
written here and nowhere else: every matmul casts its weight on use, activations and residual stream are
in the compute type, norms and softmax work in fp32 inside. No autocast, so that every layout computes
the same.
Q, K, V (and gate, up) are separate tensors fused into one matmul on the fly.
Dims: B rows, T tokens, D hidden, H query heads, G key-value heads, K head_dim, F ffn, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bessemer.formulas.families import traits_of
from bessemer.formulas.shape import ModelShape
from bessemer.model.adapter import add_adapters
from bessemer.model.attention import (
    Attend,
    Kind,
    Mask,
    WholeRows,
    allowed_keys,
    attention,
    choose,
    window_starts,
)
from bessemer.model.layers import FeedForward, Linear, RMSNorm, fused_linear
from bessemer.model.moe import MoE
from bessemer.model.packed import pack_bases
from bessemer.model.recompute import run_block
from bessemer.model.rotary import rotary_angles, rotate


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

    def keep(self, rows_R: Tensor) -> None:
        """Only these rows go on. Layer by layer, so that there is never half a cache more."""
        for held in (self.keys, self.values):
            for layer in range(len(held)):
                held[layer] = held[layer][rows_R]


@dataclass(frozen=True)
class Part:
    """What of a model a pipeline stage holds."""

    layers: range
    first: bool = True  # the embedding
    last: bool = True  # final norm and head


class Decoder(nn.Module):
    """Tokens to hidden states; `head_weight` turns those into logits."""

    def __init__(self, shape: ModelShape, compute: torch.dtype, part: Part | None = None) -> None:
        super().__init__()
        self.shape = shape
        self.compute = compute
        self.part = part or Part(range(shape.layers))
        self.model = Trunk(shape, compute, self.part)
        own_head = self.part.last and not shape.tie_embeddings and not shape.labels
        self.lm_head = Linear(shape.hidden, shape.vocab) if own_head else None
        self.score = Linear(shape.hidden, shape.labels) if self.part.last and shape.labels else None
        if shape.adapter is not None:
            add_adapters(self, shape, compute)
            pack_bases(self, shape)

    @property
    def head_weight(self) -> Tensor:
        """[V, D] fp32; the embedding itself when tied. Of classes: [labels, D]."""
        if self.score is not None:
            return self.score.weight
        if self.lm_head is not None:
            return self.lm_head.weight
        assert self.model.embed_tokens is not None, "only the last part has a head"
        return self.model.embed_tokens.weight

    def forward(
        self,
        tokens_BT: Tensor,
        starts_BT: Tensor | None = None,
        cache: KeyValueCache | None = None,
        *,
        hidden_BTD: Tensor | None = None,
        balance_B: Tensor | None = None,
    ) -> Tensor:
        """Hidden states after the final norm, or this part's last layer: [B, T, D] in the compute type.

        starts_BT: index of the first token of each token's document; None: one document a row.
        With a cache, tokens_BT continue the rows after `cache.length` tokens.
        hidden_BTD: what the part before gave; None for the first part.
        balance_B: weight of each row in the balance of experts; None: not balanced.
        """
        return self.model(tokens_BT, starts_BT, cache, hidden_BTD, balance_B)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., V] in the compute type. Training does not call this: see model/loss.py."""
        return functional.linear(hidden, self.head_weight.to(hidden.dtype))


class Trunk(nn.Module):
    """Embedding, blocks, final norm. A module of its own for the `model.` in Hugging Face's names."""

    def __init__(self, shape: ModelShape, compute: torch.dtype, part: Part) -> None:
        super().__init__()
        self.shape = shape
        self.compute = compute
        has_embedding = part.first or (part.last and shape.tie_embeddings)
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden) if has_embedding else None
        # By number, so that a part's layers keep the names that they have in the whole model.
        self.layers = nn.ModuleDict({str(index): Block(shape, index) for index in part.layers})
        self.norm = _norm(shape) if part.last else None
        self.rows = WholeRows()  # which tokens of its rows this rank has
        self.recompute = "none"  # or "selective", "full": model/recompute.py
        self.recompute_layers: int | None = None  # the first so many of the model; None: all

    def forward(
        self,
        tokens_BT: Tensor,
        starts_BT: Tensor | None,
        cache: KeyValueCache | None,
        hidden_BTD: Tensor | None,
        balance_B: Tensor | None,
    ) -> Tensor:
        starts_BT = torch.zeros_like(tokens_BT) if starts_BT is None else starts_BT
        kind: Kind = "sdpa" if cache else choose(tokens_BT.device.type, self.compute, self.shape.head_dim)
        kind = kind if cache else self.rows.kind(kind)
        views = self._views(starts_BT, kind, cache)
        x_BTD = self._embedded(tokens_BT) if hidden_BTD is None else hidden_BTD
        for name, block in self.layers.items():
            rope, mask = views[self.shape.window_of(int(name))]
            x_BTD = run_block(block, self._recompute(block, cache), x_BTD, rope, mask, kind, cache, balance_B)
        if cache:
            cache.length += tokens_BT.shape[1]
        return x_BTD if self.norm is None else self.norm(x_BTD)

    def _embedded(self, tokens_BT: Tensor) -> Tensor:
        assert self.embed_tokens is not None, "only the first part begins with tokens"
        x_BTD = self.embed_tokens(self.rows.local(tokens_BT)).to(self.compute)
        if not traits_of(self.shape.family).scaled_embedding:
            return x_BTD
        # Rounded first, as transformers does: in bf16 sqrt(1152) is 34.
        return x_BTD * torch.tensor(self.shape.hidden**0.5, dtype=x_BTD.dtype, device=x_BTD.device)

    def _views(self, starts_BT: Tensor, kind: Kind, cache: KeyValueCache | None) -> "dict[int | None, View]":
        """By window: what layers of each kind see, made once for all of them."""
        tokens, device = starts_BT.shape[1], starts_BT.device
        if cache:
            index_T = row_T = torch.arange(tokens, device=device) + cache.length
        else:
            index_T, row_T = self.rows.index(tokens, device), torch.arange(tokens, device=device)
        positions_BT = index_T - self.rows.local(starts_BT)
        views: dict[int | None, View] = {}
        for window in {self.shape.window_of(int(name)) for name in self.layers}:
            rope = rotary_angles(self.shape, positions_BT, windowed=window is not None)
            seen_BT = window_starts(starts_BT, row_T, window)
            if cache:
                mask = Mask(allowed_B1TS=allowed_keys(seen_BT, cache.length + tokens, index_T))
            else:
                mask = self.rows.mask(kind, seen_BT)
            views[window] = rope, mask
        return views

    def _recompute(self, block: Any, cache: KeyValueCache | None) -> str:
        if cache or (self.recompute_layers is not None and block.index >= self.recompute_layers):
            return "none"
        return self.recompute


View = tuple[tuple[Tensor, Tensor], Mask]  # rotary angles, and which keys are seen


class Block(nn.Module):
    """Pre-norm, or with norms on both sides of attention and feed-forward layer ("sandwiched")."""

    def __init__(self, shape: ModelShape, index: int) -> None:
        super().__init__()
        self.index = index
        traits = traits_of(shape.family)
        self.input_layernorm = _norm(shape)
        self.self_attn = Attention(shape, index)
        # Sandwiched, it belongs to attention; else it is the one before the feed-forward layer.
        self.post_attention_layernorm = _norm(shape)
        self.pre_feedforward_layernorm = _norm(shape) if traits.sandwiched else None
        self.post_feedforward_layernorm = _norm(shape) if traits.sandwiched else None
        routed = shape.experts > 0 and index >= shape.dense_layers
        self.room = "block_sparse_moe" if routed and shape.family == "mixtral" else "mlp"
        self.add_module(
            self.room, MoE(shape) if routed else FeedForward(shape.hidden, shape.ffn, traits.gate)
        )

    def forward(
        self,
        x_BTD: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Mask,
        kind: Kind,
        cache: KeyValueCache | None = None,
        balance_B: Tensor | None = None,
    ) -> Tensor:
        attended_BTD = self.self_attn(self.input_layernorm(x_BTD), rope, mask, kind, cache)
        if self.pre_feedforward_layernorm is None or self.post_feedforward_layernorm is None:
            x_BTD = x_BTD + attended_BTD
            return x_BTD + self._fed_forward(self.post_attention_layernorm(x_BTD), balance_B)
        x_BTD = x_BTD + self.post_attention_layernorm(attended_BTD)
        fed_BTD = self._fed_forward(self.pre_feedforward_layernorm(x_BTD), balance_B)
        return x_BTD + self.post_feedforward_layernorm(fed_BTD)

    def _fed_forward(self, x_BTD: Tensor, balance_B: Tensor | None) -> Tensor:
        layer = self.feed_forward
        fed_BTD: Tensor = layer(x_BTD, balance_B) if isinstance(layer, MoE) else layer(x_BTD)
        return fed_BTD

    @property
    def feed_forward(self) -> nn.Module:
        """The dense layer or the experts, under whichever name the family gives them."""
        return getattr(self, self.room)  # type: ignore[no-any-return]


class Attention(nn.Module):
    def __init__(self, shape: ModelShape, index: int) -> None:
        super().__init__()
        self.index = index
        self.heads, self.kv_heads, self.head_dim = shape.heads, shape.kv_heads, shape.head_dim
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = Linear(shape.hidden, queries, bias=shape.qkv_bias)
        self.k_proj = Linear(shape.hidden, keys, bias=shape.qkv_bias)
        self.v_proj = Linear(shape.hidden, keys, bias=shape.qkv_bias)
        self.o_proj = Linear(queries, shape.hidden)
        self.q_norm = _norm(shape, shape.head_dim) if shape.qk_norm else None
        self.k_norm = _norm(shape, shape.head_dim) if shape.qk_norm else None
        # Every kernel divides scores by sqrt(head_dim); what is wanted beyond that, queries bring along.
        self.query_scale = (shape.head_dim / (shape.query_scalar or shape.head_dim)) ** 0.5
        self.attend: Attend = attention  # over this rank's tokens; context parallelism puts its own here

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
        q_BTHK, k_BTGK, v_BTGK = (part.view(rows, tokens, -1, self.head_dim) for part in mixed)
        if self.q_norm is not None and self.k_norm is not None:
            q_BTHK, k_BTGK = self.q_norm(q_BTHK), self.k_norm(k_BTGK)
        q_BTHK, k_BTGK = rotate(q_BTHK, rope, self.query_scale), rotate(k_BTGK, rope)
        if cache:
            k_BTGK, v_BTGK = cache.extend(self.index, k_BTGK, v_BTGK)
        out_BTHK = self.attend(kind, q_BTHK, k_BTGK, v_BTGK, mask)
        return self.o_proj(out_BTHK.reshape(rows, tokens, self.heads * self.head_dim))


def _norm(shape: ModelShape, size: int | None = None) -> RMSNorm:
    return RMSNorm(size or shape.hidden, shape.norm_eps, centred=traits_of(shape.family).centred)
