"""What a stage learns: which loss, over what it is averaged, and its settings. Part of the plan.

kind         a row of the data holds            the loss is a mean over
next_token   documents or examples              tokens with loss
dpo, ipo     pairs, and reference log-probs     pairs
orpo, simpo  pairs                              pairs
reward       pairs                              pairs
classify     texts                              texts (by the weight of their class)
distill      examples, teacher's top k          tokens with loss
grpo         sampled answers, advantages        tokens with loss
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bessemer.formulas.shape import ModelShape

PREFERENCES = ("dpo", "ipo", "orpo", "simpo", "reward")
WITH_REFERENCE = ("dpo", "ipo")
CHUNK_ANSWERS = 128  # sampled together, and lost together when the run is killed
ASKED_ROWS = 8  # of a forward pass in which a model is asked about answers


@dataclass(frozen=True)
class Rollouts:
    """Answers that the model gives itself, round by round: in each it answers some prompts with the weights
    of that moment, then takes `steps` steps on the answers."""

    rounds: int
    prompts: int  # of a round
    group_size: int  # answers to each prompt
    answer_tokens: int  # at most
    prompt_tokens: int  # at most: prompts that are longer are left out
    answers_per_step: int
    temperature: float = 1.0
    reward: str = ""  # grpo: exact, number, module:function

    @property
    def answers(self) -> int:
        """Of a round."""
        return self.prompts * self.group_size

    @property
    def steps(self) -> int:
        """Of a round; the last one takes what is left."""
        return -(-self.answers // self.answers_per_step)


@dataclass(frozen=True)
class Objective:
    kind: str = "next_token"
    beta: float = 0.1
    margin: float = 1.0  # simpo
    smoothing: float = 0.0  # dpo
    clip: float = 0.2  # grpo
    temperature: float = 1.0  # grpo: at which answers are drawn
    rollouts: Rollouts | None = None  # grpo, and distill on policy: None where the data is there before
    class_weights: tuple[float, ...] = ()  # classify, by label; empty: all 1
    labels: tuple[str, ...] = ()  # classify: names, by number
    asked: ModelShape | None = None  # who is asked about answers: GRPO's reference, the teacher
    asked_dtype: str | None = None  # that it computes in; None: as the stage

    @property
    def asks_origin(self) -> bool:
        """Whether the model that the stage began from is asked about its answers, at every attempt."""
        return self.kind == "grpo" and self.beta > 0.0

    @staticmethod
    def from_json(values: Mapping[str, Any] | None) -> "Objective":
        """None: a plan from before there were others."""
        given = dict(values or {})
        for name in ("class_weights", "labels"):
            if name in given:
                given[name] = tuple(given[name])
        if given.get("rollouts") is not None:
            given["rollouts"] = Rollouts(**given["rollouts"])
        if given.get("asked") is not None:
            given["asked"] = ModelShape.from_json(given["asked"])
        return Objective(**given)


NEXT_TOKEN = Objective()
