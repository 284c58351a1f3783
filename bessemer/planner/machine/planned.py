"""What a plan is for: the cluster that is named, or this machine as if it were one."""

from dataclasses import replace

from bessemer.energy.accounting.facility import prices
from bessemer.hardware import GIB, Device, find
from bessemer.planner.machine.cluster import Cluster, catalogue_cluster, check_nodes
from bessemer.planner.machine.facts import Facts
from bessemer.recipe.schema import Recipe


def cluster_of(recipe: Recipe, facts: Facts) -> Cluster:
    """The cluster that a plan is for, with what [cluster] says of its price and place.

    A machine that is not in the catalogue has what was measured of it, and no links.
    """
    cluster = facts.cluster or catalogue_cluster(known_device(facts), facts.devices)
    asked, domain = recipe.cluster, cluster.link_domain
    device, usable = cluster.device, (facts.memory_bytes or 0) / GIB
    if usable and abs(usable - (device.memory_gib_usable or 0.0)) > 1e-6:
        # What is free on this machine's device, of which other programs may have taken some.
        device = replace(device, memory_gib_usable=usable)
    if asked.per_node and domain == cluster.per_node:
        domain = asked.per_node
    if asked.per_node:
        check_nodes(facts.devices, asked.per_node, domain, "[cluster]")
    bill = prices(recipe, None)  # the list price is left to the device
    billed = bill.device_hour.value
    return replace(
        cluster,
        device=device,
        devices=facts.devices,
        per_node=asked.per_node or cluster.per_node,
        link_domain=domain,
        usd_per_device_hour=cluster.usd_per_device_hour if billed is None else billed,
        usd_per_kwh=bill.usd_per_kwh,
        region=asked.region or recipe.energy.region or cluster.region,
        pue=asked.pue or cluster.pue,
        device_hours_per_failure=asked.device_hours_per_failure or cluster.device_hours_per_failure,
    )


def listed_device(facts: Facts) -> Device | None:
    """The planned device, or the catalogue's row of this machine's; None where the catalogue has none."""
    return facts.cluster.device if facts.cluster is not None else find(facts.device)


def known_device(facts: Facts) -> Device:
    """The same; where there is none, and of a CPU's compute, what was measured here."""
    found = listed_device(facts)
    if found is not None and (facts.cluster is not None or facts.kind != "cpu"):
        return found
    measured = facts.ceilings
    return Device(
        name=facts.device,
        kind=facts.kind,
        vendor="",
        year=0,
        confidence="measured",
        source="this machine",
        bf16_dense_tflops=measured.matmul_bf16_tflops if measured else None,
        fp32_tflops=measured.matmul_fp32_tflops if measured else None,
        memory_gib_usable=facts.memory_bytes / GIB if facts.memory_bytes else None,
        memory_gb_per_s=measured.copy_gb_per_s if measured else None,
    )
