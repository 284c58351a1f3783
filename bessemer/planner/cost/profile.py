"""What a stack reaches on a device: rates, overlaps and overheads, from which step times follow.

A *stack* is a way to train: "megatron" (Megatron-Core and what is built on it), "megatron-graphs" (its
captured graphs and grouped kernels of 2026), "megatron-capacity" (experts that drop tokens), "megatron-plain"
(no exchange overlapped), "megatron-2021" (before flash attention and sequence parallelism), "megatron-2022"
(with the latter), "megatron-deepspeed", "deepspeed" (ZeRO-3), "fsdp" (FSDP2, torchtitan's kind),
"llm-foundry" (FSDP of 2023), "maxtext", "bessemer", "bessemer-cpu".
`profiles.toml` has one table of constants that all share, and what a family of devices, a stack, a pair of
both, or a triple with the precision does otherwise; the more special wins, and a stack starts from its
parent's. `benchmarks/planner_fit.py` fits them to published runs, from `benchmarks/planner_priors.toml`.
"""

import math
import tomllib
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from statistics import median
from typing import Any

from bessemer.hardware import Device
from bessemer.planner.cost.candidates import PRECISIONS
from bessemer.planner.machine.cluster import Cluster

EIGHT_BIT = ("fp8", "mxfp8")
ASSUMED_BAND = 0.45  # of the logarithm: -36 % to +57 %
UNKNOWN_LINK_GB_PER_S, UNKNOWN_NETWORK_GB_PER_S = 25.0, 12.5  # PCIe 4 and 100 Gb/s Ethernet


@dataclass(frozen=True)
class Profile:
    """Plain numbers: rates are what is sustained, not peaks; seconds are of one device."""

    matmul_tflops: float  # of large matmuls of the linear layers
    head_tflops: float  # the same in 16 bit, for the head and the router
    attention_tflops: float  # forward and backward of fused attention, head_dim 128, long rows
    vector_gb_per_s: float  # norms, activations, residual sums: bytes read and written
    link_gb_per_s: float  # inside the fast domain, of large messages
    link_latency_s: float
    network_gb_per_s: float  # between domains
    network_latency_s: float
    matmul_traffic: float = 1.0  # of matmuls' reads and writes, the share that costs time of its own
    grouped: float = 1.0  # speed of the experts' grouped matmuls, over that of one large matmul
    rows_half: float = 0.0  # tokens of an expert at which its matmuls reach half their speed
    quantise_bytes: float = 0.0  # per input element of a matmul in 8 or 4 bit, forward and backward
    attention_half_tokens: float = 0.0  # row length at which attention reaches half its speed
    attention_half_dim: float = 0.0  # head_dim at which it does (1 at head_dim 128)
    score_bytes: float = 0.0  # per score where attention writes them out; 0: fused
    vector: float = 1.0  # bytes of vector work, over the formula's
    irregular: float = 0.0  # further such bytes, in parts, of layers with parts that are not fused
    selective: float = 0.0  # share of the forward matmuls that selective recomputation repeats
    sequence_parallel: float = 1.0  # 1: norms and residuals are divided by tensor ranks
    tensor_overlap: float = 0.0  # share of tensor-parallel exchanges hidden behind matmuls
    context_overlap: float = 0.8  # share of keys and values on their way that hides behind attention: a ring
    context_travels: float = 3.0  # of keys and values, once forwards and with their gradients twice back
    expert_overlap: float = 0.0
    pipeline_overlap: float = 0.0
    data_overlap: float = 1.0  # share of a backward pass that may hide gradients and weights
    every_micro_batch: float = 0.0  # 1: sharded gradients and weights travel for each, with zero 2 too
    released: float = 0.0  # 1: gradients of a pipeline travel after its last backward pass, behind nothing
    rank_s: float = 0.0  # per rank and gathered layer: steps of a ring, where weights are sharded
    contention: float = 0.0  # of hidden exchange time, how much the compute beside it gets longer
    expert_copies: float = 1.0  # bytes of all-to-all between domains, over one copy per chosen domain
    expert_tensor: float = 0.0  # 1: tensor ranks divide an expert's width; 0: experts have those ranks too
    imbalance: float = 1.0  # the busiest expert rank's tokens over the mean
    gradient_bytes: float = 4.0  # in the reduction
    gather_bytes: float = 2.0  # per weight
    optimizer_bytes: float = 34.0  # read and written per weight of this rank
    layer_s: float = 0.0  # per layer and micro-batch, what small kernels add on the device
    routed_s: float = 0.0  # the same for routing in a layer of experts
    host_s: float = 0.0  # per layer and micro-batch, until the host has launched it: at least this long
    host_routed_s: float = 0.0  # more of it in a layer of experts, which waits for its token counts
    micro_batch_s: float = 0.0
    step_s: float = 0.0  # data, logs, gradient norm
    jitter: float = 0.0  # sigma of a device's step time; the slowest of n rules
    balanced: float = 0.0  # 1: pipeline stages are split by work, the head counted
    low: float = 0.25  # the band: relative, below and above the step time
    high: float = 0.35
    basis: str = "assumed"  # or "near", "published": see band_of


def profile_of(stack: str, cluster: Cluster, precision: str) -> Profile:
    """Of a stack on the devices and links of a cluster.

    KeyError: unknown stack. ValueError: the catalogue has no peak of the device.
    """
    device, family = cluster.device, family_of(cluster.device)
    constants = _constants(stack, family, precision)
    half, fast = peak_tflops(device, "bf16"), peak_tflops(device, precision)
    if half is None or device.memory_gb_per_s is None:
        raise ValueError(f"{device.name} has no known peak")
    sustained = _tables()["device"].get(device.name, 1.0)
    link = cluster.link_gb_per_s or cluster.network_gb_per_s or UNKNOWN_LINK_GB_PER_S
    low, high, basis = band_of(stack, family, precision)
    derived = {
        "matmul_tflops": (fast or half) * sustained * constants["matmul"],
        "head_tflops": half * sustained * _constants(stack, family, "bf16")["matmul"],
        "attention_tflops": half * sustained * constants["attention"],
        "vector_gb_per_s": device.memory_gb_per_s * constants["memory"],
        "link_gb_per_s": link * constants["link"],
        "network_gb_per_s": (cluster.network_gb_per_s or UNKNOWN_NETWORK_GB_PER_S) * constants["network"],
    }
    known = {field.name for field in fields(Profile)}
    plain = {name: value for name, value in constants.items() if name in known}
    return Profile(**plain | derived, low=low, high=high, basis=basis)


def band_of(stack: str, family: str, precision: str) -> tuple[float, float, str]:
    """(low, high, basis): relative, below and above a predicted time; four of five rows that were held out
    of a fit lie within.

    "published": rows of this stack (or of the one that it starts from), family and precision were fitted;
    "near": of the family, but another stack or precision, so half as wide again; "assumed": no such rows.
    """
    bands, lineage = _tables()["bands"], _lineage(stack)
    for word in reversed(lineage):
        if (band := bands.get(f"{word}/{family}/{_kind(precision)}")) is not None:
            return 1.0 - math.exp(-band), math.exp(band) - 1.0, "published"
    near = [band for name, band in bands.items() if f"/{family}/" in name]
    own = [band for name, band in bands.items() if name.startswith(f"{stack}/{family}/")]
    band = 1.5 * median(own or near) if near else ASSUMED_BAND
    return 1.0 - math.exp(-band), math.exp(band) - 1.0, "near" if near else "assumed"


def family_of(device: Device) -> str:
    """Devices whose kernels are alike."""
    return str(_tables()["family"].get(device.name, device.kind))


def stacks() -> list[str]:
    """Those that have a profile."""
    return sorted(_tables()["stack"])


def peak_tflops(device: Device, precision: str) -> float | None:
    """Dense peak of matmuls in this precision. fp16 is as fast as bf16; V100 and T4 know fp16 alone."""
    half = device.bf16_dense_tflops or _tables()["fp16"].get(device.name)
    if precision == "fp32":
        return device.fp32_tflops
    if precision in EIGHT_BIT:
        return device.fp8_dense_tflops or half
    if precision == "nvfp4":
        return device.fp4_dense_tflops or device.fp8_dense_tflops or half
    return half


def columns_of(stack: str, cluster: Cluster, used: set[int]) -> dict[str, list[float]]:
    """Every number of the profiles of the `used` precisions, as lists over PRECISIONS (0 where unused)."""
    found = {number: profile_of(stack, cluster, PRECISIONS[number]) for number in sorted(used)}
    names = [field.name for field in fields(Profile) if field.name != "basis"]
    return {
        name: [getattr(found[number], name) if number in found else 0.0 for number in range(len(PRECISIONS))]
        for name in names
    }


def table_names(stack: str, family: str, precision: str) -> list[str]:
    """The tables of constants that hold, from the most general to the most special."""
    kind = _kind(precision)
    names = ["common", f"common/{kind}", family, f"{family}/{kind}"]
    for word in _lineage(stack):
        names += [word, f"{word}/{kind}", f"{word}/{family}", f"{word}/{family}/{kind}"]
    return names


def _constants(stack: str, family: str, precision: str) -> dict[str, Any]:
    tables, found = _tables()["constants"], dict[str, Any]()
    for name in table_names(stack, family, precision):
        found |= tables.get(name, {})
    return found


def _lineage(stack: str) -> list[str]:
    """The stack, after those whose constants it starts from."""
    parents = _tables()["stack"]
    if stack not in parents:
        raise KeyError(f"no profile of a stack {stack!r}; there are {', '.join(stacks())}")
    return [*(_lineage(parents[stack]) if parents[stack] else []), stack]


def _kind(precision: str) -> str:
    """fp16 and fp32 have the constants of bf16, of another peak."""
    return "bf16" if precision in ("fp16", "fp32") else precision


@cache
def _tables() -> dict[str, Any]:
    text = (resources.files("bessemer.planner.cost") / "profiles.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
