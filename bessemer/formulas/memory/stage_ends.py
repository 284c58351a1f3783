"""What a micro-batch on its way keeps on a pipeline's stage beside the stage's layers.

What the stage gave, until its gradient comes; what it was given, where its first layer keeps no more than a
copy of that; cosines and sines of its positions. Little, but with one layer on a stage 5 % of a rank.
Source: parallel/pipeline.py, model/decoder.py.
"""

from bessemer.formulas.memory.parts import Workload
from bessemer.formulas.shape import ModelShape


def given_bytes(shape: ModelShape, work: Workload, layers: range = range(1)) -> int:
    """Of a token that came from the stage before. layers: of the stage."""
    # Then it keeps what it was given.
    recomputes = work.recompute == "selective" or work.recomputed_of(layers) > 0
    copied = work.size == 2 and not work.compiled  # a norm computes in fp32, and keeps that
    return work.size * shape.hidden if copied and not recomputes else 0


def angle_bytes(shape: ModelShape) -> int:
    """Of a token, fp32; whole on each tensor rank."""
    return 8 * (shape.mla_rope_dim or shape.rotary_dim)
