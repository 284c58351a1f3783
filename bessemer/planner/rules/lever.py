"""Levers that a recipe asks for, checked before a start: those without effect here, and those that cannot be.

Asked twice: before anything is made, with the layout that the recipe names (train/levers.py: check_here), and
with that of the plan (planner/limits.py). Whether a board takes a limit is asked of the board
(train/levers.py).
"""

from bessemer.energy.levers.governor import Governor
from bessemer.errors import RecipeError, RefusedError
from bessemer.formulas.layout import Layout
from bessemer.planner.machine.facts import Facts
from bessemer.recipe.schema import Recipe


def check_levers(recipe: Recipe, layout: Layout, facts: Facts, world: int | None) -> None:
    """world: as in limits.check_start."""
    energy = recipe.energy
    if energy.power_limit != "off" and facts.kind == "cpu":
        raise RecipeError(
            "energy.power_limit has no effect here",
            found=f"energy.power_limit = {energy.power_limit!r} on {facts.device}",
            wanted="an accelerator: it limits the power of a board",
            fix='set energy.power_limit="off"; on a CPU energy.governor and energy.threads are the levers',
        )
    if energy.governor is not None:
        Governor().check(energy.governor)
    ranks = layout.world if world is None else 1  # of other launchers: who knows how many share this machine
    most = max(1, facts.cores // ranks)
    if energy.threads is not None and energy.threads > most:
        raise RefusedError(
            "more threads than this machine has cores",
            found=f"energy.threads = {energy.threads} for each of {ranks} rank{'s' * (ranks > 1)}, "
            f"on {facts.cores} cores",
            wanted=f"at most {most}: beyond that they wait for each other",
            fix=f"set energy.threads={most}, or remove it",
        )
