"""How fast one device trains a model by one share of its peak: what is known where nothing was calibrated.

The share of the peak that a step reaches, by the width of the model (the curves of planner/machine/facts.py),
and the optimizer's update by the memory's speed. A device that the cost model knows has planner/step.py
instead, a calibrated one planner/calibrated/step_time.py.
"""

from dataclasses import dataclass

from bessemer.energy.power import Band
from bessemer.formulas.adapters import trained_params
from bessemer.formulas.flops import hardware_flops_per_token, train_flops_per_token
from bessemer.formulas.parameters import total_params
from bessemer.formulas.shape import ModelShape
from bessemer.planner.calibrated.step_time import between_widths
from bessemer.planner.machine.facts import Facts
from bessemer.planner.machine.planned import listed_device
from bessemer.planner.plan import UNKNOWN, Estimate, StagePlan

# Bytes that AdamW moves per parameter: reads weight, gradient, two moments; writes all but the gradient.
_UPDATE_BYTES = 28
_MOE_SHARE = 0.75  # of a dense model's efficiency, from published MoE runs
# A device reaches about this share of its dense peak in one large matmul (H100 0.70-0.80, A100 0.75-0.85).
_CEILING_SHARE = 0.76
# Matmuls inside a training step, over the ceiling of one large product; and the cores of the CPU curve.
_MATMUL_SHARE = 0.97
_REFERENCE_TFLOPS_PER_CORE = 1.0


@dataclass(frozen=True)
class Speed:
    """How fast one device trains this model, compiled."""

    tflops: Band  # model FLOPs
    basis: str


def peak_tflops(facts: Facts, dtype: str) -> float | None:
    """What MFU is a share of. None: unknown device, no MFU."""
    if facts.kind == "cpu":
        return facts.ceilings.matmul_tflops(dtype) if facts.ceilings else None
    device = listed_device(facts)
    return device.peak_tflops(dtype) if device else None


def training_speed(
    shape: ModelShape, facts: Facts, dtype: str, recompute: str, recomputed_share: float = 1.0
) -> Speed | None:
    """Model TFLOP/s of one device, without the optimizer's update. None: nothing to base it on.

    recomputed_share: of the layers, with full recomputation.
    """
    share = between_widths(facts.curve, shape.hidden) * (_MOE_SHARE if shape.experts else 1.0)
    if facts.kind == "cpu" and facts.ceilings is not None:
        share = cpu_share(share, facts.ceilings.matmul_tflops(dtype) / facts.ceilings.threads)
    model = train_flops_per_token(shape, shape.context)
    again = hardware_flops_per_token(shape, shape.context, recompute) - model
    share *= model / (model + recomputed_share * again)
    if facts.ceilings is not None:
        ceiling = facts.ceilings.matmul_tflops(dtype) / (1.0 if facts.kind == "cpu" else _CEILING_SHARE)
        return Speed(Band(ceiling * share, 0.7 * ceiling * share, 1.3 * ceiling * share), "modelled")
    peak = peak_tflops(facts, dtype)
    if peak is None:
        return None
    return Speed(Band(peak * share, 0.65 * peak * share, 1.35 * peak * share), "assumed")


def cpu_share(share: float, tflops_per_core: float) -> float:
    """The share that cores of another matmul speed reach.

    A step is matmuls, at _MATMUL_SHARE of the ceiling, and work bound by memory and vector units, whose
    time per FLOP is about the same on all cores: where matmuls are slower it weighs less.
    Checked on two EPYC (Zen 4) cores at 0.205 TFLOP/s each, width 512, compiled: the blocks' matmuls reach
    the ceiling and the step 0.83 of it (0.343 of 0.41 TFLOP/s); 0.74 predicted from 0.38 with AMX.
    """
    other = max(0.0, 1.0 / share - 1.0 / _MATMUL_SHARE) * tflops_per_core / _REFERENCE_TFLOPS_PER_CORE
    return 1.0 / (1.0 / _MATMUL_SHARE + other)


def step_time(shape: ModelShape, batch_tokens: int, speed: Speed | None, facts: Facts) -> Estimate:
    if speed is None:
        return UNKNOWN
    flops = train_flops_per_token(shape, shape.context) * batch_tokens / facts.devices / 1e12
    update_s = _update_s(shape, facts)
    tflops = speed.tflops
    return Estimate(
        flops / tflops.value + update_s,
        flops / tflops.high + update_s,
        flops / tflops.low + update_s,
        speed.basis,
    )


def recomputed_share(shape: ModelShape, stage: StagePlan) -> float:
    """Of the layers that "full" recomputes."""
    return 1.0 if stage.recompute_layers is None else stage.recompute_layers / shape.layers


def memory_gb_per_s(facts: Facts) -> float | None:
    """Bytes read and written: measured here, else the catalogue's peak."""
    if facts.ceilings is not None:
        return facts.ceilings.copy_gb_per_s
    device = listed_device(facts)
    return None if device is None else device.memory_gb_per_s


def _update_s(shape: ModelShape, facts: Facts) -> float:
    """The optimizer's update, bound by memory; sharded over the devices."""
    gb_per_s = memory_gb_per_s(facts)
    if not gb_per_s:
        return 0.0
    learned = trained_params(shape, total_params(shape))
    return _UPDATE_BYTES * learned / facts.devices / gb_per_s / 1e9
