"""When and what torch.compile compiles.

Each block by itself, as all blocks share one compiled code: the time to compile does not grow with
depth (8 layers: 17 s instead of 25 s for the whole model on two cores), and sharding wraps blocks anyway.
"""

import os
import shutil
import sys
from dataclasses import replace

import torch._dynamo

from bessemer.errors import RecipeError
from bessemer.formulas.shape import ModelShape
from bessemer.log import Console
from bessemer.model.decoder import Block, Decoder
from bessemer.model.moe import MoE
from bessemer.planner.facts import Facts
from bessemer.planner.plan import StagePlan
from bessemer.planner.predict import step_time, training_speed
from bessemer.train.stage import Stage, write
from bessemer.units import format_seconds

_COMPILE_S = 25.0  # blocks and loss, forward and backward, on two cores
_GAIN = 0.35  # of the eager step's time, at width 512 on a CPU
COMPILER_PACKAGE = "apt install g++, or dnf install gcc-c++"  # which bring gcc too
_PAYS = 1.5  # gain over cost, so that a close call stays eager


def compile_blocks(model: Decoder) -> None:
    # One process may train several stages (bessemer run), each with a micro-batch of its own. torch would
    # give up compiling after eight shapes, and run slowly, with other bits than a process of its own.
    torch._dynamo.config.recompile_limit = 256
    for block in model.model.layers.values():
        assert isinstance(block, Block)
        # How many rows each expert gets differs in every step, and code would be compiled for each way.
        part = block.self_attn if isinstance(block.feed_forward, MoE) else block
        part.compile(dynamic=False)


def check_compiled(plan: StagePlan, facts: Facts) -> None:
    """RecipeError where a stage is to be compiled and cannot be. Writes nothing."""
    if plan.compile is True:
        check_compiler(facts.kind)


def settle_compiled(stage: Stage, facts: Facts, console: Console) -> Stage:
    """ "auto" is decided once and kept: compiled and eager code differ in the last bits."""
    decided = stage.plan.compile
    if not isinstance(decided, bool):
        if stage.compiled is None:
            answer, reason = settle_compile(stage.plan, stage.shape, facts)
            console.line(f"compile: {'yes' if answer else 'no'}, {reason}")
            stage = replace(stage, compiled=answer)
        decided = bool(stage.compiled)
    stage = replace(stage, plan=replace(stage.plan, compile=decided))
    write(stage)
    return stage


def settle_compile(plan: StagePlan, shape: ModelShape, facts: Facts) -> tuple[bool, str]:
    """(whether "auto" means yes, why): there must be a compiler, and the run must be long enough."""
    if compiler(facts.kind) is None:
        return False, f"there is no {compiler_language(facts.kind)} compiler (see `bessemer doctor`)"
    speed = training_speed(shape, facts, plan.dtype, plan.recompute)
    step_s = step_time(shape, plan.batch_tokens, speed, facts).value
    if step_s is None:
        return True, "as nothing is known of this device's speed, and long runs gain most"
    # Predicted steps are those of compiled code.
    saved_s = plan.steps * step_s * _GAIN / (1.0 - _GAIN)
    told = f"it would save about {format_seconds(saved_s)} and costs about {format_seconds(_COMPILE_S)}"
    return saved_s > _PAYS * _COMPILE_S, told


def check_compiler(kind: str) -> None:
    """RecipeError where `compile = true` could not work. `kind`: of the device, as in Facts."""
    if compiler(kind) is None:
        raise RecipeError(
            f"compile = true needs a {compiler_language(kind)} compiler",
            found=f"no {' or '.join(_candidates(kind))} on the PATH",
            wanted="the compiler that torch.compile calls on this device",
            fix=f"install one ({COMPILER_PACKAGE}), name it in {_variable(kind)}, or set compile=false",
        )


def compiler(kind: str = "cpu") -> str | None:
    """The compiler that torch.compile calls: C++ for code on a CPU, C for what starts Triton's kernels.

    Only what they look for themselves: torch's inductor takes CXX or g++ (on macOS clang++), Triton CC or
    gcc or clang.
    """
    return next((found for name in _candidates(kind) if (found := shutil.which(name))), None)


def compiler_language(kind: str) -> str:
    return "C++" if kind == "cpu" else "C"


def _candidates(kind: str) -> list[str]:
    given = os.environ.get(_variable(kind))
    if given:  # then they take nothing else
        return [given]
    if kind == "cpu":
        return ["clang++" if sys.platform == "darwin" else "g++"]
    return ["gcc", "clang"]


def _variable(kind: str) -> str:
    return "CXX" if kind == "cpu" else "CC"
