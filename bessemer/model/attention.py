"""Causal attention inside documents, one function for every device.

A packed row holds several documents; `starts` says for each token where its document begins in the
row, so that query t sees the keys starts[t] ≤ j ≤ t and positions are arange − starts. That one
tensor is the whole mask: packing, left padding and cached generation need nothing else. A sliding window
raises it (`window_starts`), so that every kernel has windows without knowing of them; what lies before is
skipped as other documents are.

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


Attend = Callable[[Kind, Tensor, Tensor, Tensor, Mask], Tensor]  # as `attention`


class WholeRows:
    """A rank has every token of its rows. Context parallelism has another class in its place."""

    def kind(self, chosen: Kind) -> Kind:
        """The kernel to use: `chosen`, or another where it cannot serve."""
        return chosen

    def index(self, num_tokens: int, device: torch.device) -> Tensor:
        """[T] int64: where in the row each of this rank's tokens stands. num_tokens: of the whole row."""
        return torch.arange(num_tokens, device=device)

    def local(self, x_BT: Tensor) -> Tensor:
        """This rank's part of something that whole rows have, along dim 1."""
        return x_BT

    def mask(self, kind: Kind, starts_BT: Tensor) -> Mask:
        """For this rank's queries over the keys that `attend` sees. starts_BT: of the whole rows."""
        return make_mask(kind, starts_BT)


def make_mask(kind: Kind, starts_BT: Tensor, index_T: Tensor | None = None) -> Mask:
    """The mask of whole rows, or of the queries at `index_T` over the keys of whole rows."""
    if kind == "cpu":
        assert index_T is None, "the kernel wants queries and keys at the same positions"
        return Mask(starts_BT=starts_BT.to(torch.int32))
    if kind == "flex":
        return Mask(blocks=_document_blocks(starts_BT, index_T))
    keys = starts_BT.shape[1]
    if index_T is None:
        return Mask(allowed_B1TS=allowed_keys(starts_BT, keys, torch.arange(keys, device=starts_BT.device)))
    return Mask(allowed_B1TS=allowed_keys(starts_BT[:, index_T], keys, index_T))


def window_starts(starts_BT: Tensor, index_T: Tensor, window: int | None) -> Tensor:
    """The first key that each query sees, where it sees `window` tokens, itself among them. index_T: where
    the queries stand in their rows."""
    return starts_BT if window is None else torch.maximum(starts_BT, index_T - (window - 1))


def allowed_keys(starts_BT: Tensor, num_keys: int, index_T: Tensor) -> Tensor:
    """Boolean [B, 1, T, S]: which keys each query sees. Query t stands at position index_T[t]."""
    keys_S = torch.arange(num_keys, device=starts_BT.device)
    causal_TS = keys_S <= index_T[:, None]
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


def _document_blocks(starts_BT: Tensor, index_T: Tensor | None) -> BlockMask:
    rows, keys = starts_BT.shape
    queries = keys if index_T is None else index_T.shape[0]
    place_T = torch.arange(keys, device=starts_BT.device) if index_T is None else index_T

    def inside(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        place = place_T[query]
        return (key <= place) & (key >= starts_BT[b, place])

    # Compiled it never holds the full T x T mask; torch compiles it on accelerators only.
    compiled = starts_BT.device.type != "cpu"
    return create_block_mask(inside, rows, None, queries, keys, starts_BT.device, _compile=compiled)


_flex: Callable[..., Any] | None = None


def _compiled_flex() -> Callable[..., Any]:
    """FlexAttention is only a fast kernel when compiled; once, at first use."""
    global _flex  # a cache of compiled code, like torch's own
    if _flex is None:
        _flex = torch.compile(flex_attention)
    return _flex
