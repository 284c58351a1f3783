"""Round numbers for axes, and how numbers read on them."""

import math


def linear_ticks(low: float, high: float, least: int = 4) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten in [low, high]: the coarsest that give `least` of them."""
    if not high > low:
        return [low]
    power = math.floor(math.log10(high - low))
    for step in (factor * 10.0**scale for scale in (power, power - 1, power - 2) for factor in (5, 2, 1)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 >= least:
            return [index * step for index in range(first, last + 1)]
    raise AssertionError((low, high, least))


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in [low, high]; with fewer than three of them also their double and fivefold."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = [10.0**power for power in range(first, last + 1)]
    inside = [tick for tick in decades if low * 0.999 <= tick <= high * 1.001]
    if len(inside) >= 3:
        return inside[:: math.ceil(len(inside) / 7)]
    finer = [tick * factor for tick in decades for factor in (1.0, 2.0, 5.0)]
    return [tick for tick in finer if low * 0.999 <= tick <= high * 1.001]


def padded(low: float, high: float, share: float = 0.05) -> tuple[float, float]:
    """A range with air around it, also where all values are equal."""
    air = (high - low) * share if high > low else abs(low) * share or 1.0
    return low - air, high + air


def tick_labels(ticks: list[float]) -> list[str]:
    """Ticks of one axis as text, all in the same unit: 0, 0.5B, 1.0B, and 1.5e-4 below a hundredth."""
    largest = max(abs(tick) for tick in ticks)
    step = ticks[1] - ticks[0] if len(ticks) > 1 else largest
    scale, suffix = _unit(largest, plain_below=1e4)
    return ["0" if tick == 0 else f"{tick / scale:.{_decimals(step / scale)}f}{suffix}" for tick in ticks]


def value_label(value: float) -> str:
    """One number by itself, three digits: 25_000_000 -> "25M"."""
    scale, suffix = _unit(abs(value), plain_below=1e3)
    return f"{value / scale:.3g}{suffix}"


def _unit(largest: float, plain_below: float) -> tuple[float, str]:
    if largest == 0 or 1e-2 <= largest < plain_below:
        return 1.0, ""
    for suffix, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if largest >= scale:
            return scale, suffix
    power = math.floor(math.log10(largest) + 1e-9)
    return 10.0**power, f"e{power}"


def _decimals(step: float) -> int:
    """Digits behind the point that tell values `step` apart (2.5 needs one, 0.05 two)."""
    for digits in range(7):
        shifted = step * 10**digits
        if round(shifted) > 0 and abs(shifted - round(shifted)) < 1e-6:
            return digits
    return 6
