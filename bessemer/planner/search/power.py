"""Watts of a device in a step: by what it does, not by its nameplate.

A board draws its limit only in large matmuls; in work that waits for memory less, in exchanges about half,
and while it waits for others little more than idle. So of two layouts that take the same time the one that
computes less draws less, and a node is 10 to 30 % below its lone self where the network is the limit.
The shares are ours, between published anchors: whole runs at 0.6 to 0.95 of the limit (energy/power.py),
boards that swing between 15 and 85 % within a run (arXiv:2503.05804), idle at a tenth.
Around each board a server draws its part all the time; the building multiplies both (PUE).
"""

from typing import Any

import numpy as np

from bessemer.energy.power import assumed_accelerator_power
from bessemer.hardware import Device
from bessemer.planner.cost.candidates import Floats
from bessemer.planner.cost.time import StepTimes

Column = Any
_MATMUL, _VECTOR, _EXCHANGE, _WAIT = 0.92, 0.70, 0.55, 0.35  # of the board's limit
_TYPICAL = 0.80  # what assumed_accelerator_power counts with


def board_share(times: StepTimes) -> Floats:
    """Mean power of a board over its limit."""
    busy = times.matmul_s + times.attention_s + times.recompute_s
    moving = times.vector_s + times.optimizer_s
    waiting = times.bubble_s + times.overhead_s
    drawn = _MATMUL * busy + _VECTOR * moving + _EXCHANGE * times.exposed_s + _WAIT * waiting
    return np.asarray(drawn / times.total_s)


def kilowatts(
    device: Device, per_node: int, pue: float, share: Column
) -> tuple[Column, Column, Column] | None:
    """(value, low, high) of one device with its part of the server and the building, while it trains.

    None: the board's limit is not known.
    """
    if not device.tdp_w:
        return None
    usual = assumed_accelerator_power(device.tdp_w, device.node_overhead_w, per_node)
    around = usual.value - _TYPICAL * device.tdp_w
    value = (device.tdp_w * share + around) * pue / 1000.0
    # The band of the assumed power, wide as it is: the same relative one around the new value.
    return value, value * usual.low / usual.value, value * usual.high / usual.value
