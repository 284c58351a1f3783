"""Activations beside adapters: what a block keeps less, as its weights are frozen, and what it keeps more.

Less: no weight gradient of a norm, so not what it multiplies; queries and keys before rotation, which are no
part of one joined result; inputs of matrices without an adapter; what experts are given. More: x Aᵀ of each
adapter, and with DoRA the results before their magnitudes (selective recomputation keeps these alone, and
multiplies again).
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
    found = size * (inner_elements_per_token(shape, routed=routed) - queries_keys)
    found += adapter.dora * size * sum(_outputs(shape, routed))
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


def inner_elements_per_token(shape: ModelShape, *, routed: bool) -> int:
    """Of x Aᵀ of the adapters of one block."""
    return 0 if shape.adapter is None else shape.adapter.rank * len(_outputs(shape, routed))


def whole_results_per_token(shape: ModelShape, *, routed: bool) -> int:
    """Elements of DoRA's results before their magnitudes that each tensor rank has whole: of the matrices of
    one block whose columns are split."""
    adapter, here = shape.adapter, matrices(shape, routed=routed)
    if adapter is None or not adapter.dora:
        return 0
    return shape.hidden * sum(name in here and name in adapter.targets for name in ("o_proj", "down_proj"))


def _outputs(shape: ModelShape, routed: bool) -> list[int]:
    """Of the matrices of one block that have adapters."""
    adapter = shape.adapter
    sizes = matrices(shape, routed=routed).items()
    return [out for name, (out, _) in sizes if adapter is not None and name in adapter.targets]
