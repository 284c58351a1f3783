"""From the samples of finetune_cpu.py to figures, ratios, a table and a JSON document."""

import statistics
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

from columns import brief, columns, shown
from finetune_sides import SIDES, Sample, Side
from finetune_work import LORA, SFT, Workload

from bessemer.hardware import machine

_GIB = 2**30
# What is wanted of Bessemer: figure, "at least" or "at most", bound.
WANTED = (
    ("SFT: tokens/s over the fastest TRL that packs and keeps examples apart", ">=", 1.5),
    ("SFT: tokens/s over the fastest TRL of all", ">=", 1.5),
    ("LoRA: step time over that of the fastest PEFT", "<=", 1.0),
    ("LoRA: memory over that of the leanest PEFT", "<=", 1.0),
    ("DPO: relative difference to TRL's loss", "<=", 1e-5),
    ("DPO: largest difference to TRL's gradients, over the largest gradient", "<=", 1e-5),
)


@dataclass
class Results:
    """All that was measured. `failures`: by name, why there are no (further) samples."""

    workload: Workload
    rounds: int
    tiny: bool = False
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    preference: dict[str, Any] | None = None  # finetune_preference.py

    def rate(self, side: Side) -> float:
        return statistics.median(sample.tokens_per_s for sample in self.samples[side.name])

    def step_s(self, side: Side) -> float:
        return statistics.median(sample.step_s for sample in self.samples[side.name])

    def peak(self, side: Side) -> int:
        return max(sample.peak_rss_bytes for sample in self.samples[side.name])

    def measured(self, course: str, *, ours: bool) -> list[Side]:
        found = [side for side in SIDES if side.course == course and side.name in self.samples]
        return [side for side in found if (side.script is None) == ours]

    def fastest(self, course: str, *, apart: bool = False) -> Side | None:
        """The fastest peer. apart: of those that pack examples none of which sees another."""
        peers = [
            side
            for side in self.measured(course, ours=False)
            if not apart or (side.kind != "padded" and not any(s.leaks for s in self.samples[side.name]))
        ]
        return max(peers, key=self.rate, default=None)


def rows(results: Results) -> list[dict[str, Any]]:
    """A row a contestant, in their order."""
    return [_row(results, side) for side in SIDES if side.name in results.samples]


def verdict(results: Results) -> list[dict[str, Any]]:
    """The wanted figures, and what they are here. None: one of the two is not in this run."""
    values = [
        _speed(results, results.fastest(SFT, apart=True)),
        _speed(results, results.fastest(SFT)),
        *_lora(results),
        *((results.preference or {}).get(key) for key in ("loss_difference", "gradient_difference")),
    ]
    # Of a tiny model only what is no timing says anything.
    return [
        {"what": what, "wanted": f"{sign} {bound:g}", "value": value, "met": _meets(value, sign, bound)}
        for (what, sign, bound), value in zip(WANTED, values, strict=True)
        if what.startswith("DPO") or not results.tiny
    ]


def document(results: Results) -> dict[str, Any]:
    return {
        "benchmark": "finetune_cpu",
        "machine": asdict(machine()),
        "versions": {name: metadata.version(name) for name in ("bessemer", "torch", "numpy")},
        "workload": asdict(results.workload),
        "rounds": results.rounds,
        "rows": rows(results),
        "preference": results.preference,
        "verdict": verdict(results),
        "samples": {name: [asdict(sample) for sample in found] for name, found in results.samples.items()},
        "failures": results.failures,
    }


def table(results: Results) -> str:
    headings = ["", "tokens/s", "ms a step", "fill", "sees others", "peak GiB", "loss", "× best peer"]
    body = [
        [
            row["name"],
            f"{row['tokens_per_s']:,.0f}",
            f"{1e3 * row['step_s']:,.0f}",
            f"{row['fill']:.1%}",
            {True: "yes", False: "no", None: "–"}[row["leaks"]],
            f"{row['peak_rss_bytes'] / _GIB:.2f}",
            f"{row['loss_first']:.3f} → {row['loss_last']:.3f}",
            shown(row["ratio"], ".2f"),
        ]
        for row in rows(results)
    ]
    here, w = machine(), results.workload
    lines = [
        f"{here.cpu}, {here.cores} cores; torch {metadata.version('torch')}",
        f"{w.layers} layers of {w.hidden}, vocabulary {w.vocab}, {w.rows} rows of {w.context} tokens a step; "
        f"median of {results.rounds} trainings, {w.timed_steps} steps each after {w.warmup_steps} of warm-up",
        "",
        *columns(headings, body),
        "",
    ]
    lines += ["a tiny model: its timings say nothing"] if results.tiny else []
    for row in verdict(results):
        met = {True: "met", False: "NOT met", None: "not measured"}[row["met"]]
        lines.append(f"{row['what']}: {shown(row['value'], '.3g')}, wanted {row['wanted']}: {met}")
    lines += [f"failed: {name}: {brief(why)}" for name, why in results.failures.items()]
    return "\n".join(lines)


def _row(results: Results, side: Side) -> dict[str, Any]:
    samples = results.samples[side.name]
    best = results.fastest(side.course)
    return {
        "name": side.name,
        "tokens_per_s": results.rate(side),
        "step_s": results.step_s(side),
        "fill": samples[0].fill,
        "leaks": samples[0].leaks,
        "peak_rss_bytes": results.peak(side),
        "loss_first": samples[0].losses[0],
        "loss_last": samples[0].losses[-1],
        "ratio": None if best is None else results.rate(side) / results.rate(best),
        "versions": samples[0].versions,
    }


def _speed(results: Results, peer: Side | None) -> float | None:
    ours = results.measured(SFT, ours=True)
    return results.rate(ours[0]) / results.rate(peer) if ours and peer else None


def _lora(results: Results) -> tuple[float | None, float | None]:
    ours, peers = results.measured(LORA, ours=True), results.measured(LORA, ours=False)
    if not ours or not peers:
        return None, None
    step_s = min(results.step_s(peer) for peer in peers)
    return results.step_s(ours[0]) / step_s, results.peak(ours[0]) / min(map(results.peak, peers))


def _meets(value: float | None, sign: str, bound: float) -> bool | None:
    if value is None:
        return None
    return value >= bound if sign == ">=" else value <= bound
