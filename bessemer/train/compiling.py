"""When and what torch.compile compiles.

Each block by itself, as all blocks share one compiled code: the time to compile does not grow with
depth (8 layers: 17 s instead of 25 s for the whole model on two cores), and sharding wraps blocks anyway.
"""

import os
import shutil

from bessemer.formulas.shape import ModelShape
from bessemer.model.decoder import Decoder
from bessemer.planner.facts import Facts
from bessemer.planner.plan import StagePlan
from bessemer.planner.predict import step_time, training_speed
from bessemer.units import format_seconds

_COMPILE_S = 25.0  # blocks and loss, forward and backward, on two cores
_GAIN = 0.35  # of the eager step's time, at width 512 on a CPU
_PAYS = 1.5  # gain over cost, so that a close call stays eager


def compile_blocks(model: Decoder) -> None:
    for block in model.model.layers:
        block.compile(dynamic=False)


def settle_compile(plan: StagePlan, shape: ModelShape, facts: Facts) -> tuple[bool, str]:
    """(whether "auto" means yes, why): there must be a compiler, and the run must be long enough."""
    if facts.kind == "cpu" and compiler() is None:
        return False, "there is no C++ compiler (see `bessemer doctor`)"
    speed = training_speed(shape, facts, plan.dtype, plan.recompute)
    step_s = step_time(shape, plan.batch_tokens, speed, facts).value
    if step_s is None:
        return True, "as nothing is known of this device's speed, and long runs gain most"
    # Predicted steps are those of compiled code.
    saved_s = plan.steps * step_s * _GAIN / (1.0 - _GAIN)
    told = f"it would save about {format_seconds(saved_s)} and costs about {format_seconds(_COMPILE_S)}"
    return saved_s > _PAYS * _COMPILE_S, told


def compiler() -> str | None:
    """The C++ compiler that torch calls on a CPU."""
    names = [os.environ.get("CXX"), "g++", "clang++", "c++"]
    return next((found for name in names if name and (found := shutil.which(name))), None)
