"""The time in which gradients and weights travel between ranks: of data, of shards, of a pipeline's two ends.

Bytes and ways are those of each stack (cost/profiles.toml); what of it hides behind compute is a share of the
busiest rank's passes. What a stack sends after the last backward pass hides behind nothing.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from bessemer.planner.cost.exchange import Links, gather_s
from bessemer.planner.cost.pipeline import DUALPIPEV, ZBV, Stage
from bessemer.planner.cost.work import Dims, expert_ways

Column = Any


@dataclass(frozen=True)
class Travel:
    """Seconds in a step."""

    shown_s: Column
    hidden_s: Column  # behind compute
    local: Column  # weights that the busiest rank updates


def travel(dims: Dims, layout: Any, links: Links, profile: Any, stage: Stage) -> Travel:
    """Of gradients and weights.

    Weights that are sharded whole (zero 3) are gathered for the forward and again for the backward pass of
    each micro-batch, and its gradients scattered; with zero 2 gathered once, where a stack does so for every
    micro-batch; else gradients and weights travel once a step.
    """
    gathered_s: Column = 0.0
    reduced_s: Column = 0.0
    copied_s: Column = 0.0
    local: Column = 0.0
    weight_bytes = profile.gather_bytes * layout.size / 2.0
    gradient_bytes = profile.gradient_bytes * dims.learned
    for weights, ranks, sharing, stride in _weights(dims, layout, profile, stage):
        inner = np.where(layout.zero > 0, sharing, 1.0)
        gathered_s = gathered_s + gather_s(weight_bytes * weights, inner, stride, links, profile)
        reduced_s = reduced_s + gather_s(gradient_bytes * weights, inner, stride, links, profile)
        piece = gradient_bytes * weights / inner
        copied_s = copied_s + 2.0 * gather_s(piece, ranks / inner, stride * inner, links, profile)
        local = local + dims.learned * weights / inner
    whole, steps = layout.zero == 3, layout.micro_batches
    kept = (layout.zero == 2) & (layout.pipeline == 1.0) & (profile.every_micro_batch > 0)
    each_s = np.where(whole | kept, (1.0 + whole) * gathered_s + reduced_s, 0.0)
    once_s = copied_s + np.where(whole | kept, 0.0, gathered_s + reduced_s)
    room_s = profile.data_overlap * stage.busiest_s
    hidden_each_s = np.minimum(each_s, room_s)
    # Of what travels once a step, and of that alone.
    late_s = copied_s + np.where(whole | kept, 0.0, reduced_s)
    late_s = np.where((layout.pipeline > 1.0) & (profile.released > 0), late_s, 0.0)
    hidden_once_s = np.minimum(once_s - late_s, np.maximum(room_s - each_s, 0.0))
    hidden_s = steps * hidden_each_s + hidden_once_s
    shown_s = steps * (each_s - hidden_each_s) + once_s - hidden_once_s
    # A gather of one layer passes every rank; what waits for it cannot hide that (seen from 256 ranks on).
    rings = np.where(whole, 3.0 * steps, 2.0 * (layout.zero == 2) * np.where(kept, steps, 1.0)) * stage.layers
    passing_s = rings * profile.rank_s * (layout.shard * layout.context - 1.0)
    shown_s = shown_s + passing_s + _tied_ends_s(dims, layout, links, profile)
    return Travel(shown_s + profile.contention * hidden_s, hidden_s, local)


def _tied_ends_s(dims: Dims, layout: Any, links: Links, profile: Any) -> Column:
    """Gradients of a tied embedding, which first and last rank of a pipeline add up when all else is done."""
    shaped = (layout.schedule == ZBV) | (layout.schedule == DUALPIPEV)  # both ends on one rank
    apart = (layout.pipeline > 1.0) & ~shaped & (dims.table_weights == 0) & (dims.learned == 1)
    shards = np.where(layout.zero > 1, layout.shard * layout.context, 1.0)
    part = profile.gradient_bytes * dims.head_weights / layout.tensor / shards
    between = layout.world - layout.world / layout.pipeline
    return np.where(apart, 2.0 * gather_s(part, 2.0, np.maximum(between, 1.0), links, profile), 0.0)


def _weights(
    dims: Dims, layout: Any, profile: Any, stage: Stage
) -> tuple[tuple[Column, Column, Column, Column], ...]:
    """(weights of the busiest rank, ranks that have the same, those of them that shard it, stride of these):
    dense, and of experts."""
    tensor, routed = layout.tensor, dims.routed_layers / dims.layers
    ffn = (1.0 - routed) * dims.ffn_weights + routed * dims.shared_weights
    dense = stage.layers * ((dims.attention_split + ffn) / tensor + dims.attention_whole)
    table = np.where((layout.pipeline > 1.0) & (stage.heads > 0), 0.0, dims.table_weights)
    dense = dense + ((stage.heads > 0) * dims.head_weights + table) / tensor
    spread = expert_ways(layout, profile)
    experts = stage.layers * routed * dims.experts * dims.expert_weights / spread
    sharing = layout.shard * layout.context
    ranks = layout.replicate * sharing
    # The expert axis takes its ranks from the data ranks: who holds the same experts is so many fewer. Where
    # it goes beyond those that shard, replicas share experts too (parallel/mesh.py).
    alike = np.maximum(ranks * tensor / spread, 1.0)
    within = alike / layout.replicate
    return (dense, ranks, sharing, tensor), (experts, alike, np.where(within < 1.0, alike, within), spread)
