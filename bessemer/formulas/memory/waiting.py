"""Micro-batches whose weights wait for their gradient, in a pipeline that splits the backward pass.

What waits are the inputs of matmuls and the gradients of their outputs (model/deferred.py). That is less than
what a block keeps that is not recomputed, so there every micro-batch counts alike until its weights are done.
A block that is recomputed keeps little until its backward pass, and waits with as much as any other: on
rank p of the pipeline 2p + 2 of the micro-batches that it holds when it is fullest (rank_moments.py), on the
last one all, so that recomputation saves little there.
Symbols: h hidden, a query heads, k key-value heads, d head size, f feed-forward width.
"""

from bessemer.formulas.memory.parts import Workload, received_by_tensor, selective_bytes_per_token
from bessemer.formulas.parameters import ffn_matrices
from bessemer.formulas.shape import ModelShape


def kept_longer(shape: ModelShape, work: Workload, tensor: int, *, routed: bool) -> int:
    """Bytes of a token and recomputed layer while its weights wait, beyond those for its backward pass.

    tensor: ranks that divide the layer. What goes into its two halves is whole on each (arXiv:2205.05198), as
    the gradient of what comes out is.
    """
    size, hidden = work.size, shape.hidden
    waits = waiting_bytes_per_token(shape, size, routed=routed) + 4 * (tensor - 1) * size * hidden
    if work.recompute == "full":
        return waits - size * hidden
    if work.recompute == "none":
        return 0
    kept = selective_bytes_per_token(shape, size, routed=routed) + received_by_tensor(
        shape, work, tensor, routed=routed
    )
    return max(0, waits - kept)


def waiting_bytes_per_token(shape: ModelShape, size: int, *, routed: bool) -> int:
    """Of one block. Weights that are frozen do not wait; counted as if they did."""
    h, a, k, d = shape.hidden, shape.heads, shape.kv_heads, shape.head_dim
    attention = 2 * h + (2 * a + 2 * k) * d
    ffn = shape.shared_ffn if routed else shape.ffn  # those of experts do not wait
    return size * (attention + (2 * h + ffn_matrices(shape) * ffn if ffn else 0))
