"""When and what torch.compile compiles.

Each block by itself, as all blocks share one compiled code: the time to compile does not grow with
depth (8 layers: 17 s instead of 25 s for the whole model on two cores), and sharding wraps blocks anyway.
"""

from dataclasses import replace

import torch._dynamo

from bessemer.errors import RecipeError
from bessemer.formulas.shape import ModelShape
from bessemer.log import Console
from bessemer.measure.compiler import candidates, compiler, variable
from bessemer.model.decoder import Block, Decoder
from bessemer.model.moe import MoE
from bessemer.planner.compiling import compiler_language, will_compile
from bessemer.planner.machine.facts import Facts
from bessemer.planner.plan import StagePlan
from bessemer.train.stage import Stage, write

COMPILER_PACKAGE = "apt install g++, or dnf install gcc-c++"  # which bring gcc too


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
    """(whether "auto" means yes, why), by the compiler that is here now."""
    return will_compile(plan, shape, replace(facts, has_compiler=compiler(facts.kind) is not None))


def check_compiler(kind: str) -> None:
    """RecipeError where `compile = true` could not work. `kind`: of the device, as in Facts."""
    if compiler(kind) is None:
        raise RecipeError(
            f"compile = true needs a {compiler_language(kind)} compiler",
            found=f"no {' or '.join(candidates(kind))} on the PATH",
            wanted="the compiler that torch.compile calls on this device",
            fix=f"install one ({COMPILER_PACKAGE}), name it in {variable(kind)}, or set compile=false",
        )
