"""Causal attention inside documents, one function for every device.

A packed row holds several documents; `starts` says for each token where its document begins in the
row, so that query t sees the keys starts[t] ≤ j ≤ t and positions are arange − starts. That one
tensor is the whole mask: packing, left padding and cached generation need nothing else.

What runs, chosen once by `choose`:
  "cpu"   our own kernel, on CPUs with AMX or AVX512_BF16 (model/attention_cpu.cpp), bf16 only
  "flex"  FlexAttention, compiled, on accelerators: skips blocks between documents
  "sdpa"  torch's scaled_dot_product_attention with a boolean mask: everywhere, also cached decoding
Dims: B rows, T tokens, S keys, H query heads, G key-value heads, K head_dim.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from bessemer.model import attention_cpu

Kind = Literal["cpu", "flex", "sdpa"]


@dataclass(frozen=True)
class Mask:
    """What the chosen kernel needs to know of the documents; made once per forward pass."""

    starts_BT: Tensor | None = None
    allowed_B1TS: Tensor | None = None
    blocks: BlockMask | None = None


def choose(device_type: str, compute: torch.dtype, head_dim: int) -> Kind:
    """The fastest kernel that is right here."""
    if device_type == "cpu" and compute == torch.bfloat16 and attention_cpu.available() is None:
        return "cpu" if attention_cpu.supported(head_dim) else "sdpa"
    return "sdpa" if device_type == "cpu" else "flex"


def make_mask(kind: Kind, starts_BT: Tensor) -> Mask:
    """The mask of a whole row (queries and keys at the same positions)."""
    if kind == "cpu":
        return Mask(starts_BT=starts_BT.to(torch.int32))
    if kind == "flex":
        return Mask(blocks=_document_blocks(starts_BT))
    return Mask(allowed_B1TS=allowed_keys(starts_BT, starts_BT.shape[1]))


def allowed_keys(starts_BT: Tensor, num_keys: int, first_query: int = 0) -> Tensor:
    """Boolean [B, 1, T, S]: which keys each query sees. Query t stands at position first_query + t."""
    keys_S = torch.arange(num_keys, device=starts_BT.device)
    queries_T = torch.arange(starts_BT.shape[1], device=starts_BT.device) + first_query
    causal_TS = keys_S <= queries_T[:, None]
    return (causal_TS & (keys_S >= starts_BT[:, :, None]))[:, None]


def attention(kind: Kind, q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, mask: Mask) -> Tensor:
    """Softmax(q kᵀ / sqrt(K)) v over the allowed keys -> [B, T, H, K]."""
    if kind == "cpu":
        assert mask.starts_BT is not None
        return attention_cpu.attention(q_BTHK, k_BSGK, v_BSGK, mask.starts_BT)
    q, k, v = q_BTHK.transpose(1, 2), k_BSGK.transpose(1, 2), v_BSGK.transpose(1, 2)
    grouped = q.shape[1] != k.shape[1]
    if kind == "flex":
        mixed = _compiled_flex()(q, k, v, block_mask=mask.blocks, enable_gqa=grouped)
    else:
        mixed = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask.allowed_B1TS, enable_gqa=grouped
        )
    return mixed.transpose(1, 2)


def _document_blocks(starts_BT: Tensor) -> BlockMask:
    rows, tokens = starts_BT.shape

    def inside(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= starts_BT[b, query])

    # Compiled it never holds the full T x T mask; torch compiles it on accelerators only.
    compiled = starts_BT.device.type != "cpu"
    return create_block_mask(inside, rows, None, tokens, tokens, starts_BT.device, _compile=compiled)


_flex: Callable[..., Any] | None = None


def _compiled_flex() -> Callable[..., Any]:
    """FlexAttention is only a fast kernel when compiled; once, at first use."""
    global _flex  # a cache of compiled code, like torch's own
    if _flex is None:
        _flex = torch.compile(flex_attention)
    return _flex
