"""The command as one of many processes, which torchrun or Slurm have started with the same words.

They share one stdout, which takes one document, so that only the first one answers there.
"""

import os

from bessemer.errors import RecipeError
from bessemer.launch.world import world_of_environment


def check_alone(verb: str) -> None:
    """Of a verb that cannot be their common work. RecipeError on the first of several; the others end
    silently, with its exit code."""
    world = world_of_environment()
    if world is None or world.size == 1:
        return
    error = RecipeError(
        f"`bessemer {verb}` is the work of one process",
        found=f"{world.size} processes that torchrun or Slurm started",
        wanted="one process; `bessemer pretrain` and `bessemer finetune` can be many",
        fix="call it alone: where a layout has several ranks, it starts their processes itself",
    )
    if world.rank > 0:
        raise SystemExit(error.exit_code)
    raise error


def is_first() -> bool:
    """Whether stdout is this process's. world_of_environment does not tell it: its own error may be the one
    to be answered."""
    return (os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0") == "0"
