"""Exchanges between devices: seconds of gathers, all-to-alls and sends over a fast domain and a network.

A group of ranks with `stride` ranks between neighbours lies in one fast domain (a node, an NVL72 rack) or in
several. A gather runs as rings that pass each domain once and use the network cards of all of the group's
members there, so it takes the longer of its two parts. Cost: latency x steps + bytes / bandwidth.
Source: ring and hierarchical collectives; latencies as Calculon ships them (10 and 20 us).
Bytes are of the whole gathered tensor; a reduce-scatter takes as long as the gather; an all-reduce twice.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from bessemer.planner.machine.cluster import Cluster

Column = Any


@dataclass(frozen=True)
class Links:
    """How many devices a fast domain joins."""

    domain: Column


def links_of(cluster: Cluster) -> Links:
    return Links(float(max(1, cluster.link_domain)))


def gather_s(tensor_bytes: Column, ranks: Column, stride: Column, links: Links, profile: Any) -> Column:
    """All-gather of `tensor_bytes` (what each rank has in the end) over `ranks`; 0 for one rank."""
    inside = members(ranks, stride, links)
    domains = np.maximum(ranks / inside, 1.0)
    fast_s = tensor_bytes * (ranks - 1.0) / ranks / (profile.link_gb_per_s * 1e9)
    slow_s = tensor_bytes * (domains - 1.0) / domains / (inside * profile.network_gb_per_s * 1e9)
    alone = np.where(inside > 1.0, fast_s, 0.0)
    transfer_s = np.where(domains > 1.0, np.maximum(slow_s, alone), fast_s)
    # NCCL takes trees and few channels for many ranks: steps grow with the logarithm between domains.
    latency_s = profile.link_latency_s * np.minimum(inside - 1.0, 8.0)
    latency_s = latency_s + profile.network_latency_s * np.log2(domains)
    return np.where(ranks > 1.0, transfer_s + latency_s, 0.0)


def all_to_all_s(
    pair_bytes: Column,
    chosen: Column,
    groups: Column,
    ranks: Column,
    stride: Column,
    links: Links,
    profile: Any,
) -> Column:
    """Each rank sends `pair_bytes` for each of its `chosen` experts per token, summed over tokens.

    Between domains one copy goes to each domain that has a chosen expert, and is spread inside it; where
    routing is limited to groups, to no more domains than these (arXiv:2412.19437, 2.1.2).
    """
    inside = members(ranks, stride, links)
    domains = np.maximum(ranks / inside, 1.0)
    fast_s = pair_bytes * chosen * (inside - 1.0) / inside / (profile.link_gb_per_s * 1e9)
    near = np.minimum(domains, groups)
    reached = near * (1.0 - (1.0 - 1.0 / near) ** chosen) * (domains - 1.0) / domains
    slow_s = profile.expert_copies * pair_bytes * reached / (profile.network_gb_per_s * 1e9)
    latency_s = profile.link_latency_s + profile.network_latency_s * (domains > 1.0)
    return np.where(ranks > 1.0, np.maximum(fast_s, slow_s) + latency_s, 0.0)


def send_s(message_bytes: Column, stride: Column, links: Links, profile: Any) -> Column:
    """To the neighbour that is `stride` ranks away."""
    near = stride < links.domain
    rate = np.where(near, profile.link_gb_per_s, profile.network_gb_per_s)
    return message_bytes / (rate * 1e9) + np.where(near, profile.link_latency_s, profile.network_latency_s)


def members(ranks: Column, stride: Column, links: Links) -> Column:
    """Of the group, those in one domain."""
    return np.clip(np.floor(links.domain / stride), 1.0, ranks)
