"""Shapes of published models, and candidates, for the tests of memory."""

import csv
from pathlib import Path

from bessemer.formulas.layout import SCHEDULES
from bessemer.formulas.shape import ModelShape
from bessemer.planner.cost.candidates import PRECISIONS, RECOMPUTE, Candidates

HERE = Path(__file__).parent


def llama(layers: int, hidden: int, heads: int, kv_heads: int, ffn: int, vocab: int = 128256) -> ModelShape:
    return ModelShape(
        "llama", layers, hidden, heads, kv_heads, hidden // heads, ffn, vocab, 4096,
        tie_embeddings=False, qk_norm=False,
    )  # fmt: skip


def latent(layers: int, hidden: int, ffn: int, vocab: int, **experts: int) -> ModelShape:
    """DeepSeek's; cut to a few layers, of which the first is dense."""
    return ModelShape(
        "deepseek", layers, hidden, 128, 128, 128, ffn, vocab, 4096, tie_embeddings=False, qk_norm=False,
        dense_layers=1, mla_q_rank=1536, mla_kv_rank=512, mla_nope_dim=128, mla_rope_dim=64, mla_v_dim=128,
        **experts,
    )  # fmt: skip


SHAPES = {
    "llama3_70b": llama(12, 8192, 64, 8, 28672),
    "llama3_405b": llama(4, 16384, 128, 16, 53248),  # with the key-value heads that were run
    "deepseek_v2": latent(4, 5120, 12288, 102400, experts=160, experts_per_token=6, expert_ffn=1536,
                          shared_ffn=3072),
    "deepseek_v3": latent(4, 7168, 18432, 129280, experts=256, experts_per_token=8, expert_ffn=2048,
                          shared_ffn=2048),
}  # fmt: skip


def candidate(
    recompute: str = "none", precision: str = "bf16", schedule: str = "1f1b", **words: int
) -> Candidates:
    names = ("replicate", "shard", "tensor", "pipeline", "context", "expert", "interleave", "micro_batch")
    row = {name: words.pop(name, 1) for name in names}
    row |= {"micro_batches": words.pop("micro_batches", 8), "zero": words.pop("zero", 1)}
    assert not words, words
    row |= {"schedule": SCHEDULES.index(schedule), "recompute": RECOMPUTE.index(recompute)}
    return Candidates.of([row | {"precision": PRECISIONS.index(precision)}])


def rows(name: str) -> list[dict[str, str]]:
    lines = (HERE / name).read_text(encoding="utf-8").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))
