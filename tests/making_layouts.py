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
from bessemer.formulas.shape import Adapter, ModelShape
from bessemer.parallel.mesh import Mesh
from bessemer.planner.layout import parse_layout

CONTEXT = 16
DENSE = ModelShape(
    "llama", 4, 32, heads=4, kv_heads=4, head_dim=8, ffn=72, vocab=64, context=CONTEXT,
    tie_embeddings=False, qk_norm=True,
)  # fmt: skip
LORA = Adapter(4, 8.0, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))
MOE = replace(DENSE, family="qwen3-moe", experts=4, experts_per_token=2, expert_ffn=24)
SHAPES = {
    "dense": DENSE,
    "deep": replace(DENSE, layers=8),
    "tied": replace(DENSE, tie_embeddings=True),
    # Three ranks of the tensor axis: 16 tokens and 64 words do not divide.
    "threes": replace(DENSE, heads=6, kv_heads=3, hidden=48),
    "moe": MOE,
    "classes": replace(DENSE, labels=3),
    "reward": replace(DENSE, labels=1),
    "glm": replace(MOE, family="glm4-moe", router="sigmoid_bias", shared_ffn=16, dense_layers=1),
}
WINDOWS = {"sliding_window": 5, "full_every": 2}
SHAPES |= {
    "mistral": replace(DENSE, qk_norm=False, sliding_window=5),
    "qwen2": replace(DENSE, family="qwen2", qk_norm=False, qkv_bias=True, kv_heads=2),
    "qwen3 window": replace(DENSE, family="qwen3", sliding_window=5, full_layers=(0, 1)),
    "gemma": replace(SHAPES["tied"], family="gemma3", **WINDOWS, local_rope_theta=100.0, query_scalar=12.0),
    "phi": replace(DENSE, family="phi3", qk_norm=False, sliding_window=6, rotary_share=0.5),
    "gemma dora": replace(
        SHAPES["tied"], family="gemma3", **WINDOWS, query_scalar=12.0, adapter=replace(LORA, dora=True)
    ),
    "qwen2 lora": replace(DENSE, family="qwen2", qk_norm=False, qkv_bias=True, adapter=LORA),
}
SHAPES |= {
    "lora": replace(DENSE, adapter=LORA),
    "dora": replace(SHAPES["tied"], adapter=replace(LORA, dora=True)),
    "threes dora": replace(SHAPES["threes"], adapter=replace(LORA, rank=3, dora=True, rslora=True)),
    "glm dora": replace(SHAPES["glm"], adapter=replace(LORA, dora=True)),
    "moe lora": replace(MOE, adapter=replace(LORA, targets=("q_proj", "v_proj"))),
    "nf4": replace(DENSE, adapter=replace(LORA, base="nf4")),
    "int8 dora": replace(DENSE, adapter=replace(LORA, dora=True, base="int8")),
    # Columns of a tensor rank begin and end inside blocks of 64.
    "threes nf4 dora": replace(SHAPES["threes"], ffn=150, adapter=replace(LORA, dora=True, base="nf4")),
    "glm nf4": replace(SHAPES["glm"], adapter=replace(LORA, base="nf4")),
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
