"""Matrices that are copied to be used: in bf16 each is cast, in fp32 those that share an input are joined.

Routers compute in fp32 from the weights as they are; experts share no input that would be joined. A
feed-forward layer of two matrices joins nothing: its first one is used as it is in fp32.
Source: model/layers.py, model/moe.py. How long copies are kept, by layout: formulas/memory/rank_weights.py.
"""

from bessemer.formulas.parameters import attention_params, ffn_matrices, num_dense_layers
from bessemer.formulas.shape import ModelShape


def copied_elements(shape: ModelShape, size: int, *, routed: bool) -> tuple[int, int]:
    """Of one layer: (of matrices that every token meets, of all experts). size: bytes of an activation."""
    width = shape.shared_ffn if routed else shape.ffn
    if size == 4:
        return shape.hidden * (_queries_keys_values(shape) + _gates_ups(shape, width)), 0
    experts = shape.experts * shape.expert_ffn if routed else 0
    per_width = ffn_matrices(shape) * shape.hidden
    return attention_params(shape) + per_width * width, per_width * experts


def largest_copy(shape: ModelShape, size: int, *, routed: bool) -> int:
    """Elements of the largest one of a layer, experts aside."""
    width = shape.shared_ffn if routed else shape.ffn
    alone = width if size == 2 else 0  # a matrix that is not joined is copied only to cast it
    both = max(_gates_ups(shape, width), alone)
    return shape.hidden * max((shape.heads + 2 * shape.kv_heads) * shape.head_dim, both)


def joined_matrices(shape: ModelShape) -> int:
    """Of the model: weights that are copied into one matrix before use."""
    dense = num_dense_layers(shape)
    counts = ((False, dense), (True, shape.layers - dense))
    return sum(count * copied_elements(shape, 4, routed=routed)[0] for routed, count in counts)


def _queries_keys_values(shape: ModelShape) -> int:
    """Rows of the matrix that they are joined to."""
    return 0 if shape.mla_kv_rank else (shape.heads + 2 * shape.kv_heads) * shape.head_dim


def _gates_ups(shape: ModelShape, width: int) -> int:
    return 2 * width if shape.gated else 0
