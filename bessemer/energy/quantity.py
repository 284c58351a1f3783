"""A figure with its band and its basis, as the account tells it. None: not known."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bessemer.energy.power import Band
from bessemer.energy.reading import worst


@dataclass(frozen=True)
class Quantity:
    value: float | None
    low: float | None
    high: float | None
    basis: str

    @staticmethod
    def of(band: Band, basis: str) -> "Quantity":
        return Quantity(band.value, band.low, band.high, basis)

    @property
    def band(self) -> Band | None:
        if self.value is None or self.low is None or self.high is None:
            return None
        return Band(self.value, self.low, self.high)

    def times(self, factor: float) -> "Quantity":
        return UNKNOWN if self.band is None else Quantity.of(self.band.times(factor), self.basis)

    def multiplied(self, other: "Quantity") -> "Quantity":
        """Both off by their most at once."""
        one, two = self.band, other.band
        if one is None or two is None:
            return UNKNOWN
        band = Band(one.value * two.value, one.low * two.low, one.high * two.high)
        return Quantity.of(band, worst(self.basis, other.basis))

    def plus(self, other: "Quantity") -> "Quantity":
        one, two = self.band, other.band
        if one is None or two is None:
            return UNKNOWN
        return Quantity.of(one.plus(two), worst(self.basis, other.basis))

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "low": self.low, "high": self.high, "basis": self.basis}


UNKNOWN = Quantity(None, None, None, "assumed")
NOTHING = Quantity(0.0, 0.0, 0.0, "measured")


def exactly(value: float, basis: str = "modelled") -> Quantity:
    return Quantity(value, value, value, basis)


def banded(told: Mapping[str, Any], words: Callable[[float, float], str]) -> str:
    """A figure of a document with its band: "100 Wh (90 Wh to 110 Wh)".

    words: of a number, in the unit that a second one has.
    """
    if told["value"] is None:
        return "unknown"
    if told["low"] == told["high"]:
        return words(told["value"], told["value"])
    value, low, high = (words(told[name], told["value"]) for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
