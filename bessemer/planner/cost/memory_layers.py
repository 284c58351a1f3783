"""Parameters of one layer on a rank, as the tensor and expert axes divide them: what all stacks share."""

from dataclasses import dataclass

import numpy as np

from bessemer.formulas.parameters import attention_params, ffn_matrices
from bessemer.formulas.shape import ModelShape
from bessemer.planner.cost.candidates import Floats, Ints


@dataclass(frozen=True)
class LayerWeights:
    """Parameters of one layer on a rank."""

    split: Floats  # matrices that the tensor axis divides
    repeated: float  # norms, routers, low-rank projections
    experts: Floats
    distinct: Floats  # largest sum of differently shaped matrices


def layer_weights(shape: ModelShape, tensor: Ints, experts_on: Ints, *, routed: bool) -> LayerWeights:
    """experts_on: how many ways the experts of a layer are divided."""
    hidden = shape.hidden
    low_rank = (
        hidden * (shape.mla_q_rank + shape.mla_kv_rank + shape.mla_rope_dim) if shape.mla_kv_rank else 0
    )
    attention = (attention_params(shape) - low_rank) / tensor
    matrices = ffn_matrices(shape)
    norms = 2 * hidden + (shape.mla_q_rank + shape.mla_kv_rank if shape.mla_kv_rank else 0)
    if not routed:
        inner = matrices * hidden * shape.ffn / tensor
        return LayerWeights(
            attention + inner, norms + low_rank, np.zeros(len(tensor)), attention + inner + low_rank
        )
    shared = matrices * hidden * shape.shared_ffn / tensor
    one = matrices * hidden * shape.expert_ffn
    here = np.maximum(shape.experts / experts_on, 1.0)
    repeated = norms + low_rank + hidden * shape.experts
    # Experts have the same shape, so they share one dummy gradient.
    return LayerWeights(attention + shared, repeated, here * one, attention + shared + low_rank + one)
