"""Take Bessemer's training step apart with torch's profiler.

Every operator's own time goes to one part, by its name and by what it was called from. The names of
compiled kernels are only there when inductor is told to record them, which costs a few microseconds
each. A rate is the part's model FLOPs (formulas/flops.py) over its time.
Not seen: which of the waiting inside an operator is for memory; read the rates against the ceiling.
"""

import statistics
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from ceiling import matmul_tflops
from columns import columns, shown
from step import BessemerStep, plan_of
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile
from workload import TINY, Workload, draw_documents, recipe_text

from bessemer.formulas.flops import attention_flops_per_token, mean_causal_keys
from bessemer.formulas.parameters import matmul_params

_WARMUP_STEPS = 4
PARTS = (
    "matmul of the blocks",
    "attention",
    "loss: matmul of the head",
    "loss: the rest",
    "elementwise, fused",
    "clipping",
    "optimizer",
    "other operators",
    "between operators",
)


def measure(num_steps: int, *, tiny: bool = False) -> dict[str, Any]:
    """Seconds of each part in a step, mean over `num_steps`."""
    workload = replace(Workload(), **(TINY if tiny else {}))
    torch._inductor.config.cpp.enable_kernel_profile = True
    size, device = 512 if tiny else 4096, torch.device("cpu")
    ceiling = matmul_tflops(size)
    step = BessemerStep(plan_of(recipe_text(workload), device, vocab=workload.vocab), device)
    windows = _windows(workload, _WARMUP_STEPS + 2 * num_steps)
    for window in windows[:_WARMUP_STEPS]:
        step(window)
    plain_s = [_seconds(step, window) for window in windows[_WARMUP_STEPS : _WARMUP_STEPS + num_steps]]
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        profiled_s = [_seconds(step, window) for window in windows[_WARMUP_STEPS + num_steps :]]
    spent_s = dict.fromkeys(PARTS, 0.0)
    for event in profiler.events():
        spent_s[part_of(event)] += event.self_cpu_time_total / 1e6 / num_steps
    whole_s = sum(profiled_s) / num_steps
    spent_s["between operators"] += max(0.0, whole_s - sum(spent_s.values()))
    return {
        "benchmark": "cpu_parts",
        "torch": torch.__version__,
        "ceiling_tflops": max(ceiling, matmul_tflops(size)),
        "tokens_per_step": workload.batch_tokens,
        "step_s": statistics.median(plain_s),
        "step_profiled_s": whole_s,
        "parts": _rows(workload, spent_s, whole_s),
    }


def part_of(event: FunctionEvent) -> str:
    """The part that an operator's own time belongs to."""
    above = _names_above(event)
    if any(name.startswith("_ChunkedLoss") or "ChunkedLossBackward" in name for name in above):
        return "loss: matmul of the head" if event.name == "aten::mm" else "loss: the rest"
    if any(name.startswith("Optimizer.") for name in above):
        return "optimizer"
    if event.name in ("aten::mm", "aten::addmm", "aten::bmm"):
        return "matmul of the blocks"
    if event.name.startswith("bessemer::attention") or "scaled_dot_product" in event.name:
        return "attention"
    if "cpp_fused" in event.name:
        return "elementwise, fused"
    if any(name.startswith("aten::_foreach_") for name in above):  # nothing else uses those
        return "clipping"
    return "other operators"


def table(found: dict[str, Any]) -> str:
    ceiling = found["ceiling_tflops"]
    body = [
        [
            row["part"],
            f"{row['seconds'] * 1e3:.1f}",
            f"{row['share']:.1%}",
            shown(row["tflops"], ".2f"),
            shown(row["tflops"] / ceiling if row["tflops"] else None, ".0%"),
        ]
        for row in found["parts"]
    ]
    rate = found["tokens_per_step"] / found["step_s"]
    head = (
        f"a step takes {found['step_s'] * 1e3:.0f} ms ({rate:,.0f} tokens/s), "
        f"{found['step_profiled_s'] * 1e3:.0f} ms while it is profiled; bf16 ceiling {ceiling:.2f} TFLOP/s"
    )
    return "\n".join([head, "", *columns(["part", "ms", "share", "TFLOP/s", "of ceiling"], body)])


def _names_above(event: FunctionEvent) -> list[str]:
    """This operator and those it was called from, outwards."""
    names = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    return names


def _windows(workload: Workload, count: int) -> list[torch.Tensor]:
    tokens = np.concatenate(draw_documents(replace(workload, timed_steps=count))).astype(np.int64)
    size = workload.rows * (workload.context + 1)
    shape = (count, workload.rows, workload.context + 1)
    return list(torch.from_numpy(tokens[: count * size].reshape(shape)))


def _rows(workload: Workload, spent_s: dict[str, float], whole_s: float) -> list[dict[str, Any]]:
    shape, tokens = workload.shape(), workload.batch_tokens
    head = 6.0 * shape.vocab * shape.hidden
    attention = 3.0 * attention_flops_per_token(shape, mean_causal_keys(shape, workload.context))
    flops = {
        "matmul of the blocks": tokens * (6.0 * matmul_params(shape) - head),
        "attention": tokens * attention,
        "loss: matmul of the head": tokens * head,
    }
    return [
        {
            "part": part,
            "seconds": seconds,
            "share": seconds / whole_s,
            "tflops": flops[part] / seconds / 1e12 if part in flops and seconds else None,
        }
        for part, seconds in spent_s.items()
    ]


def _seconds(step: BessemerStep, window: torch.Tensor) -> float:
    begin_s = time.perf_counter()
    step(window)
    return time.perf_counter() - begin_s
