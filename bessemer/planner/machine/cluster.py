"""A cluster as the planner sees it: devices, how they are joined, and what they cost.

From the catalogue (`64xH100`), from [cluster] of a recipe, or from a TOML file of the team's own
(recipe/cluster_file.py). What is not known stays None: no network is guessed.
"""

from dataclasses import dataclass, replace

from bessemer.errors import RecipeError
from bessemer.formulas.goodput import (
    DEVICE_HOURS_PER_FAILURE,
    Reliability,
    reliability,
)
from bessemer.formulas.memory.parts import STATE_BYTES
from bessemer.hardware import GIB, Device, lookup
from bessemer.recipe.cluster_file import ClusterFile, OwnDevice

MOST_DEVICES = 10_000_000  # a hundred times the largest cluster there is; more is a slip of the hand


@dataclass(frozen=True)
class Cluster:
    """Devices that train one model together. GB/s are per device and direction; None: not known."""

    device: Device
    devices: int
    per_node: int  # devices of a node
    link_domain: int  # devices that the fast link joins: a node, or a rack of NVL72
    link_gb_per_s: float | None  # inside the domain
    network_gb_per_s: float | None  # between domains
    usd_per_device_hour: float | None = None  # None: the catalogue's list price
    region: str | None = None  # of the grid
    pue: float | None = None
    device_hours_per_failure: float = DEVICE_HOURS_PER_FAILURE
    usd_per_kwh: float = 0.0  # beside the device-hour, for own machines

    @property
    def filled_node(self) -> int:
        """Devices that share a node, where the cluster is smaller than one."""
        return min(self.per_node, self.devices)


def catalogue_cluster(device: Device, devices: int) -> Cluster:
    """As the catalogue knows it. A device that it knows no node of stands alone."""
    per_node = device.devices_per_node or 1
    return Cluster(
        with_memory(device),
        devices,
        per_node,
        device.link_domain or per_node,
        device.link_gb_per_s,
        device.network_gb_per_s,
    )


def with_memory(device: Device) -> Device:
    """What an empty device reports is not known of all. Then its nominal GB count, of 1e9 bytes each: those
    of which both are known report 0.98 to 1.08 times as much, and a plan without a limit would be none."""
    nominal = nominal_gib(device)
    if device.memory_gib_usable is not None or nominal is None:
        return device
    return replace(device, memory_gib_usable=nominal)


def nominal_gib(device: Device) -> float | None:
    return device.memory_gb_nominal * 1e9 / GIB if device.memory_gb_nominal else None


def reliability_of(
    params: int, cluster: Cluster, *, asynchronous: bool, interval_s: float | None = None
) -> Reliability:
    """How a run lives with failures on all of these devices, each of which saves its part of a checkpoint.

    asynchronous: `async_save` of the stage. interval_s: from one checkpoint to the next; None: the best.
    Every goodput of a plan comes from here.
    """
    return reliability(
        cluster.devices,
        STATE_BYTES * params / cluster.devices,
        asynchronous=asynchronous,
        network_gb_per_s=cluster.network_gb_per_s,
        device_hours_per_failure=cluster.device_hours_per_failure,
        interval_s=interval_s,
    )


def check_devices(devices: int, what: str) -> None:
    """RecipeError for more than anyone has: layouts of a mistyped number would be searched for hours."""
    if devices > MOST_DEVICES:
        raise RecipeError(
            f"{what} is more devices than there are",
            found=f"{devices:,} devices" if devices < 10**15 else "a number of many digits",
            wanted=f"at most {MOST_DEVICES:,}",
            fix="give a smaller number",
        )


def cluster_from_file(file: ClusterFile, name: str) -> Cluster:
    """RecipeError where the file contradicts itself, or leaves a link out. name: what errors call it."""
    own = file.device
    device = _own_device(own) if isinstance(own, OwnDevice) else with_memory(lookup(own))
    per_node = file.per_node or device.devices_per_node
    devices = _num_devices(file, per_node, name)
    check_devices(devices, name)
    if per_node is None:
        if devices > 1:
            raise _wrong(name, "per_node is missing", f"{devices} devices", "devices in a node")
        per_node = 1
    domain = file.link_domain or (file.per_node is None and device.link_domain) or per_node
    if devices < per_node:  # a part of a node
        per_node, domain = devices, min(domain, devices)
    check_nodes(devices, per_node, domain, name)
    _check_links(file, devices, domain, name)
    return Cluster(
        device,
        devices,
        per_node,
        domain,
        file.link_gb_per_s,
        file.network_gb_per_s,
        file.usd_per_device_hour,
        file.region,
        file.pue,
        file.device_hours_per_failure or DEVICE_HOURS_PER_FAILURE,
    )


def _own_device(own: OwnDevice) -> Device:
    return Device(
        **own.model_dump(), vendor="", year=0, confidence="own", source="the cluster file", price_source=None
    )


def _num_devices(file: ClusterFile, per_node: int | None, name: str) -> int:
    if file.devices is None and file.nodes is None:
        raise _wrong(name, "devices is missing", "neither devices nor nodes", "devices = 64, or nodes = 8")
    if file.nodes is None:
        return file.devices or 0
    if per_node is None:
        raise _wrong(name, "per_node is missing", f"nodes = {file.nodes}", "devices in a node")
    if file.devices is not None and file.devices != file.nodes * per_node:
        found = f"devices = {file.devices}, nodes = {file.nodes} of {per_node}"
        raise _wrong(name, "devices and nodes contradict each other", found, "one of them")
    return file.nodes * per_node


def check_nodes(devices: int, per_node: int, domain: int, name: str) -> None:
    if devices > per_node and devices % per_node:
        found = f"{devices} devices in nodes of {per_node}"
        raise _wrong(name, "the nodes are not full", found, f"a multiple of {per_node} devices")
    if max(domain, per_node) % min(domain, per_node):
        found = f"link_domain = {domain}, per_node = {per_node}"
        raise _wrong(name, "link_domain does not fit the nodes", found, "one divides the other")


def _check_links(file: ClusterFile, devices: int, domain: int, name: str) -> None:
    joined = min(domain, devices)
    if joined > 1 and file.link_gb_per_s is None:
        found = f"{joined} devices joined by a link of unknown speed"
        raise _wrong(name, "link_gb_per_s is missing", found, "link_gb_per_s, per device and direction")
    if devices > domain and file.network_gb_per_s is None:
        found = f"{-(-devices // domain)} domains of {domain} devices joined by a network of unknown speed"
        raise _wrong(name, "network_gb_per_s is missing", found, "network_gb_per_s, per device and direction")


def _wrong(name: str, problem: str, found: str, wanted: str) -> RecipeError:
    key = problem.split()[0]
    fix = f"add {key} to the file" if problem.endswith("missing") else "change one of them"
    return RecipeError(f"{name}: {problem}", found=found, wanted=wanted, fix=fix)
