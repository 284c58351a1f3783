"""What a stage learns: which loss, over what it is averaged, and its settings. Part of the plan.

kind         a row of the data holds            the loss is a mean over
next_token   documents or examples              tokens with loss
dpo, ipo     pairs, and reference log-probs     pairs
orpo, simpo  pairs                              pairs
reward       pairs                              pairs
classify     texts                              texts (by the weight of their class)
distill      examples, teacher's top k          tokens with loss
grpo         sampled answers, advantages        answers
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PREFERENCES = ("dpo", "ipo", "orpo", "simpo", "reward")
WITH_REFERENCE = ("dpo", "ipo")


@dataclass(frozen=True)
class Objective:
    kind: str = "next_token"
    beta: float = 0.1
    margin: float = 1.0  # simpo
    smoothing: float = 0.0  # dpo
    clip: float = 0.2  # grpo
    class_weights: tuple[float, ...] = ()  # classify, by label; empty: all 1
    labels: tuple[str, ...] = ()  # classify: names, by number

    @staticmethod
    def from_json(values: Mapping[str, Any] | None) -> "Objective":
        """None: a plan from before there were others."""
        given = dict(values or {})
        for name in ("class_weights", "labels"):
            if name in given:
                given[name] = tuple(given[name])
        return Objective(**given)


NEXT_TOKEN = Objective()
