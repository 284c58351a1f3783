"""What a pair of answers teaches: its loss, from the log-probabilities of the chosen and the rejected one.

h is the log-ratio of the model to the reference, s a summed log-probability, m its mean over the tokens:

    dpo      -(1 - e) log sigmoid(b (h+ - h-)) - e log sigmoid(-b (h+ - h-))    arXiv:2305.18290, e: smoothing
    ipo      (h+ / tokens - h- / tokens - 1 / 2b)²                              arXiv:2310.12036
    orpo     -m+ - b log sigmoid(log odds(m+) - log odds(m-))                   arXiv:2403.07691
    simpo    -log sigmoid(b (m+ - m-) - margin)                                 arXiv:2405.14734
    reward   -log sigmoid(r+ - r-)                                              arXiv:2203.02155

As in TRL 1.16, IPO divides each log-ratio by its tokens (its authors confirmed that), and ORPO and SimPO take
means. One thing is ours: ORPO's first term is the mean of one pair's answer, as in its paper; TRL adds the
prompt to it, and takes the mean of all tokens of a micro-batch, so that the loss depends on how that is cut.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from bessemer.formulas.objective import Objective
from bessemer.model.token_log_probs import log_rest


@dataclass(frozen=True)
class Answers:
    """One side of some pairs, fp32, of any shape: all chosen answers, or all rejected ones."""

    score: Tensor  # summed log-probability of the targets [nat]; of a reward model its reward
    tokens: Tensor  # number of targets
    reference: Tensor | None = None  # score of the reference model, where the loss wants one

    @property
    def mean(self) -> Tensor:
        return self.score / self.tokens.clamp(min=1)

    @property
    def ratio(self) -> Tensor:
        """Log-ratio to the reference."""
        assert self.reference is not None, "no log-probabilities of a reference"
        return self.score - self.reference


def pair_losses(objective: Objective, chosen: Answers, rejected: Answers) -> Tensor:
    """Of each pair."""
    if objective.kind == "ipo":
        return (pair_margins(objective, chosen, rejected) - 0.5 / objective.beta).square()
    margins = pair_margins(objective, chosen, rejected)
    if objective.kind == "orpo":
        odds = margins - (log_rest(chosen.mean) - log_rest(rejected.mean))
        return -chosen.mean - objective.beta * logsigmoid(odds)
    if objective.kind == "simpo":
        return -logsigmoid(margins - objective.margin)
    smoothing = objective.smoothing
    return -(1.0 - smoothing) * logsigmoid(margins) - smoothing * logsigmoid(-margins)


def pair_margins(objective: Objective, chosen: Answers, rejected: Answers) -> Tensor:
    """By how much each chosen answer is preferred; above 0 the pair is told apart rightly."""
    kind = objective.kind
    if kind == "dpo":
        return objective.beta * (chosen.ratio - rejected.ratio)
    if kind == "ipo":
        return chosen.ratio / chosen.tokens.clamp(min=1) - rejected.ratio / rejected.tokens.clamp(min=1)
    if kind == "reward":
        return chosen.score - rejected.score
    assert kind in ("orpo", "simpo"), kind
    return (objective.beta if kind == "simpo" else 1.0) * (chosen.mean - rejected.mean)
