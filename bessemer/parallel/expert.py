"""The expert axis: each rank has some of the experts of every layer, and tokens travel to them.

Two all-to-all exchanges a layer: rows to the ranks of their experts, results back. Every token arrives,
however uneven the routing: how many rows go where is exchanged first (a few numbers; one device-host
sync). No capacity, nothing dropped. Source: arXiv:2006.16668, without its capacity.
Dims: S rows (token and expert pairs), D hidden, E experts, R ranks of the axis.
"""

import torch
from torch import Tensor, nn

from bessemer.model.decoder import Block, Decoder
from bessemer.model.moe import MoE, permuted
from bessemer.parallel.collectives import exchange
from bessemer.parallel.mesh import Group, Mesh


def split_over_experts(model: Decoder, mesh: Mesh) -> None:
    """The experts were cut before (parallel/pieces.py): here their input and output are exchanged."""
    group = mesh.group("expert")
    if group is None:
        return
    for block in model.model.layers.values():
        assert isinstance(block, Block)
        layer = block.feed_forward
        if isinstance(layer, MoE):
            layer.compute = _Exchanged(layer.experts, group)


class _Exchanged:
    """In place of `MoE.compute`: rows sorted by expert in, their results in the same order out."""

    def __init__(self, experts: nn.Module, group: Group) -> None:
        self._experts, self._group = experts, group

    def __call__(self, sorted_SD: Tensor, counts_E: Tensor) -> Tensor:
        ranks = self._group.size()
        each = [len(counts_E) // ranks] * ranks
        mine_E = exchange(counts_E, each, each, self._group)
        counts_RE = mine_E.view(ranks, -1)  # from each rank, for each of this rank's experts
        sent, received = torch.stack([counts_E.view(ranks, -1).sum(1), counts_RE.sum(1)]).tolist()
        rows_SD = exchange(sorted_SD, sent, received, self._group)
        # They come sorted by sender, then expert; the experts want them by expert.
        expert_S = torch.arange(counts_RE.shape[1], device=counts_E.device).repeat(ranks)
        expert_S = expert_S.repeat_interleave(counts_RE.flatten(), output_size=sum(received))
        order_S = expert_S.argsort(stable=True)
        back_S = torch.empty_like(order_S)
        back_S[order_S] = torch.arange(len(order_S), device=order_S.device)
        out_SD = self._experts(permuted(rows_SD, order_S, back_S), counts_RE.sum(0))
        return exchange(permuted(out_SD, back_S, order_S), received, sent, self._group)
