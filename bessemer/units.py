"""Quantities as people write them ("30M", "2B", "512 MiB") and as we print them.

GB = 1e9 (links, disks); GiB = 2**30 (memory). Counts use K, M, B, T = 1e3, 1e6, 1e9, 1e12.
"""

import re

J_PER_KWH = 3.6e6
_COUNT = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}


def parse_count(text: str) -> int:
    """ "30M" -> 30_000_000. Raises ValueError on anything that is not a positive count."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmbgt]?)\s*", text.lower().replace("_", ""))
    if match is None:
        raise ValueError(f"{text!r} is not a count such as 30M or 2B")
    value = round(float(match[1]) * _COUNT[match[2]])
    if value <= 0:
        raise ValueError(f"{text!r} is not a positive count")
    return value


def format_count(value: float) -> str:
    """30_000_000 -> "30.0M"; three significant digits."""
    for suffix, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if abs(value) >= scale:
            return f"{_three_digits(value / scale)}{suffix}"
    return _three_digits(value) if value != int(value) else str(int(value))


def format_bytes(value: float) -> str:
    """Memory, in binary units: 3 * 2**30 -> "3.00 GiB"."""
    for suffix, scale in (("TiB", 2.0**40), ("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10)):
        if abs(value) >= scale:
            return f"{_three_digits(value / scale)} {suffix}"
    return f"{int(value)} B"


def format_joules(joules: float, like: float | None = None) -> str:
    """As people read energy: 360_000 -> "100 Wh". like: whose unit it takes, for the ends of a band."""
    size = abs(joules if like is None else like)
    for unit, scale in (("GWh", 3.6e12), ("MWh", 3.6e9), ("kWh", J_PER_KWH), ("Wh", 3.6e3)):
        if size >= scale:
            return f"{format_short(joules / scale)} {unit}"
    return f"{format_short(joules)} J"


def format_kilograms(kg: float, like: float | None = None) -> str:
    """0.0021 -> "2.1 g". like: as in format_joules."""
    size = abs(kg if like is None else like)
    for unit, scale in (("t", 1e3), ("kg", 1.0), ("g", 1e-3)):
        if size >= scale:
            return f"{format_short(kg / scale)} {unit}"
    return f"{format_short(kg * 1e6)} mg"


def format_usd(usd: float, like: float | None = None) -> str:
    """0.00043 -> "0.043 ¢". like: as in format_joules."""
    size = abs(usd if like is None else like)
    return f"${format_short(usd)}" if size == 0.0 or size >= 0.01 else f"{format_short(100.0 * usd)} ¢"


def format_short(value: float) -> str:
    """Three digits, without powers of ten where people would write none."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def format_seconds(seconds: float) -> str:
    """95 -> "1m35s"; under ten seconds one decimal."""
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def format_hours(hours: float) -> str:
    """1.0 -> "1 hour"; three significant digits."""
    figure = f"{hours:.3g}"
    return f"{figure} hour{'s' * (figure != '1')}"


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
