"""What training tokens are worth that were read before, and parameters beyond what the data can fill.

    D' = U + U R*_D (1 - exp(-R_D / R*_D)),  R_D = D / U - 1        equation 5: tokens
    N' = U_N + U_N R*_N (1 - exp(-R_N / R*_N)),  R_N = N / U_N - 1  equation 6: parameters
    L = A / N'^alpha + B / D'^beta + E                              equation 17, with the fitted figures

D tokens trained on, U of them different; U_N: the parameters that U tokens read once are best for, 0.051 U.
D' is how many fresh tokens would teach as much: 0.93 D after 4 epochs, 0.66 D after 16, at most 16.4 U.
Fitted on 182 runs of 7M to 9B parameters and 1 to 500 epochs, all data repeated alike, with dropout and
weight decay of 0.1 each. Up to 4 epochs the authors see next to no harm (0.5 % of loss: 8.7B parameters,
44B tokens four times); gains end soon after 16. Models that became worse (some at 44) were left out of
the fit, so beyond that these are the bright side. A mixture is taken source by source, which nobody fitted.
Band: two other forms fitted to the same runs (table of appendix A), decay of D alone and the plain series.
Source: Muennighoff et al., arXiv:2305.16264, sections 3.1 and 6, appendix A.
"""

import math
from collections.abc import Callable

REPEATS = 15.387756  # R*_D: the repeat after which the next one is worth 1/e of a fresh token
EXCESS = 5.309743  # R*_N: the same of parameters
FEW_EPOCHS, MANY_EPOCHS = 4.0, 40.0  # up to here it costs next to nothing; from here on it gains nothing
_REPEATS_LOW = 2.9157  # equation 14 with D alone decaying
_LOST_HIGH = 0.0104  # delta of equation 10: what a repeat loses of the one before
# Of C4, in logarithms as fitted: 521 and 1488 as the paper rounds them, and 1.87 that nothing goes below.
_A, _B, _E = math.exp(6.255414), math.exp(7.3049974), math.exp(0.6254804)
_ALPHA = _BETA = 0.3526596
_G = (_ALPHA * _A / (_BETA * _B)) ** (1.0 / (_ALPHA + _BETA))


def effective_tokens(unique: float, trained: float) -> float:
    """Fresh tokens that teach as much as `trained` ones, of which `unique` are different."""
    return _times(unique, trained, lambda repeats: REPEATS * -math.expm1(-repeats / REPEATS))


def effective_tokens_band(unique: float, trained: float) -> tuple[float, float]:
    """(low, high): what other forms make of the same runs."""
    kept = 1.0 - _LOST_HIGH
    return (
        _times(unique, trained, lambda repeats: _REPEATS_LOW * -math.expm1(-repeats / _REPEATS_LOW)),
        _times(unique, trained, lambda repeats: kept * (1.0 - kept**repeats) / _LOST_HIGH),
    )


def effective_params(params: float, unique: float) -> float:
    """Parameters that count, where the data has `unique` different tokens."""
    filled = min(params, optimal_params_of(unique))
    if not filled:
        return 0.0
    return filled * (1.0 + EXCESS * -math.expm1(-(params / filled - 1.0) / EXCESS))


def optimal_params_of(tokens: float) -> float:
    """Parameters that are the best use of compute for tokens read once (equation 15: the paper's own fit)."""
    return float((tokens * _G) ** (_BETA / _ALPHA) * _G)


def repeated_loss(params: float, unique: float, effective: float) -> float:
    """Loss in nat per token of C4 in GPT-2's tokens (equation 17): for comparing, not for predicting.

    effective: tokens, as effective_tokens has them.
    """
    return _A / effective_params(params, unique) ** _ALPHA + _B / effective**_BETA + _E


def added_loss(params: float, unique: float, trained: float, effective: float | None = None) -> float:
    """By what share the loss is above that of as many fresh tokens."""
    unique = min(unique, trained)
    worth = effective_tokens(unique, trained) if effective is None else effective
    return repeated_loss(params, unique, worth) / repeated_loss(params, trained, trained) - 1.0


def _times(unique: float, trained: float, worth: Callable[[float], float]) -> float:
    """Repeats of a token are worth so many fresh ones."""
    if trained <= unique or not unique:
        return min(unique, trained)
    return unique * (1.0 + worth(trained / unique - 1.0))
