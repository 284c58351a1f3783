"""Models and layouts for the tests of the parallel room, and a layout's ranks one after the other.

torch's fake process group lets one process be any rank of any world: meshes and models are built as on real
ranks, and nothing can be sent.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist
from torch.distributed.tensor.debug import _clear_sharding_prop_cache
from torch.testing._internal.distributed.fake_pg import FakeStore

from bessemer.formulas.layout import Layout
from bessemer.formulas.shape import ModelShape
from bessemer.parallel.mesh import Mesh
from bessemer.planner.layout import parse_layout

CONTEXT = 16
DENSE = ModelShape(
    "llama", 4, 32, heads=4, kv_heads=4, head_dim=8, ffn=72, vocab=64, context=CONTEXT,
    tie_embeddings=False, qk_norm=True,
)  # fmt: skip
MOE = replace(DENSE, family="qwen3-moe", experts=4, experts_per_token=2, expert_ffn=24)
SHAPES = {
    "dense": DENSE,
    "deep": replace(DENSE, layers=8),
    "tied": replace(DENSE, tie_embeddings=True),
    # Three ranks of the tensor axis: 16 tokens and 64 words do not divide.
    "threes": replace(DENSE, heads=6, kv_heads=3, hidden=48),
    "moe": MOE,
    "glm": replace(MOE, family="glm4-moe", router="sigmoid_bias", shared_ffn=16, dense_layers=1),
}


def layout_of(text: str) -> Layout:
    return parse_layout(text)


@contextmanager
def as_rank(layout: Layout, rank: int) -> Iterator[Mesh]:
    """This process is one rank of a world in which nobody else exists."""
    if layout.world > 1:
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=layout.world)
    try:
        yield Mesh(layout, torch.device("cpu"))
    finally:
        if layout.world > 1:
            dist.destroy_process_group()
            # It keeps meshes, finds those of all ranks equal, and would give the next rank this one's.
            _clear_sharding_prop_cache()
