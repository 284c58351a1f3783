"""What `bessemer plan` says below its tables: where it stands on nothing, and what may be meant otherwise."""

from typing import Any

_VALIDATED_DEVICES = 16_384


def caveats(plan: Any, cluster: Any) -> list[str]:
    """Where the prediction stands on nothing that was published."""
    device, notes = cluster.device, []
    if cluster.devices > _VALIDATED_DEVICES:
        notes.append(f"{cluster.devices:,} devices are more than anyone published ({_VALIDATED_DEVICES:,})")
    if device.kind not in ("gpu", "cpu"):
        kind = "an ASIC" if device.kind == "asic" else f"a {device.kind.upper()}"
        notes.append(f"no measured run of our trainer on {kind} such as {device.name}")
    if device.kind != "cpu" and device.memory_gib_usable is None:
        notes.append(f"the memory of {device.name} is not in the catalogue: nothing was left out for it")
    if cluster.devices > cluster.link_domain and cluster.network_gb_per_s is None and device.kind != "cpu":
        notes.append(
            f"the network between domains of {cluster.link_domain} is not known: a slow one is assumed"
        )
    if plan.pretrain.layout.world > 1 and plan.predicted["step_time_s"].basis == "assumed":
        notes.append(f"no published step time of this kind of stack on {device.name}")
    return notes


def remarks(cluster: Any, dtype: str = "bf16") -> list[str]:
    """What of the cluster its reader may have meant otherwise. dtype: that the plan computes in."""
    from bessemer.hardware import catalogue
    from bessemer.planner.machine.cluster import nominal_gib

    device, notes = cluster.device, []
    if device.kind != "cpu" and device.peak_tflops(dtype) is None:
        note = f"{device.name} has no {dtype} in the catalogue, so that MFU is not known"
        if dtype == "bf16" and device.fp32_tflops:
            note += f"; it computes fp32 at up to {device.fp32_tflops:g} TFLOP/s (dtype=fp32), "
            note += "and fp16 is not trained"
        notes.append(note)
    if device.memory_gib_usable is not None and device.memory_gib_usable == nominal_gib(device):
        notes.append(
            f"what an empty {device.name} reports is not in the catalogue: its nominal "
            f"{device.memory_gb_nominal:g} GB of 1e9 bytes are counted ({device.memory_gib_usable:.1f} GiB)"
        )
    if cluster.devices > cluster.per_node and cluster.devices % cluster.per_node:
        notes.append(f"{cluster.devices} devices leave one of the nodes of {cluster.per_node} partly empty")
    for name in ("link_gb_per_s", "network_gb_per_s"):
        most = max(getattr(device, name) or 0.0 for device in catalogue().values())
        given = getattr(cluster, name) or 0.0
        if given > most:
            notes.append(
                f"{name} = {given:g} is more than any device of the catalogue has ({most:g}); "
                "GB are bytes: 400 Gbit/s are 50"
            )
    return notes
