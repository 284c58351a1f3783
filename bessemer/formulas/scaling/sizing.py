"""From one dial to a model, and from a model to batch, learning rate and length.

Shapes: head_dim 64, hidden a multiple of 64 (of more in wide models), about four query heads to a
key-value head, SwiGLU width 8/3 hidden. Hidden over layers is 56 at width 512 and grows slowly, to 105
at width 4096 (Llama 3: 128 at 1B and at 8B, 102 at 70B, 130 at 405B; narrower ones are deeper for
their width but train slower on every device).
Batch and learning rate: fits of DeepSeek LLM, arXiv:2401.02954 section 3.1.
Length: where a model of this size is compute-optimal by the re-fit of Hoffmann's law,
arXiv:2404.10102 (law.py), about 20 tokens per parameter; repeated data is worth it up to 4 epochs,
arXiv:2305.16264.
"""

import math
from dataclasses import replace

from bessemer.formulas.parameters import total_params
from bessemer.formulas.shape import ModelShape

HEAD_DIM = 64
MAX_EPOCHS = 4


def pad_vocab(vocab: int) -> int:
    """Rows of the embedding: matrices whose sides are multiples of 64 multiply fastest."""
    return -(-vocab // 64) * 64


def ffn_width(hidden: int) -> int:
    """8/3 hidden, so that SwiGLU has the weights of a GELU layer of 4 hidden; a multiple of 64."""
    return max(64, round(hidden * 8 / 3 / 64) * 64)


def kv_heads_for(heads: int) -> int:
    """A quarter of the query heads, or the nearest divisor below it."""
    target = max(1, round(heads / 4))
    return max(divisor for divisor in range(1, target + 1) if heads % divisor == 0)


def tie_embeddings_for(params: int) -> bool:
    """Under 1B the two matrices would be a large share of the model."""
    return params < 1_000_000_000


def shape_of_size(params: int, base: ModelShape) -> ModelShape:
    """The shape whose parameter count, embedding included, is nearest to `params`.

    `base` gives everything that does not follow from the size: family, vocabulary, context, norms.
    """
    near = [hidden for hidden in _widths() if _may_be(params, hidden, base)]
    candidates = (_shape(hidden, layers, base) for hidden in near or _widths() for layers in _depths(hidden))
    return min(candidates, key=lambda shape: _distance(shape, params))


def batch_tokens_for(flops: float) -> float:
    """Near-optimal batch for a compute budget: 0.2920 C^0.3271 tokens (arXiv:2401.02954, eq. 1)."""
    return 0.2920 * flops**0.3271


def batch_tokens_for_steps(flops_per_token: float, steps: int) -> float:
    """The same law where the number of steps is given: B = 0.2920 (F steps B)^0.3271, solved for B."""
    return float((0.2920 * (flops_per_token * steps) ** 0.3271) ** (1.0 / (1.0 - 0.3271)))


def learning_rate_for(flops: float) -> float:
    """Near-optimal peak for a compute budget: 0.3118 C^-0.1250 (arXiv:2401.02954, eq. 1).

    Fitted from 1e17 FLOPs on, so it is held between 1e-4 and 3e-3; two digits, the optimum is flat.
    """
    return float(f"{min(3e-3, max(1e-4, 0.3118 * flops**-0.1250)):.1e}")


def usual_ratio(hidden: int) -> float:
    """Hidden over layers of a well-shaped model of this width."""
    return float(56.0 * (hidden / 512.0) ** 0.3)


def _widths() -> list[int]:
    """Finer steps where one step matters; from 128 on an even number of heads, from 1024 on a fourfold."""
    steps = ((64, 128, 64), (128, 1024, 128), (1024, 4096, 256), (4096, 32769, 1024))
    return [hidden for first, end, step in steps for hidden in range(first, end, step)]


def _depths(hidden: int) -> range:
    usual = hidden / usual_ratio(hidden)
    return range(max(2, math.floor(0.7 * usual)), max(3, math.ceil(1.4 * usual)) + 1)


def _may_be(params: int, hidden: int, base: ModelShape) -> bool:
    """Whether a shape of this width can be near: a model half as large or twice as large is not."""
    depths = _depths(hidden)
    least, most = (total_params(_shape(hidden, layers, base)) for layers in (depths[0], depths[-1]))
    return 0.6 * least <= params <= 1.6 * most


def _shape(hidden: int, layers: int, base: ModelShape) -> ModelShape:
    heads = hidden // HEAD_DIM
    return replace(
        base,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads_for(heads),
        head_dim=HEAD_DIM,
        ffn=ffn_width(hidden) if base.gated else 4 * hidden,
    )


def _distance(shape: ModelShape, params: int) -> float:
    """Relative miss of the count; a usual ratio of width to depth decides between near equals."""
    miss = abs(math.log(total_params(shape) / params))
    ratio = abs(math.log(shape.hidden / shape.layers / usual_ratio(shape.hidden)))
    return miss + 0.1 * ratio
