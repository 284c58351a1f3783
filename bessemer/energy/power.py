"""Power that is not measured: what a core or an accelerator is likely to draw.

CPU: servers draw 350 W for 56 cores (Xeon 8480+), 360 W for 96 (EPYC 9654), 280 W for 64 (EPYC 7763):
3.8 to 6.3 W of package power per busy core; desktops 8 to 15. An idle core costs about a third, with
its share of the uncore and of memory. So 2 W (1 to 4) for each core there is, and 5 W (2.5 to 12) more
for each that is busy. Source of the package figures: hardware.toml.
Accelerators: large training runs draw 0.6 to 0.95 of the board's limit, by how long they wait for the
network; from node-metered runs (arXiv:2412.08602, arXiv:2506.14551), not from nameplates.
"""

from dataclasses import dataclass

from bessemer.hardware import Device

_CORE_W = (2.0, 1.0, 4.0)  # value, low, high
_BUSY_CORE_W = (5.0, 2.5, 12.0)
_BOARD_SHARE = (0.8, 0.6, 0.95)
_IDLE_SHARE, _BUSY_SHARE = 0.12, 0.87
UTILISATION_ERROR = 0.25
NODE_OVERHEAD_W = 240.0  # per accelerator in a server: hosts, fans, network cards
_OVERHEAD_ERROR_W = 50.0
_WORKSTATION_W = (100.0, 60.0, 200.0)  # around one card


@dataclass(frozen=True)
class Band:
    """Watts or joules: the likely value, and how far off it may be."""

    value: float
    low: float
    high: float

    def times(self, factor: float) -> "Band":
        return Band(self.value * factor, self.low * factor, self.high * factor)

    def plus(self, other: "Band") -> "Band":
        return Band(self.value + other.value, self.low + other.low, self.high + other.high)

    @staticmethod
    def around(value: float, error: float) -> "Band":
        """error: as a fraction, both ways."""
        return Band(value, (1.0 - error) * value, (1.0 + error) * value)


def assumed_cpu_power(cores: int, busy_cores: float) -> Band:
    """Package and memory of a CPU, for the cores that are ours."""
    idle, busy = _CORE_W, _BUSY_CORE_W
    values = [cores * there + busy_cores * more for there, more in zip(idle, busy, strict=True)]
    return Band(*values)


def assumed_accelerator_board(tdp_w: float) -> Band:
    """The board alone, in training."""
    return Band(*(tdp_w * share for share in _BOARD_SHARE))


def modelled_accelerator_board(limit_w: float, busy_share: float) -> Band:
    """The board alone, by the share of the time in which it ran anything at all.

    That says nothing of how hard: of the limit 0.12 idle and 0.87 busy (energy/draw.py), within 25 %.
    """
    watts = limit_w * (_IDLE_SHARE + (_BUSY_SHARE - _IDLE_SHARE) * busy_share)
    return Band.around(watts, UTILISATION_ERROR)


def assumed_accelerator_power(tdp_w: float, node_overhead_w: float | None, devices_per_node: int) -> Band:
    """One accelerator in training with its share of the server around it."""
    return assumed_accelerator_board(tdp_w).plus(assumed_around(node_overhead_w, devices_per_node))


def assumed_around(node_overhead_w: float | None, devices_per_node: int) -> Band:
    """What a server draws around each of its accelerators, its CPUs included."""
    if devices_per_node <= 1:
        return Band(*_WORKSTATION_W)
    around_w = NODE_OVERHEAD_W if node_overhead_w is None else node_overhead_w
    return Band(around_w, around_w - _OVERHEAD_ERROR_W, around_w + _OVERHEAD_ERROR_W)


def around_each(device: Device | None, devices: int | None, per_node: int | None = None) -> Band:
    """What a server draws around each of a job's `devices`, which may not fill one.

    devices: None: not known, then as on a full node. per_node: where it is not as the catalogue has it.
    """
    listed = device.devices_per_node or 1 if device else devices or 1
    in_node = per_node or listed
    overhead_w = device.node_overhead_w if device else None
    return assumed_around(overhead_w, in_node if devices is None else min(in_node, devices))
