"""What whole programmes report beside the training that a plan predicts: more hours than its steps take.

Published device-hours hold what no plan knows: evaluation, restarts, slower phases, runs that were thrown
away, now and then another training. So the likely value stays that of the steps, and beside it stands what
finished programmes reported over what `bessemer plan validate` predicts of them (published/hours.py), which
has the prediction's own error in it. Of 14, sorted: 0.97 (Llama 3.1 405B), 1.00 (DeepSeek-V3), 1.06, 1.08,
1.10, 1.28, 1.34, 1.49, 1.53, 1.63, 2.99, 3.36 (Llama 3 and 3.1 8B), 3.92, 7.31 (Llama 3.2, with distilling).
The smallest of them is GPT-2 124M with 768 device-hours: below 500 nothing is said.
"""

from collections.abc import Mapping
from typing import Any

from bessemer.planner.plan import Estimate

NUM_PUBLISHED = 14
# Median, a tenth and nine tenths of them. A test compares with the rows.
OVER_TRAINING = Estimate(1.42, 1.02, 3.76, "assumed")
_LEAST_DEVICE_HOURS = 500.0


def programme(predicted: Mapping[str, Estimate], kind: str) -> dict[str, Any] | None:
    """The `programme` of a plan of pre-training; None: on a CPU, too small, or its hours are not known.

    kind: of the device.
    """
    likely = predicted["device_hours"].value
    if kind == "cpu" or likely is None or likely < _LEAST_DEVICE_HOURS:
        return None
    found = {name: OVER_TRAINING.times(predicted[name].value or 0.0) for name in ("device_hours", "hours")}
    return {
        "over_training": vars(OVER_TRAINING),
        **{name: vars(estimate) for name, estimate in found.items()},
        "published": NUM_PUBLISHED,
    }
