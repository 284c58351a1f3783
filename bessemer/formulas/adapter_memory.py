"""Activations beside adapters: what a block keeps less, as its weights are frozen, and what it keeps more.

Less: no weight gradient of a norm, so not what it multiplies; queries and keys before rotation, which are no
part of one joined result; inputs of matrices without an adapter; what experts are given. More: x Aᵀ of each
adapter, and with DoRA the results before their magnitudes.
Counted from what autograd keeps; a test counts again. Compiled blocks make most of it again: counted alike.
"""

from bessemer.formulas.adapters import matrices
from bessemer.formulas.families import traits_of
from bessemer.formulas.shape import ModelShape

_JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def adapter_bytes_per_token(shape: ModelShape, size: int, compiled: bool, *, routed: bool) -> int:
    """More than without, of one block; often below zero."""
    adapter = shape.adapter
    if adapter is None:
        return 0
    queries_keys = (shape.heads + shape.kv_heads) * shape.head_dim
    found = inner_bytes_per_token(shape, size, routed=routed) - size * queries_keys
    if not compiled:
        found -= (16 if traits_of(shape.family).sandwiched else 8) * shape.hidden
        if shape.qk_norm and size == 2:
            found -= 4 * queries_keys
    sizes = matrices(shape, routed=routed)
    for names in _JOINED:
        if names[0] in sizes and not set(names) & set(adapter.targets):
            found -= size * shape.hidden
    if "down_proj" in sizes and "down_proj" not in adapter.targets:
        found -= size * sizes["down_proj"][1]
    if routed:
        found -= shape.experts_per_token * size * (shape.hidden + shape.expert_ffn)
        found -= 4 * shape.hidden if size == 2 and not compiled else 0  # the router's input
    return found


def inner_bytes_per_token(shape: ModelShape, size: int, *, routed: bool) -> int:
    """x Aᵀ of the adapters of one block, and with DoRA the results that magnitudes multiply."""
    adapter = shape.adapter
    if adapter is None:
        return 0
    outs = [out for name, (out, _) in matrices(shape, routed=routed).items() if name in adapter.targets]
    return size * (adapter.rank * len(outs) + adapter.dora * sum(outs))
