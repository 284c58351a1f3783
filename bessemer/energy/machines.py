"""One reader a machine, one sum for all of them: what the first rank of each machine tells the others.

Ranks exchange rows of numbers, so a reading becomes five of them, zeros on every rank that reads nothing. A
machine that does not know its energy makes the sum unknown. Bands add up at their ends: every machine is read
or assumed in the same way.
"""

from collections.abc import Sequence

from bessemer.energy.reading import BASES, EnergyReading

NUM_FIGURES = 5
SILENT = (0.0,) * NUM_FIGURES  # of a rank that is not its machine's first


def figures(reading: EnergyReading) -> tuple[float, ...]:
    """(joules, low, high, 1 + place of the basis, 1 where the energy is not known)."""
    place = 1.0 + BASES.index(reading.basis)
    if reading.joules is None or reading.low is None or reading.high is None:
        return 0.0, 0.0, 0.0, place, 1.0
    return reading.joules, reading.low, reading.high, place, 0.0


def all_machines(told: Sequence[Sequence[float]]) -> EnergyReading:
    """told: the figures of each rank, this one's included."""
    assert all(len(row) == NUM_FIGURES for row in told), told
    joules, low, high, _, unknown = (sum(column) for column in zip(*told, strict=True))
    basis = BASES[max(0, round(max(row[3] for row in told)) - 1)]
    return EnergyReading(None, None, None, basis) if unknown else EnergyReading(joules, low, high, basis)
