"""Evaluation and export, metered: what they draw is a line of the run's account (metering/beside.py)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bessemer.energy.accounting.receipt import write_account
from bessemer.energy.metering import beside
from bessemer.log import Console
from bessemer.measure.ceiling import device_name
from bessemer.measure.facts import meter_name
from bessemer.model.device import this_device


def metered(
    kind: str, run: Path, work: Callable[[], dict[str, Any]], console: Console, command: Sequence[str] = ()
) -> dict[str, Any]:
    """What `work` gives. What it drew goes to the run's account, unless it was done already.

    command: that prints the node's watts, where it may run.
    """
    device = this_device()
    boards, name = ((), None) if device.type == "cpu" else ((meter_name(device),), device_name(device))
    with beside.metered(kind, accelerators=boards, device_name=name, command=command) as row:
        document = work()
    if not document.get("already_done"):
        with beside.told(console, f"what {kind} drew is not in the run's account"):
            beside.keep(run, row)
        write_account(run, console)
    return document
