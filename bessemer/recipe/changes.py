"""What a recipe may change under a run that exists.

Execution keys may change with any attempt, `steps` or `tokens` of a stage may be raised, the name is
free; anything else would make a different model under the same name, and needs a fork. Each change
that is allowed is returned, so that it can be told as an event. The data mixture may change: from the
step on that the run goes on from (data/mixture.py).
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from bessemer.errors import RecipeError
from bessemer.recipe.keys import leaves
from bessemer.recipe.schema import Recipe
from bessemer.recipe.write import toml_value
from bessemer.units import parse_count

_FREE = ("execution", "nothing", "mixture")
_LENGTH = ("pretrain.steps", "pretrain.tokens")
_STAGES = ("pretrain", "finetune")


@dataclass(frozen=True)
class Change:
    key: str
    old: Any  # None: not there
    new: Any
    affects: str


def differences(old: Recipe, new: Recipe) -> list[Change]:
    """Every key whose value differs, in the schema's order."""
    before = {key.path: key for key in leaves(old)}
    after = {key.path: key for key in leaves(new)}
    changes = []
    for path in [*before, *(path for path in after if path not in before)]:
        one, other = before.get(path), after.get(path)
        if one is None or other is None or one.value != other.value:
            known = other or one
            assert known is not None
            values = (one.value if one else None, other.value if other else None)
            changes.append(Change(path, *values, known.affects))
    return changes


def check_change(
    old: Recipe,
    new: Recipe,
    fork_command: str,
    *,
    stages: Collection[str] = _STAGES,
    planned_steps: int | None = None,
    planned_tokens: int | None = None,
) -> list[Change]:
    """The changes, all of them allowed, or RecipeError for the first that is not.

    stages: those that have begun; the keys of one that has not are free.
    planned_steps, planned_tokens: what the old recipe came to, needed where it said "auto".
    """
    waiting = tuple(f"{stage}." for stage in _STAGES if stage not in stages)
    changes = differences(old, new)
    for change in changes:
        own_stage = change.key if "." in change.key else f"{change.key}."
        if change.affects in _FREE or own_stage.startswith(waiting):
            continue
        if change.key in _LENGTH and _is_longer(old, new, planned_steps, planned_tokens):
            continue
        raise _refused(change, fork_command)
    return changes


def _is_longer(old: Recipe, new: Recipe, planned_steps: int | None, planned_tokens: int | None) -> bool:
    """Whether the new length of pre-training is known to be no shorter than the old one."""
    old_steps, old_tokens = _length(old)
    new_steps, new_tokens = _length(new)
    given = [
        before is not None and after >= before
        for before, after in (
            (old_steps or planned_steps, new_steps),
            (old_tokens or planned_tokens, new_tokens),
        )
        if after is not None
    ]
    return bool(given) and all(given)


def _length(recipe: Recipe) -> tuple[int | None, int | None]:
    steps, tokens = recipe.pretrain.steps, recipe.pretrain.tokens
    count = parse_count(tokens) if isinstance(tokens, str) else tokens
    return (steps if isinstance(steps, int) else None), count


def _refused(change: Change, fork_command: str) -> RecipeError:
    longer = change.key in _LENGTH
    plain = isinstance(change.new, int | float | str)
    told = f"--set {change.key}=" in fork_command
    setting = f" --set {change.key}={toml_value(change.new)}" if plain and not longer and not told else ""
    if change.key.startswith("finetune."):
        fork_command = fork_command.replace(" pretrain ", " finetune ", 1)
    fork = f"or begin a new run that goes on from this one: `{fork_command}{setting}`"
    if change.affects == "model" or change.key.startswith("tokenizer."):  # nothing to go on from
        fork = f"or begin a new run of its own: `{fork_command.partition(' --from ')[0]} --run DIR{setting}`"
    return RecipeError(
        f"the recipe changed under this run: `{change.key}`",
        found=f"{_shown(change.old)} in the run, {_shown(change.new)} now",
        wanted="a longer run" if longer else f"the same value: it affects {change.affects}",
        fix=f"set it back, {fork}",
    )


def _shown(value: Any) -> str:
    return "nothing" if value is None else toml_value(value)
