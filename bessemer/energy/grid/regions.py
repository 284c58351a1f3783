"""Carbon of a kilowatt-hour by region, from the table in `grid.csv`; no network.

Yearly means. A grid swings by 30 to 60 % within a day, so the band is wide. Data: Our World in Data
and Ember, CC BY 4.0; Google Cloud regions from codecarbon (MIT).
"""

import csv
import difflib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from bessemer.errors import RecipeError

_SWING = 0.35


@dataclass(frozen=True)
class Region:
    code: str  # ISO 3166 alpha-3, "WLD", or "gcp:" and a region
    name: str
    year: int | None
    g_co2e_per_kwh: float
    pue: float | None  # of that cloud's sites

    @property
    def band(self) -> tuple[float, float]:
        return (1.0 - _SWING) * self.g_co2e_per_kwh, (1.0 + _SWING) * self.g_co2e_per_kwh


def region(code: str) -> Region:
    """By code or by name. RecipeError when there is none such."""
    found = _regions().get(code.lower())
    if found is not None:
        return found
    near = difflib.get_close_matches(code.lower(), list(_regions()), n=5, cutoff=0.6)
    codes = list(dict.fromkeys(_regions()[word].code for word in near))[:3]
    raise RecipeError(
        f"unknown grid region {code!r}",
        found=code,
        wanted='a country by its three letters, "WLD", or a cloud region such as "gcp:europe-west1"',
        fix=f"did you mean {' or '.join(codes)}?" if codes else "use WLD for the world's mean",
    )


@cache
def _regions() -> dict[str, Region]:
    text = (resources.files("bessemer") / "energy" / "grid" / "grid.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    found = [
        Region(
            code=row["code"],
            name=row["name"],
            year=int(row["year"]) if row["year"] else None,
            g_co2e_per_kwh=float(row["g_co2e_per_kwh"]),
            pue=float(row["pue"]) if row["pue"] else None,
        )
        for row in rows
    ]
    return {word.lower(): entry for entry in reversed(found) for word in (entry.name, entry.code)}
