"""What a sampled answer is worth, by a function that can be checked.

exact             1 where it equals the expected one but for case, white space and a final full stop
number            1 where its last number is the expected one's last number
module:function   the user's own: (prompt, answer, expected) texts to a finite number. Of a file beside the
                  recipe, or of an installed package; it runs with the user's rights: only with --allow-code
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bessemer.data.clean.code import load_function
from bessemer.durable import write_json
from bessemer.errors import DataError
from bessemer.evaluate.text import REWARDS
from bessemer.rundir import read_object

SETTING = "finetune.reward_function"
_FILE = "reward.json"

Reward = Callable[[str, str, str], float]


@dataclass(frozen=True)
class _Own:
    name: str
    function: Callable[..., object]

    def __call__(self, prompt: str, answer: str, expected: str) -> float:
        try:
            value = float(self.function(prompt, answer, expected))  # type: ignore[arg-type]
        except (Exception, SystemExit) as error:
            raise self._wrong(f"{type(error).__name__}: {error}", answer) from error
        if not math.isfinite(value):
            raise self._wrong(str(value), answer)
        return value

    def _wrong(self, found: str, answer: str) -> DataError:
        return DataError(
            f"{SETTING}: {self.name} gave no reward",
            found=f"{found}, of the answer {answer[:60]!r}",
            wanted="a finite number",
            fix="mend the function: it gets prompt, answer and expected answer as texts",
        )


def check_reward(stage: Path, name: str, base: Path, *, allow_code: bool) -> dict[str, str] | None:
    """Where the function is, for `begin_reward`; None: it is ours. Writes nothing.

    RecipeError unless it may run. DataError where it is not the one that the stage began with.
    """
    if name in REWARDS:
        return None
    _, digest = load_function(SETTING, name, base, allowed=allow_code)
    noted = read_object(stage / _FILE)
    if noted is not None and noted["xxh3_128"] != digest:
        raise DataError(
            f"the file of {SETTING} changed under the run",
            found=f"{name} of hash {digest}",
            wanted=f"{noted['xxh3_128']}, which the answers so far were rewarded by",
            fix="put it back as it was, or begin a new run with --run DIR",
        )
    return {"name": name, "base": str(base.resolve()), "xxh3_128": digest}


def begin_reward(stage: Path, found: dict[str, str]) -> None:
    """Note it for every process of the stage."""
    write_json(stage / _FILE, found)


def reward_of(stage: Path, name: str) -> Reward:
    """Of a stage that has begun: whoever began it had the word that this code may run."""
    if name in REWARDS:
        compare = REWARDS[name]
        return lambda prompt, answer, expected: float(compare(answer, expected))
    noted = read_object(stage / _FILE)
    assert noted is not None, f"{stage} has not begun"
    function, _ = load_function(SETTING, name, Path(noted["base"]), allowed=True)
    return _Own(name, function)
