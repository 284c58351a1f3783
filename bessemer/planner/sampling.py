"""Time of sampled answers: formulas/rollout_time.py at the speeds of a device.

Matmuls go as fast as those of a training step (the plan's own, measured or modelled), bytes at the memory's
bandwidth: copied here, or the catalogue's peak. The value is that of answers as long as they may be, as a
chunk goes on until its last one ends; the low end that of answers a quarter as long. The band of the speeds
is wide, as nothing of sampling was calibrated.
"""

from bessemer.formulas.rollout_time import chunk_work, chunks
from bessemer.formulas.shape import ModelShape
from bessemer.planner.machine.facts import Facts
from bessemer.planner.plan import UNKNOWN, Estimate, StagePlan
from bessemer.planner.speed import memory_gb_per_s

_SHORT = 0.25  # of the answers' longest length
_FAST, _SLOW = 1.3, 0.5  # of both speeds


def round_time(shape: ModelShape, stage: StagePlan, facts: Facts, tflops: Estimate) -> Estimate:
    """Seconds until a round of answers is there, between two steps. UNKNOWN: of an unknown device.

    facts: with the devices of the layout. tflops: model FLOPs of a device in a step.
    """
    gb_per_s = memory_gb_per_s(facts)
    if tflops.value is None or tflops.low is None or tflops.high is None or not gb_per_s:
        return UNKNOWN
    objective, world = stage.objective, stage.layout.world
    # Ranks that share a CPU's cores are as many times slower.
    turns = -(-chunks(objective) // world) * world / facts.devices

    def seconds(flops: float, speed: float, answer_share: float = 1.0) -> float:
        work = chunk_work(shape, objective, stage.dtype, answer_share)
        return turns * work.seconds(speed * flops * 1e12, speed * gb_per_s * 1e9)

    basis = "assumed" if tflops.basis == "assumed" or facts.ceilings is None else "modelled"
    low = seconds(tflops.high, _FAST, _SHORT)
    return Estimate(seconds(tflops.value, 1.0), low, seconds(tflops.low, _SLOW), basis)


def sampling_hours(stage: StagePlan, round_s: Estimate) -> Estimate:
    """Of all rounds of a stage."""
    rollouts = stage.objective.rollouts
    assert rollouts is not None, stage.objective
    return round_s.times(rollouts.rounds / 3600.0)
