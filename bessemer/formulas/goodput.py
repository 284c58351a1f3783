"""What failures and checkpoints take from a run: how often to save, and the share of time that is left.

Failures come at random (exponential), one in so many device-hours, so a job of n devices has n times as
many. A failure costs the work since the last checkpoint and a restart, which may fail too; a checkpoint
stops training only for its *blocking* part. `goodput` is exact for this model (Daly's equation 13), and a
simulation agrees with it; `first_order_goodput` is its usual expansion, always lower, and far too low
where a restart takes a large part of the time between failures.
Not in it: failures that come in groups, planned stops, devices that are slow before they fail.
Source: J. T. Daly, Future Generation Computer Systems 22 (2006), equations 13 and 37; J. Young, CACM 17
(1974). Failure rate: Llama 3, 419 unexpected interruptions in 54 days on 16,384 GPUs (arXiv:2407.21783,
section 3.3.4). Storage: the same, 2 TB/s sustained and 7 TB/s at most for those GPUs (section 3.3.1).
Restart: MegaScale, under 10 minutes to find the cause on average (arXiv:2402.15627, section 4).
"""

import math
from dataclasses import dataclass

DEVICE_HOURS_PER_FAILURE = 50_700.0


@dataclass(frozen=True)
class Range:
    """The likely value, and how far off it may be. Of seconds, or of shares."""

    value: float
    low: float
    high: float

    def plus(self, other: "Range") -> "Range":
        return Range(self.value + other.value, self.low + other.low, self.high + other.high)


# GB/s of one device to the memory of its host: PCIe 4 to 5, or NVLink-C2C, shared by the devices of a node.
_HOST_GB_PER_S = Range(20.0, 8.0, 50.0)
_STORAGE_GB_PER_S = Range(0.12, 0.06, 0.43)  # of one device, of what the whole file system gives
_PAUSE_S = Range(1.0, 0.2, 5.0)  # ranks meet, state is listed, memory pinned: it stands still for that
_RECOVERY_S = Range(540.0, 90.0, 1080.0)  # the failure is noticed and its cause found, a spare node put in
_WARM_UP_S = Range(60.0, 30.0, 120.0)  # processes, communicators, kernels


@dataclass(frozen=True)
class Reliability:
    """How a job of so many devices lives with failures. Seconds; `goodput` is a share of the time."""

    between_failures_s: float
    save_s: Range  # blocking
    restart_s: Range
    interval_s: float  # from one checkpoint to the next: as asked, or the best for `save_s.value`
    goodput: Range

    def expected_failures(self, hours: float) -> float:
        """In `hours` of wall time, lost ones included."""
        return hours * 3600.0 / self.between_failures_s


def reliability(
    devices: int,
    rank_bytes: float,
    *,
    asynchronous: bool = True,
    network_gb_per_s: float | None = None,
    device_hours_per_failure: float = DEVICE_HOURS_PER_FAILURE,
    interval_s: float | None = None,
) -> Reliability:
    """An interval and what it leaves.

    rank_bytes: of a checkpoint, that one device writes: STATE_BYTES (formulas/memory/parts.py) a parameter.
    asynchronous: training goes on while storage is written; else it waits.
    network_gb_per_s: of a device; None: no limit beside storage's own.
    interval_s: of work between two checkpoints; None: the best.
    """
    between_s = between_failures_s(devices, device_hours_per_failure)
    save_s = save_seconds(rank_bytes, asynchronous=asynchronous)
    restart_s = restart_seconds(rank_bytes, network_gb_per_s)
    # Even when training does not wait, one checkpoint must be stored before the next begins.
    stored_s = _seconds(rank_bytes, _STORAGE_GB_PER_S)

    def kept(save: float, restart: float, stored: float) -> tuple[float, float]:
        wait_s = stored if asynchronous else 0.0
        work_s = max(daly_interval_s(save, between_s), wait_s) if interval_s is None else interval_s
        return work_s, goodput(work_s, max(save, wait_s - work_s), restart, between_s)

    work_s, value = kept(save_s.value, restart_s.value, stored_s.value)
    # Chosen for the likely cost, kept where saving and restarting cost more: what a job really meets.
    if interval_s is None:
        low = first_order_goodput(work_s, save_s.high, restart_s.high, between_s)
    else:  # as short as one asks for, where the first order would be below 0
        low = kept(save_s.high, restart_s.high, stored_s.high)[1]
    high = kept(save_s.low, restart_s.low, stored_s.low)[1]
    return Reliability(between_s, save_s, restart_s, work_s, Range(value, max(0.0, min(low, value)), high))


def between_failures_s(devices: int, device_hours_per_failure: float = DEVICE_HOURS_PER_FAILURE) -> float:
    """Mean time between failures of a job: any device's failure stops all."""
    return device_hours_per_failure / devices * 3600.0


def save_seconds(rank_bytes: float, *, asynchronous: bool = True) -> Range:
    """How long a checkpoint stops training: for a copy to the host's memory, or for all of the writing."""
    copied = _PAUSE_S.plus(_seconds(rank_bytes, _HOST_GB_PER_S))
    return copied if asynchronous else copied.plus(_seconds(rank_bytes, _STORAGE_GB_PER_S))


def restart_seconds(rank_bytes: float, network_gb_per_s: float | None = None) -> Range:
    """From a failure to the first step again: notice, replace, load, warm up."""
    limit = network_gb_per_s or math.inf
    storage = _STORAGE_GB_PER_S
    speed = Range(min(limit, storage.value), min(limit, storage.low), min(limit, storage.high))
    return _RECOVERY_S.plus(_WARM_UP_S).plus(_seconds(rank_bytes, speed))


def young_interval_s(save_s: float, between_s: float) -> float:
    """Work between two checkpoints that loses least, to first order."""
    return math.sqrt(2.0 * save_s * between_s)


def daly_interval_s(save_s: float, between_s: float) -> float:
    """The same to higher order: Daly's equation 37. Where saving takes twice the time between failures or
    more, he takes the time between failures."""
    if save_s >= 2.0 * between_s:
        return between_s
    share = save_s / (2.0 * between_s)
    return young_interval_s(save_s, between_s) * (1.0 + math.sqrt(share) / 3.0 + share / 9.0) - save_s


def goodput(interval_s: float, save_s: float, restart_s: float, between_s: float) -> float:
    """Share of the time that goes into steps that count. Exact for failures at random: Daly's equation 13.

    interval_s: of work between two checkpoints; save_s: blocking part of one; restart_s: after a failure.
    """
    attempts = math.exp(min(700.0, restart_s / between_s)) * math.expm1(
        min(700.0, (interval_s + save_s) / between_s)
    )
    return interval_s / (between_s * attempts)


def first_order_goodput(interval_s: float, save_s: float, restart_s: float, between_s: float) -> float:
    """1 - save / interval - (interval / 2 + restart) / between: below 0 where failures come too fast."""
    return 1.0 - save_s / interval_s - (interval_s / 2.0 + restart_s) / between_s


def _seconds(num_bytes: float, gb_per_s: Range) -> Range:
    """The low end of the speed is the high end of the time."""
    taken = (num_bytes / 1e9 / speed for speed in (gb_per_s.value, gb_per_s.high, gb_per_s.low))
    return Range(*taken)
