"""What `compile = "auto"` will mean in training: there must be a compiler, and the run must be long enough.

Training asks here once and keeps the answer (train/compiling.py); a plan asks the same, so that both speak of
the same step and the same memory. Where nobody can tell (a cluster that is only planned for) it means yes.
"""

from dataclasses import replace

from bessemer.formulas.shape import ModelShape
from bessemer.planner.machine.facts import Facts
from bessemer.planner.plan import Estimate, StagePlan
from bessemer.planner.speed import step_time, training_speed
from bessemer.units import format_seconds

_COMPILE_S = 25.0  # blocks and loss, forward and backward, on two cores
_GAIN = 0.35  # of the eager step's time, at width 512 on a CPU
_PAYS = 1.5  # gain over cost, so that a close call stays eager


def will_compile(stage: StagePlan, shape: ModelShape, facts: Facts) -> tuple[bool, str]:
    """(what "auto" means, why)."""
    if facts.has_compiler is False:
        return False, f"there is no {compiler_language(facts.kind)} compiler (see `bessemer doctor`)"
    speed = training_speed(shape, facts, stage.dtype, stage.recompute)
    step_s = step_time(shape, stage.batch_tokens, speed, facts).value
    if step_s is None:
        return True, "as nothing is known of this device's speed, and long runs gain most"
    saved_s = stage.steps * step_s * _GAIN / (1.0 - _GAIN)
    told = f"it would save about {format_seconds(saved_s)} and costs about {format_seconds(_COMPILE_S)}"
    return saved_s > _PAYS * _COMPILE_S, told


def as_run(shape: ModelShape, stage: StagePlan, facts: Facts) -> StagePlan:
    """The stage with "auto" decided, where that can be told."""
    if facts.has_compiler is None:
        return stage
    return replace(stage, compile=runs_compiled(shape, stage, facts))


def runs_compiled(shape: ModelShape, stage: StagePlan, facts: Facts) -> bool:
    """Whether the stage will, decided or not."""
    if isinstance(stage.compile, bool):
        return stage.compile
    return facts.has_compiler is None or will_compile(stage, shape, facts)[0]


def eager(compiled: Estimate) -> Estimate:
    """The step of code that is not compiled, from that of code that is."""
    return compiled.times(1.0 / (1.0 - _GAIN))


def compiler_language(kind: str) -> str:
    """Of what torch.compile makes on this kind of device: code on a CPU, what starts Triton's kernels."""
    return "C++" if kind == "cpu" else "C"
