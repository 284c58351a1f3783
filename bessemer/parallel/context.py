"""The context axis: each rank has some of the tokens of its rows.

    gather    a rank has two pieces of every row, the n-th from the front and the n-th from the back, so
              that the causal triangle weighs the same on all; keys and values are gathered before
              attention. Right under any mask of documents.
    ulysses   a rank has one piece; before attention tokens are exchanged for heads, so that each rank
              sees whole rows of some heads, and back after it (arXiv:2309.14509).

Everything but attention works on single tokens and notices nothing; positions and masks follow from where
in the row a token stands.
"""

import torch
from torch import Tensor

from bessemer.model.attention import Attend, Kind, Mask, WholeRows, attention, make_mask
from bessemer.model.decoder import Block, Decoder
from bessemer.model.moe import MoE
from bessemer.parallel.collectives import exchange, gather_dim, sum_ranks
from bessemer.parallel.mesh import Group, Mesh


def split_over_context(model: Decoder, mesh: Mesh, context: int) -> None:
    """context: tokens in a whole row; a multiple of twice the degree (gather), or of the degree."""
    group = mesh.group("context")
    if group is None:
        return
    is_gathered = mesh.layout.context_kind == "gather"
    pieces = _front_and_back(context, group.size()) if is_gathered else _in_order(context, group.size())
    rows: _SplitRows = (_GatheredRows if is_gathered else _ExchangedRows)(
        pieces, mesh.place("context"), mesh.device
    )
    attend: Attend = _ExchangedAttention(group)
    if is_gathered:
        attend = _GatheredAttention(pieces, mesh.device, group)
    model.model.rows = rows
    for block in model.model.layers.values():
        assert isinstance(block, Block)
        block.self_attn.attend = attend
        if isinstance(block.feed_forward, MoE):
            block.feed_forward.over_row = lambda partial: sum_ranks(partial, group)


def _front_and_back(context: int, degree: int) -> list[Tensor]:
    """Positions of each rank's tokens, in order."""
    pieces = torch.arange(context).chunk(2 * degree)
    return [torch.cat([pieces[rank], pieces[-1 - rank]]) for rank in range(degree)]


def _in_order(context: int, degree: int) -> list[Tensor]:
    return list(torch.arange(context).chunk(degree))


class _SplitRows(WholeRows):
    def __init__(self, pieces: list[Tensor], place: int, device: torch.device) -> None:
        self._context = sum(len(piece) for piece in pieces)
        self._index_T = pieces[place].to(device)

    def index(self, num_tokens: int, device: torch.device) -> Tensor:
        assert num_tokens == self._context, f"a row of {num_tokens} tokens, made for {self._context}"
        return self._index_T

    def local(self, x_BT: Tensor) -> Tensor:
        return x_BT.index_select(1, self._index_T)


class _GatheredRows(_SplitRows):
    def kind(self, chosen: Kind) -> Kind:
        return "sdpa" if chosen == "cpu" else chosen  # our kernel wants queries and keys side by side

    def mask(self, kind: Kind, starts_BT: Tensor) -> Mask:
        return make_mask(kind, starts_BT, self._index_T)


class _ExchangedRows(_SplitRows):
    """In attention every rank sees whole rows."""


class _GatheredAttention:
    def __init__(self, pieces: list[Tensor], device: torch.device, group: Group) -> None:
        self._order_T = torch.cat(pieces).argsort().to(device)  # place of each position in what is gathered
        self._group = group

    def __call__(self, kind: Kind, q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, mask: Mask) -> Tensor:
        both = torch.cat([k_BTGK, v_BTGK], dim=2)
        whole = gather_dim(both, 1, len(self._order_T), self._group).index_select(1, self._order_T)
        k_BSGK, v_BSGK = whole.chunk(2, dim=2)
        return attention(kind, q_BTHK, k_BSGK, v_BSGK, mask)


class _ExchangedAttention:
    def __init__(self, group: Group) -> None:
        self._group = group

    def __call__(self, kind: Kind, q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, mask: Mask) -> Tensor:
        q, k, v = (self._to_heads(part) for part in (q_BTHK, k_BTGK, v_BTGK))
        return self._to_tokens(attention(kind, q, k, v, mask))

    def _to_heads(self, x_BTHK: Tensor) -> Tensor:
        """All heads of some tokens -> some heads of all tokens."""
        ranks, (rows, tokens, heads, size) = self._group.size(), x_BTHK.shape
        by_rank = x_BTHK.view(rows, tokens, ranks, heads // ranks, size).permute(2, 0, 1, 3, 4)
        received = exchange(by_rank.contiguous(), [1] * ranks, [1] * ranks, self._group)
        return received.permute(1, 0, 2, 3, 4).reshape(rows, ranks * tokens, heads // ranks, size)

    def _to_tokens(self, x_BTHK: Tensor) -> Tensor:
        """And back."""
        ranks, (rows, tokens, heads, size) = self._group.size(), x_BTHK.shape
        by_rank = x_BTHK.view(rows, ranks, tokens // ranks, heads, size).permute(1, 0, 2, 3, 4)
        received = exchange(by_rank.contiguous(), [1] * ranks, [1] * ranks, self._group)
        return received.permute(1, 2, 0, 3, 4).reshape(rows, tokens // ranks, ranks * heads, size)
