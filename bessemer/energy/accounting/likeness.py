"""Figures that people grasp beside a run's: everyday uses of as much, and published trainings.

Few, with their sources, and no offsets: those would need a promise. An everyday use is told where it comes to
between 0.1 and 100,000. Looked up on 2026-11-28, in copies of the pages themselves:
- kettles are physics: a litre of water from 20 to 100 degrees is 0.093 kWh, in a kettle of 90 % 0.10;
- households: eia.gov/tools/faqs/faq.php?id=97 as of October 2021: a residential customer of the USA used
  10,715 kWh in 2020, 893 a month (later years were 1 to 2 % off that, by quotations of the page);
- cars, tailpipe only: epa.gov/greenvehicles/greenhouse-gas-emissions-typical-passenger-vehicle has 4.6 t of
  CO2 a year, EPA-420-F-11-041 8,887 g a gallon. The 400 g a mile (22.2 miles a gallon; 11,500 miles a year)
  that belong to them are EPA-420-F-23-014's by quotations: the sheet itself was not read.
Of published trainings the scopes differ: boards alone, or with what is around them.
"""

from dataclasses import asdict, dataclass
from typing import Any

from bessemer.units import J_PER_KWH


@dataclass(frozen=True)
class Use:
    amount: float  # kWh or kg CO2e of one
    what: str
    source: str


KWH = (
    Use(0.010, "hours of an LED lamp", "a lamp of 10 W"),
    Use(
        4186.0 * 80.0 / J_PER_KWH / 0.9, "litres of water boiled", "heat capacity of water, a kettle of 90 %"
    ),
    Use(893.0, "months of a household's electricity, USA", "EIA, 2020: 893 kWh a month"),
)
KG_CO2E = (Use(0.400 / 1.609, "km in a petrol car", "EPA, mean of the USA: 400 g CO2 a mile"),)


@dataclass(frozen=True)
class Published:
    model: str
    kwh: float
    tco2e: float | None
    scope: str
    basis: str
    source: str


MODELS = (
    Published("Llama 2 70B LoRA, 8 H100", 3.363, None, "node", "measured", "MLPerf Training 4.0, SMC"),
    Published("T5-11B", 85_700, 46.7, "system and PUE", "measured", "arXiv:2104.10350"),
    Published("StarCoderBase 15.5B", 89_671.68, 16.68, "boards", "280 W assumed", "arXiv:2305.06161"),
    Published("LLaMA 7B", 36_000, 14.0, "boards and PUE", "limit of the board", "arXiv:2302.13971"),
    Published("LLaMA 65B", 449_000, 173.0, "boards and PUE", "limit of the board", "arXiv:2302.13971"),
    Published("GPT-3 175B", 1_287_000, 552.1, "system and PUE", "chips assumed", "arXiv:2104.10350"),
)


def equivalents(kwh: float | None, kg_co2e: float | None) -> list[dict[str, Any]]:
    rows = []
    for amount, uses in ((kwh, KWH), (kg_co2e, KG_CO2E)):
        for use in uses if amount is not None else ():
            count = (amount or 0.0) / use.amount
            if 0.1 <= count <= 1e5:
                rows.append({"count": count, "what": use.what, "source": use.source})
    return rows


def published_models(kwh: float | None) -> list[dict[str, Any]]:
    """Each with how often this run's energy goes into its."""
    return [{**asdict(row), "times_this_run": row.kwh / kwh if kwh else None} for row in MODELS]
