"""Copies of matrices, against what the layers' own function makes of them."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bessemer.formulas.memory.copies import copied_elements, largest_copy
from bessemer.formulas.shape import ModelShape
from bessemer.model.deferred import joined
from bessemer.parallel.traffic import TensorMemory

SWIGLU = ModelShape("llama", 2, 64, 4, 2, 16, 160, 256, 32, tie_embeddings=False, qk_norm=False)
GELU = replace(SWIGLU, family="gpt2", gated=False, norm="layer", positions=32, ffn=256)
WIDE_ATTENTION = replace(GELU, ffn=64)
ROUTED = replace(
    SWIGLU, family="glm4-moe", experts=4, experts_per_token=2, expert_ffn=96, shared_ffn=32, dense_layers=1
)
TYPES = {2: torch.bfloat16, 4: torch.float32}


def copies(shape: ModelShape, size: int, routed: bool) -> list[int]:
    """Bytes that a layer's linear layers make of their fp32 weights, one after the other; not the experts."""
    width = shape.shared_ffn if routed else shape.ffn
    heads = shape.heads * shape.head_dim

    def weights(*rows: int, inputs: int = shape.hidden) -> list[Tensor]:
        return [torch.zeros(count, inputs) for count in rows]

    keys = shape.kv_heads * shape.head_dim
    inputs = [weights(heads, keys, keys), weights(shape.hidden, inputs=heads)]
    inputs += [weights(*[width] * (2 if shape.gated else 1)), weights(shape.hidden, inputs=width)]
    found = []
    for matrices in inputs:
        with TensorMemory() as memory:
            kept = joined(matrices, TYPES[size])
            same = kept.untyped_storage().data_ptr() == matrices[0].untyped_storage().data_ptr()
            found.append(0 if same else memory.now)
    return found


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(
    ("shape", "routed"),
    [(SWIGLU, False), (GELU, False), (WIDE_ATTENTION, False), (ROUTED, False), (ROUTED, True)],
    ids=["swiglu", "gelu", "wide attention", "dense of experts", "routed"],
)
def test_copies_are_those_that_linear_layers_make(shape: ModelShape, routed: bool, size: int) -> None:
    made = copies(shape, size, routed)
    assert sum(made) == size * copied_elements(shape, size, routed=routed)[0]
    assert max(made) == size * largest_copy(shape, size, routed=routed)


def test_experts_are_cast_all_and_joined_never() -> None:
    assert copied_elements(ROUTED, 2, routed=True)[1] == 4 * 3 * 64 * 96
    assert copied_elements(ROUTED, 4, routed=True)[1] == copied_elements(ROUTED, 2, routed=False)[1] == 0
