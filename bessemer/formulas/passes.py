"""How long the passes of a layer last beside each other: what a zero-bubble pipeline's order is made for.

    F  forward      B  backward of the input, with what is made again for it      W  backward of the weights

W is matmuls alone, and not those of experts (grouped: model/moe.py) or of frozen weights. Attention, norms
and activations are in F once and in B twice: they make B longer, and so does recomputation. Trainer and
planner ask this one function, so the order that runs is the order that was costed. It looks at model, row and
recomputation only: wherever a run goes on, its order is the same.

Three orders do, each played from B : W = 1 : 1 to 1.75 : 0.25 on 2 to 16 ranks (docs/log.md). That of equal
passes is the best while B is within 1.08 of the mean, with more than four micro-batches a rank within 1.01
(of 168 published models none is within 1.02). The second is on average until 1.2, by a little, but loses much
where B is longer than it was taken to be, as the third does not: that from 1.25 on.
"""

from bessemer.formulas.flops import attention_flops_per_token, mean_causal_keys
from bessemer.formulas.parameters import ffn_matrices, head_rows, matmul_params, num_dense_layers
from bessemer.formulas.schedule import EQUAL, Lengths
from bessemer.formulas.shape import ModelShape

LONGER, LONGEST = Lengths(3, 4, 2), Lengths(2, 3, 1)  # in both B is longer than F, and W shorter
_LONGER_FROM, _LONGEST_FROM = 1.02, 1.25  # B over the mean of the three
# What attention's FLOPs and the bytes of norms and activations take, in FLOPs of matmuls: as step times of
# H100, A100 and B200 have it at 1 to 405 billion parameters (planner/cost/profiles.toml; a test compares).
_OF_ATTENTION = 2.0
_OF_VECTORS = 12_000.0  # for each layer and element of a hidden state
_SELECTIVE = 0.43  # made again of a forward pass, for each share of it that is matmuls


def pass_lengths(shape: ModelShape, context: int, recompute: str) -> Lengths:
    """The one of the three that is nearest. context: tokens of a row."""
    backward, weight = backward_and_weight(shape, context, recompute)
    longest = 3.0 * backward / (1.0 + backward + weight)
    if longest < _LONGER_FROM:
        return EQUAL
    return LONGER if longest < _LONGEST_FROM else LONGEST


def backward_and_weight(shape: ModelShape, context: int, recompute: str) -> tuple[float, float]:
    """Lengths of B and W of a layer, where F is 1."""
    matmuls = 2.0 * _matmuls(shape)
    others = _OF_ATTENTION * attention_flops_per_token(shape, mean_causal_keys(shape, context))
    others += _OF_VECTORS * shape.layers * shape.hidden
    forward = matmuls + others
    again = {"none": 0.0, "selective": _SELECTIVE * matmuls / forward, "full": 1.0}[recompute]
    if shape.adapter is not None:  # what learns is small
        return 2.0 - matmuls / forward + again, 0.0
    weight = waiting_share(shape) * matmuls / forward
    return 2.0 - weight + again, weight


def waiting_share(shape: ModelShape) -> float:
    """Of the layers' matmuls, those whose weights' gradient may wait."""
    if shape.adapter is not None:
        return 0.0
    routed = shape.layers - num_dense_layers(shape)
    experts = routed * shape.experts_per_token * ffn_matrices(shape) * shape.hidden * shape.expert_ffn
    return 1.0 - experts / _matmuls(shape)


def _matmuls(shape: ModelShape) -> int:
    """Weights of them, for a token."""
    return matmul_params(shape) - head_rows(shape) * shape.hidden
