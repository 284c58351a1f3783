"""From the samples of all contestants to figures, ratios, a table and a JSON document."""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

from columns import brief, columns, shown
from contestants import ALLOCATOR, BESSEMER, Sample
from workload import Workload

from bessemer.formulas.flops import CONVENTION, train_flops_per_token
from bessemer.formulas.parameters import total_params
from bessemer.hardware import machine

_GIB = 2**30
# What is wanted of Bessemer: figure in `verdict`, "at least" or "at most", bound.
WANTED = (
    ("speed over the best peer as it comes", ">=", 1.25),
    ("speed over the best peer with our allocator", ">=", 1.1),
    ("memory over that of the best peer as it comes", "<=", 1.0),
    ("share of the matmul ceiling (goal of later work)", ">=", 0.5),
)


@dataclass
class Results:
    """All that was measured. `failures`: by contestant, why it has no (further) samples."""

    workload: Workload
    rounds: int
    tiny: bool = False
    ceilings_tflops: list[float] = field(default_factory=list)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def flops_per_token(self) -> float:
        return train_flops_per_token(self.workload.shape(), self.workload.context)

    @property
    def ceiling_tflops(self) -> float | None:
        return max(self.ceilings_tflops, default=None)


def rows(results: Results) -> list[dict[str, Any]]:
    """A row a contestant, in the order of their first samples."""
    as_it_comes = best_peer(results, lambda name: not name.endswith(ALLOCATOR))
    with_allocator = best_peer(results, lambda name: name.endswith(ALLOCATOR))
    return [_row(results, name, as_it_comes, with_allocator) for name in results.samples]


def best_peer(results: Results, counts: Callable[[str], bool]) -> str | None:
    """The name of the fastest by its median."""
    names = [name for name in results.samples if name != BESSEMER and counts(name)]
    return max(names, key=lambda name: _rate(results, name), default=None)


def verdict(results: Results) -> list[dict[str, Any]]:
    """The wanted figures, and what they are here. None: Bessemer or its peers are not in this run."""
    if results.tiny:
        return []
    row = next((row for row in rows(results) if row["name"] == BESSEMER), {})
    names = ("ratio_as_it_comes", "ratio_with_allocator", "memory_ratio_as_it_comes", "share_of_ceiling")
    return [
        {"what": what, "wanted": f"{sign} {bound}", "value": value, "met": _meets(value, sign, bound)}
        for (what, sign, bound), value in zip(WANTED, map(row.get, names), strict=True)
    ]


def document(results: Results) -> dict[str, Any]:
    shape = results.workload.shape()
    return {
        "benchmark": "cpu_pretrain",
        "machine": asdict(machine()),
        "versions": {name: metadata.version(name) for name in ("bessemer", "torch", "numpy")},
        "workload": asdict(results.workload),
        "params": total_params(shape),
        "flops_per_token": results.flops_per_token,
        "flops_convention": CONVENTION,
        "rounds": results.rounds,
        "ceiling_tflops": results.ceiling_tflops,
        "ceilings_tflops": results.ceilings_tflops,
        "rows": rows(results),
        "verdict": verdict(results),
        "samples": {name: [asdict(sample) for sample in found] for name, found in results.samples.items()},
        "failures": results.failures,
    }


def table(results: Results) -> str:
    headings = [
        "",
        "tokens/s",
        "best",
        "TFLOP/s",
        "of ceiling",
        "peak GiB",
        "loss",
        "× best peer",
        "× with allocator",
    ]
    body = [
        [
            row["name"],
            f"{row['tokens_per_s']:,.0f}",
            f"{row['tokens_per_s_best']:,.0f}",
            f"{row['tflops']:.3f}",
            shown(row["share_of_ceiling"], ".1%"),
            f"{row['peak_rss_bytes'] / _GIB:.2f}",
            f"{row['loss_first']:.2f} → {row['loss_last']:.2f}",
            shown(row["ratio_as_it_comes"], ".2f"),
            shown(row["ratio_with_allocator"], ".2f"),
        ]
        for row in rows(results)
    ]
    lines = [*_head(results), "", *columns(headings, body), ""]
    lines += ["a tiny model: its timings say nothing"] if results.tiny else []
    for row in verdict(results):
        met = {True: "met", False: "NOT met", None: "not measured"}[row["met"]]
        lines.append(f"{row['what']}: {shown(row['value'], '.2f')}, wanted {row['wanted']}: {met}")
    lines += [f"failed: {name}: {brief(why)}" for name, why in results.failures.items()]
    return "\n".join(lines)


def _head(results: Results) -> list[str]:
    here, w = machine(), results.workload
    ceiling = shown(results.ceiling_tflops, ".2f")
    return [
        f"{here.cpu}, {here.cores} cores; torch {metadata.version('torch')}; "
        f"bf16 matmul ceiling {ceiling} TFLOP/s",
        f"{total_params(w.shape()) / 1e6:.1f}M parameters (tied), {w.rows} rows of {w.context} tokens; "
        f"median of {results.rounds} trainings, {w.timed_steps} steps each after {w.warmup_steps} of warm-up",
        f"TFLOP/s: {CONVENTION}, {results.flops_per_token / 1e6:.1f} MFLOP per token",
    ]


def _row(results: Results, name: str, as_it_comes: str | None, with_allocator: str | None) -> dict[str, Any]:
    samples = results.samples[name]
    rate = _rate(results, name)
    tflops = rate * results.flops_per_token / 1e12
    peak = _peak(results, name)
    ceiling = results.ceiling_tflops
    return {
        "name": name,
        "tokens_per_s": rate,
        "tokens_per_s_best": max(sample.tokens_per_s for sample in samples),
        "tflops": tflops,
        "share_of_ceiling": tflops / ceiling if ceiling else None,
        "peak_rss_bytes": peak,
        "loss_first": samples[0].losses[0],
        "loss_last": samples[0].losses[-1],
        "ratio_as_it_comes": rate / _rate(results, as_it_comes) if as_it_comes else None,
        "ratio_with_allocator": rate / _rate(results, with_allocator) if with_allocator else None,
        "memory_ratio_as_it_comes": peak / _peak(results, as_it_comes) if as_it_comes else None,
        "versions": samples[0].versions,
    }


def _rate(results: Results, name: str) -> float:
    return statistics.median(sample.tokens_per_s for sample in results.samples[name])


def _peak(results: Results, name: str) -> int:
    return max(sample.peak_rss_bytes for sample in results.samples[name])


def _meets(value: float | None, sign: str, bound: float) -> bool | None:
    if value is None:
        return None
    return value >= bound if sign == ">=" else value <= bound
