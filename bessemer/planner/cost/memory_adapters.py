"""What adapters and a base in 4 or 8 bits change in the columns of our trainer's memory.

As formulas/memory/rank_weights.py has it of one layout: the base is frozen, in the compute type or packed,
without gradients and moments; what learns is the adapters alone.
"""

from dataclasses import dataclass

import numpy as np

from bessemer.formulas.memory.rank_weights import adapter_elements
from bessemer.formulas.quantized import Packed, packed_block, unpacked_bytes
from bessemer.formulas.shape import ModelShape
from bessemer.planner.cost.candidates import Candidates, Floats
from bessemer.planner.cost.memory_lookups import by_degree
from bessemer.planner.cost.memory_parts import RankLayers


@dataclass(frozen=True)
class Added:
    """Of one pipeline rank, before it is sharded."""

    elements: Floats  # of adapters, and of a head of classes
    block: Floats  # of those of the largest block
    late: Floats  # of those of layers without gradients yet
    packed: Floats  # weights in 4 or 8 bits
    packed_bytes: Floats
    block_packed: Floats  # of the largest block
    block_bytes: Floats
    unpacked: Floats  # weights of the largest packed matrix, while it is multiplied with

    @staticmethod
    def of(shape: ModelShape, candidates: Candidates, layers: RankLayers) -> "Added":
        sums = np.zeros((3, len(layers.dense)))
        most, late = np.zeros_like(sums), np.zeros(len(layers.dense))
        kinds = ((False, layers.dense, layers.late_dense), (True, layers.routed, layers.late_routed))
        for routed, count, of_late in kinds:
            if count.any():
                block = _block(shape, candidates, routed)
                sums += count * block
                late += of_late * block[0]
                most = np.maximum(most, (count > 0) * block)
        unpacked = by_degree(candidates, lambda tensor: unpacked_bytes(shape, 1, tensor))
        classes = shape.labels * shape.hidden * layers.has_last
        return Added(sums[0] + classes, most[0], late, sums[1], sums[2], most[1], most[2], unpacked)

    def frozen(self, elements: Floats, size: Floats, shards: Floats | float = 1.0) -> Floats:
        """Bytes of so many frozen weights, of which these are packed. size: of one that is not."""
        return size * (elements - self.packed // shards) + np.ceil(self.packed_bytes / shards)

    def frozen_block(self, elements: Floats, size: Floats) -> Floats:
        return size * (elements - self.block_packed) + self.block_bytes


def _block(shape: ModelShape, candidates: Candidates, routed: bool) -> Floats:
    """[3, candidates]: of one layer the adapters, the packed weights, and the bytes of these."""

    def packed(tensor: int) -> Packed:
        return packed_block(shape, tensor, routed=routed)

    return np.stack(
        [
            by_degree(candidates, lambda tensor: adapter_elements(shape, tensor, routed=routed)),
            by_degree(candidates, lambda tensor: packed(tensor).elements),
            by_degree(candidates, lambda tensor: packed(tensor).bytes),
        ]
    )
