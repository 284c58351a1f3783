import pytest

from bessemer.energy.machines import SILENT, all_machines, figures
from bessemer.energy.reading import EnergyReading


def test_readings_of_each_machines_first_rank_are_one_sum_with_the_weakest_basis() -> None:
    one = EnergyReading(100.0, 95.0, 105.0, "measured")
    two = EnergyReading(50.0, 25.0, 120.0, "assumed")
    told = [figures(one), SILENT, figures(two), SILENT]
    assert all_machines(told) == EnergyReading(150.0, 120.0, 225.0, "assumed")
    assert all_machines([figures(one), SILENT]) == one


@pytest.mark.parametrize("basis", ["measured", "modelled", "assumed"])
def test_machine_that_does_not_know_makes_the_sum_unknown(basis: str) -> None:
    told = [
        figures(EnergyReading(None, None, None, basis)),
        figures(EnergyReading(1.0, 1.0, 1.0, "measured")),
    ]
    assert all_machines(told) == EnergyReading(None, None, None, basis)
