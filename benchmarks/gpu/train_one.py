"""Train one contestant on one shape for some seconds, in a process of its own, and write what it took.

    python train_one.py CONTESTANT RECIPE ROWS SECONDS RESULT
    python train_one.py ceiling RESULT

Warm-up (compilation, first touch of memory) is timed apart. The number of timed steps follows from the
last warm-up step, so that the clock is read at both ends only and no contestant waits for it in between.
Exit code 3: out of device memory.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from step import BessemerStep, plan_of
from torch import Tensor

from bessemer.energy.metering.meter import EnergyReading, PowerMeter
from bessemer.formulas.flops import train_flops_per_token
from bessemer.hardware import find, usable_cores
from bessemer.measure.ceiling import ceilings, device_name
from bessemer.measure.facts import meter_name
from bessemer.model.device import this_device
from bessemer.planner.plan import Plan

OUT_OF_MEMORY = 3
_WARMUP_STEPS = 4
_MIN_STEPS, _MAX_STEPS = 5, 500
_NUM_WINDOWS = 8  # batches, taken in turn

Step = Callable[[Tensor], Tensor | float]


def main(words: list[str]) -> int:
    if words[0] == "ceiling":
        Path(words[1]).write_text(json.dumps(_ceiling()), encoding="utf-8")
        return 0
    contestant, recipe, rows, seconds, result = words
    try:
        measured = train(contestant, Path(recipe).read_text(encoding="utf-8"), int(rows), float(seconds))
    except torch.OutOfMemoryError as error:
        print(error, file=sys.stderr)
        return OUT_OF_MEMORY
    Path(result).write_text(json.dumps(measured), encoding="utf-8")
    return 0


def train(contestant: str, recipe: str, rows: int, seconds: float) -> dict[str, Any]:
    device = this_device()
    plan = _plan(recipe, rows, device)
    begin_s = time.perf_counter()
    step = _step(contestant, plan, device)
    windows = _windows(plan)
    losses = [step(windows[number]) for number in range(_WARMUP_STEPS - 1)]
    _synchronise(device)
    warm_s = time.perf_counter()
    losses.append(step(windows[_WARMUP_STEPS - 1]))
    _synchronise(device)
    num_steps = round(seconds / (time.perf_counter() - warm_s))
    num_steps = max(_MIN_STEPS, min(_MAX_STEPS, num_steps))
    meter = PowerMeter(cores=usable_cores(), accelerators=_nvml_indices(device))
    meter.read()
    timed_s = time.perf_counter()
    losses += [step(windows[number % _NUM_WINDOWS]) for number in range(num_steps)]
    _synchronise(device)
    spent_s = time.perf_counter() - timed_s
    tokens = num_steps * plan.pretrain.batch_tokens
    return {
        "params": plan.params,
        "context": plan.shape.context,
        "flops_per_token": train_flops_per_token(plan.shape, plan.shape.context),
        "steps": num_steps,
        "start_s": timed_s - begin_s,
        "step_time_s": spent_s / num_steps,
        "tokens_per_s": tokens / spent_s,
        "peak_memory_bytes": _peak_memory(device),
        "joules_per_token": _per_token(meter.read().energy, tokens),
        "loss_first": float(losses[0]),
        "loss_last": float(losses[-1]),
    }


def _plan(recipe: str, rows: int, device: torch.device) -> Plan:
    context = plan_of(recipe, device).shape.context
    overrides = [f"pretrain.micro_batch={rows}", f"pretrain.batch_tokens={rows * context}"]
    return plan_of(recipe, device, overrides=overrides)


def _step(contestant: str, plan: Plan, device: torch.device) -> Step:
    if contestant == "bessemer":
        return BessemerStep(plan, device)
    # Not before: Bessemer is timed also where transformers is not installed.
    from transformers_step import TransformersStep

    return TransformersStep(plan, device, compiled=contestant == "transformers-compiled")


def _windows(plan: Plan) -> list[Tensor]:
    """Tokens by Zipf's law, as in workload.py."""
    shape, random = plan.shape, np.random.default_rng(0)
    weights = 1.0 / (np.arange(shape.vocab) + 2.7)
    size = (_NUM_WINDOWS, plan.pretrain.batch_rows, shape.context + 1)
    drawn = random.choice(shape.vocab, size=size, p=weights / weights.sum())
    return list(torch.from_numpy(drawn.astype(np.int64)))


def _ceiling() -> dict[str, Any]:
    device = this_device()
    name = device_name(device)
    known = find(name) if device.type != "cpu" else None
    return {
        "device": name,
        "device_type": device.type,
        "catalogue": known.name if known else None,
        "peak_bf16_tflops": known.bf16_dense_tflops if known else None,
        # Measured anew on an accelerator; on a CPU, which only tries the path, the stored one will do.
        "ceiling_bf16_tflops": ceilings(device, fresh=device.type != "cpu").matmul_bf16_tflops,
        "versions": {name: _version(name) for name in ("torch", "transformers", "numpy", "nvidia-ml-py")},
        "accelerator_runtime": torch.version.cuda or torch.version.hip,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _peak_memory(device: torch.device) -> int:
    """Device memory allocated at most, start and warm-up included; on a CPU the resident set."""
    if device.type != "cpu":
        return int(torch.accelerator.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _nvml_indices(device: torch.device) -> tuple[int | str, ...]:
    """NVML counts all devices of the machine, torch those that it may see. Another vendor's has no
    counter there: then the meter knows of a device that it cannot read, and energy is unknown."""
    return () if device.type == "cpu" else (meter_name(device),)


def _per_token(energy: EnergyReading, tokens: int) -> dict[str, Any] | None:
    if energy.joules is None or energy.low is None or energy.high is None:
        return None
    values = {"value": energy.joules, "low": energy.low, "high": energy.high}
    return {**{name: joules / tokens for name, joules in values.items()}, "basis": energy.basis}


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
