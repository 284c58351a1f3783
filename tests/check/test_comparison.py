"""What passes and what does not, by the numbers."""

from dataclasses import replace

import pytest

from bessemer.check.compare import TOLERANCES, Trace, compared, relative_differences

ONE = Trace([4.0, 2.0], [1.0, 0.5], validation_loss=3.0, peak_memory_bytes=7, bytes_sent=9, time_s=1.0)


@pytest.mark.parametrize(
    ("other", "passes"),
    [
        (ONE, True),
        (replace(ONE, losses=[4.0, 2.0001]), True),
        (replace(ONE, losses=[4.0, 2.0003]), False),
        (replace(ONE, losses=[4.00001, 2.0]), False),  # the first step is held to more: no update came before
        (replace(ONE, grad_norms=[1.0, 0.5004]), True),
        (replace(ONE, grad_norms=[1.002, 0.5]), False),
        (replace(ONE, validation_loss=3.001), False),
    ],
)
def test_fp32_curves_pass_within_the_tolerance_only(other: Trace, passes: bool) -> None:
    row = compared(other, ONE, TOLERANCES["fp32"])
    assert row["passed"] is passes and (row["error"] is None) is passes
    assert row["peak_memory_bytes"] == 7 and row["bytes_sent"] == 9


def test_the_largest_difference_is_told() -> None:
    other = replace(ONE, losses=[4.0, 2.002], grad_norms=[0.9, 0.5])
    row = compared(other, ONE, TOLERANCES["bf16"])
    assert row["max_relative_loss_difference"] == pytest.approx(1e-3)
    assert row["max_relative_grad_norm_difference"] == pytest.approx(0.1)
    assert row["relative_loss_difference_at_first_step"] == 0.0


def test_zero_equals_zero() -> None:
    assert relative_differences([0.0, 1.0], [0.0, 2.0]) == [0.0, 0.5]
