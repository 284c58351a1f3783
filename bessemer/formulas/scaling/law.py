"""The law of loss by model size and tokens, L = E + A / N^alpha + B / D^beta: the best size, and how sure.

The published law is the re-fit of Chinchilla's runs by Besiroglu et al.; own runs refine it (`fit`). Its
errors are a covariance, so that each size and loss that follows has an interval (90 %, to first order).
Of the published law only standard errors are printed. Its constants and exponents are hardly independent:
how they move together follows from which runs were made, and how far from the printed error of alpha;
the other errors then come out as printed to within a third (E 0.036 for 0.03, beta 0.021 for 0.02, the
exponent of the best size 0.018 for 0.02). What an interval does not say: another text, tokenizer or recipe
has another law, and beyond the largest fitted run it is an extrapolation.
Source: arXiv:2404.10102 table 1; its public data, 57M to 16B parameters and 0.25B to 318B tokens.
With use in mind: Sardana et al., arXiv:2401.00448, section 2 (2 N FLOPs for each token of use).
Legend: N parameters, D tokens, C = 6 N D FLOPs. Vectors of five are (E, ln A, ln B, alpha, beta).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bessemer.errors import DataError
from bessemer.formulas.goodput import Range

Array = NDArray[np.float64]
Point = tuple[float, float, float]  # parameters, tokens, validation loss in nats

_SIGMAS = 1.645  # on either side: nine of ten
_NOISE = 0.01  # of a loss, relative: seeds, batch and learning rate that were not quite the best
_HUBER = 1.5  # standard deviations from where on a run counts less
# How far own runs may be from the published law: another text and tokenizer, the same kind of network.
_PRIOR_SD = (0.5, 1.0, 1.0, 0.05, 0.05)
_ROUNDS = 200
_CHINCHILLA_FLOPS = (1.4e18, 1.3e22)  # smallest and largest run, sizes from a fifth of the best to five times


@dataclass(frozen=True)
class Law:
    """values: (E, ln A, ln B, alpha, beta). covariance: of these. largest_flops: of the fitted runs."""

    name: str
    values: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    largest_flops: float

    @property
    def alpha(self) -> float:
        return self.values[3]

    @property
    def beta(self) -> float:
        return self.values[4]

    def loss(self, params: float, tokens: float) -> float:
        """In nats per token, as the runs' own text and tokenizer have it."""
        return _loss(np.asarray(self.values), params, tokens)

    def loss_range(self, params: float, tokens: float) -> Range:
        value, error = self._with_error(lambda values: _loss(values, params, tokens))
        return Range(value, value - _SIGMAS * error, value + _SIGMAS * error)

    def params_range(self, flops: float, inference_tokens: float = 0.0) -> Range:
        """Of `best_params`."""
        value, error = self._with_error(
            lambda values: math.log(_best_params(values, flops, inference_tokens))
        )
        return Range(*(math.exp(value + sigmas * error) for sigmas in (0.0, -_SIGMAS, _SIGMAS)))

    def best_params(self, flops: float, inference_tokens: float = 0.0) -> float:
        """The size for this much compute in training, C = 6 N D.

        inference_tokens: 0: the size of the lowest loss. More: of all qualities that come with their least
        compute in training and use together (6 N D + 2 N I), the one whose training takes `flops`.
        """
        return _best_params(np.asarray(self.values), flops, inference_tokens)

    def best_tokens(self, params: float) -> float:
        """Training tokens for which a model of this size is the best use of the compute."""
        _, log_a, log_b, alpha, beta = self.values
        slope = math.log(beta / alpha) + log_b - log_a + alpha * math.log(params)
        return math.exp(slope / beta)

    def extrapolates(self, flops: float) -> float:
        """How many times more compute this is than the largest fitted run had; 1 at least."""
        return max(1.0, flops / self.largest_flops)

    def _with_error(self, function: Callable[[Array], float]) -> tuple[float, float]:
        """Value and standard error of a function of the five, to first order."""
        values, covariance = np.asarray(self.values), np.asarray(self.covariance)
        gradient = _gradient(function, values)
        return function(values), math.sqrt(max(0.0, float(gradient @ covariance @ gradient)))


def _published(name: str, constants: Sequence[float], error_of_alpha: float) -> Law:
    """constants: (E, A, B, alpha, beta) of a law that was fitted to Chinchilla's runs."""
    constant, a, b, alpha, beta = constants
    values = (constant, math.log(a), math.log(b), alpha, beta)
    budgets = np.geomspace(*_CHINCHILLA_FLOPS, 10)
    flops = np.repeat(budgets, 10)
    middle = np.repeat([_best_params(np.asarray(values), each, 0.0) for each in budgets], 10)
    params = middle * np.tile(np.geomspace(0.2, 5.0, 10), 10)
    ones = np.ones_like(params)
    _, jacobian = _residuals(np.asarray(values), params, flops / 6.0 / params, ones, (0.0, 0.0))
    covariance = np.linalg.inv(jacobian.T @ jacobian)
    return Law(name, values, _tuples(covariance * error_of_alpha**2 / covariance[3, 3]), _CHINCHILLA_FLOPS[1])


def fit(points: Sequence[Point], *, name: str = "own runs") -> Law:
    """The law of own runs: least squares in the logarithm of the loss, with far points counted less.

    points: (parameters, tokens, loss). With few of them the published law decides what they cannot: the
    exponents are held to within 0.05, its constants far more loosely. DataError: under three runs,
    or all of one size and length.
    """
    rows = np.asarray(points, dtype=np.float64).reshape(-1, 3)
    _check(rows)
    params, tokens, losses = rows.T
    # Constants are fitted in the middle of the runs, where they do not depend on the exponents.
    middle = np.log(params).mean(), np.log(tokens).mean()
    first = _moved(np.asarray(BESIROGLU.values), middle, -1.0)
    values = first.copy()
    # Its terms are as large as they must be for losses like these, before anything is fitted.
    values[0] = min(first[0], 0.8 * float(losses.min()))
    information = np.diag(1.0 / np.square(_PRIOR_SD))
    damping, cost = 1e-3, _cost(values, first, information, params, tokens, losses, middle)
    for _ in range(_ROUNDS):
        residuals, jacobian = _residuals(values, params, tokens, losses, middle)
        weights = np.minimum(1.0, _HUBER / np.maximum(np.abs(residuals), 1e-12))
        normal = jacobian.T @ (weights[:, None] * jacobian) + information
        slope = jacobian.T @ (weights * residuals) + information @ (values - first)
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -slope)
        tried = values + step
        new_cost = _cost(tried, first, information, params, tokens, losses, middle)
        if new_cost <= cost:
            done = cost - new_cost < 1e-10 * max(1.0, new_cost)
            values, cost, damping = tried, new_cost, damping / 3.0
            if done:
                break
        else:
            damping *= 4.0
    covariance = np.linalg.inv(normal)
    back = np.eye(5)
    back[1, 3], back[2, 4] = middle
    largest = float((6.0 * params * tokens).max())
    return Law(
        name, tuple(map(float, _moved(values, middle, 1.0))), _tuples(back @ covariance @ back.T), largest
    )


def _check(rows: Array) -> None:
    if len(rows) >= 3 and np.isfinite(rows).all() and (rows > 0).all():
        spread = np.ptp(np.log(rows[:, :2]), axis=0)
        if spread.max() > 0.5:
            return
        found = f"{len(rows)} runs of nearly one size and length"
    else:
        found = f"{len(rows)} runs with a size, a length and a loss"
    raise DataError(
        "these runs do not show a law",
        found=found,
        wanted="three runs or more, of sizes or lengths that differ by half or more",
        fix="train some small models of other sizes, or leave budget.runs out",
    )


def _cost(
    values: Array,
    first: Array,
    information: Array,
    params: Array,
    tokens: Array,
    losses: Array,
    middle: tuple[float, float],
) -> float:
    """Huber's: squares near, straight lines far away; and the prior."""
    far = np.abs(_residuals(values, params, tokens, losses, middle)[0])
    if not np.isfinite(far).all() or values[0] <= 0:
        return math.inf
    huber = np.where(far <= _HUBER, 0.5 * far**2, _HUBER * (far - 0.5 * _HUBER)).sum()
    off = values - first
    return float(huber + 0.5 * off @ information @ off)


def _residuals(
    values: Array, params: Array, tokens: Array, losses: Array, middle: tuple[float, float]
) -> tuple[Array, Array]:
    """ln(predicted / measured) in standard deviations, and its derivatives, [runs] and [runs, 5]."""
    constant, log_a, log_b, alpha, beta = values
    log_n, log_d = np.log(params) - middle[0], np.log(tokens) - middle[1]
    of_size, of_data = np.exp(log_a - alpha * log_n), np.exp(log_b - beta * log_d)
    predicted = np.maximum(constant + of_size + of_data, 1e-9)
    parts = [np.ones_like(of_size), of_size, of_data, -log_n * of_size, -log_d * of_data]
    jacobian = np.stack(parts, axis=1) / predicted[:, None] / _NOISE
    return np.log(predicted / losses) / _NOISE, jacobian


def _moved(values: Array, middle: tuple[float, float], sign: float) -> Array:
    """Constants as they are in the middle of the runs (-1), or back at one parameter and one token (1)."""
    moved = values.copy()
    moved[1] += sign * values[3] * middle[0]
    moved[2] += sign * values[4] * middle[1]
    return moved


def _loss(values: Array, params: float, tokens: float) -> float:
    constant, log_a, log_b, alpha, beta = map(float, values)
    of_size = math.exp(log_a - alpha * math.log(params))
    return constant + of_size + math.exp(log_b - beta * math.log(tokens))


def _best_params(values: Array, flops: float, inference_tokens: float) -> float:
    """Where one more FLOP in size gains as much as one more in data, use included: by halving.

    alpha A N^-alpha = beta B D^-beta (1 + I / 3 D) on N D = C / 6: the left side falls with N, the right
    rises, so there is one such N.
    """
    _, log_a, log_b, alpha, beta = map(float, values)
    product = math.log(flops / 6.0)
    size, data = math.log(alpha) + log_a, math.log(beta) + log_b

    def excess(log_n: float) -> float:
        log_d = product - log_n
        use = math.log1p(inference_tokens / 3.0 / math.exp(log_d))
        return size - alpha * log_n - (data - beta * log_d + use)

    low, high = 0.0, product
    for _ in range(100):
        centre = 0.5 * (low + high)
        low, high = (centre, high) if excess(centre) > 0 else (low, centre)
    return math.exp(0.5 * (low + high))


def _gradient(function: Callable[[Array], float], values: Array) -> Array:
    steps = 1e-5 * np.maximum(1e-2, np.abs(values))
    moves = np.diag(steps)
    rows = [(function(values + move) - function(values - move)) / 2.0 for move in moves]
    return np.asarray(rows) / steps


def _tuples(matrix: Array) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(map(float, row)) for row in matrix)


BESIROGLU = _published("Besiroglu et al., arXiv:2404.10102", (1.8172, 482.01, 2085.43, 0.3478, 0.3658), 0.02)
