"""The order of work in a pipeline: what each rank does, stage by stage and micro-batch by micro-batch.

One source for the trainer, which runs it, and the planner, which times it.

    F  forward      B  backward of the input      W  backward of the weights
    1F1B and interleaved do W at once with B; a zero-bubble schedule keeps it for idle time.

1F1B: arXiv:2006.09503 (PipeDream-flush); interleaved: arXiv:2104.04473; ZBV: arXiv:2401.10241 and
arXiv:2405.15362. ZBV is made by simulation: a rank that is free takes the most urgent work that is ready,
within its limit of activations, so any number of micro-batches has an order, and what was simulated cannot
wait in a circle. It is made for how long passes last (formulas/passes.py): the papers' order, for equal ones,
idles 18 to 50 % of the work where B is 1.4 to 3 times as long as W, one made for that 4 to 5 %, 1F1B 11 %
(8 ranks, 64 micro-batches).
"""

from functools import cache
from typing import Literal, NamedTuple

from bessemer.formulas.layout import V_SHAPED, Layout

Kind = Literal["F", "B", "W"]


class Action(NamedTuple):
    kind: Kind
    stage: int
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.kind}{self.stage}.{self.micro_batch}"


Order = list[list[Action]]  # by rank of the pipeline


class Lengths(NamedTuple):
    """How long passes of a stage last, in any one unit."""

    forward: int
    backward: int
    weight: int


EQUAL = Lengths(1, 1, 1)


@cache
def pipeline_order(layout: Layout, micro_batches: int, lengths: Lengths = EQUAL) -> Order:
    """Every rank's work of one step; not to be changed, as it is made once.

    lengths: that a zero-bubble schedule is made for; to others they are nothing.
    """
    if splits_backward(layout):
        return _Simulation(layout, micro_batches, lengths).run()
    return [_one_forward_one_backward(layout, rank, micro_batches) for rank in range(layout.pipeline)]


def rank_order(layout: Layout, micro_batches: int, rank: int, lengths: Lengths = EQUAL) -> list[Action]:
    """One rank's work of a step, without that of the others where it does not hang on theirs."""
    if splits_backward(layout):
        return pipeline_order(layout, micro_batches, lengths)[rank]
    return _one_forward_one_backward(layout, rank, micro_batches)


def forward_order(layout: Layout, micro_batches: int) -> Order:
    """Without gradients: micro-batch by micro-batch, stage by stage."""
    return [
        [Action("F", stage, number) for number in range(micro_batches) for stage in layout.stages_of(rank)]
        for rank in range(layout.pipeline)
    ]


def most_in_flight(order: list[Action]) -> int:
    """Micro-batches (of one stage) whose activations a rank holds at once, at the worst."""
    held, most = 0, 0
    for action in order:
        held += (action.kind == "F") - (action.kind == "B")
        most = max(most, held)
    return most


def splits_backward(layout: Layout) -> bool:
    return layout.pipeline > 1 and layout.schedule in V_SHAPED


def _one_forward_one_backward(layout: Layout, rank: int, micro_batches: int) -> list[Action]:
    """Some forwards to fill the pipeline, then one of each in turn. With several stages on a rank,
    micro-batches go in groups of as many as there are ranks, each group through all of its stages."""
    ranks, stages = layout.pipeline, layout.stages_of(rank)
    groups = [range(first, min(first + ranks, micro_batches)) for first in range(0, micro_batches, ranks)]
    forwards = [Action("F", stage, number) for group in groups for stage in stages for number in group]
    backwards = [(stage, number) for group in groups for stage in reversed(stages) for number in group]
    warm_up = ranks - 1 - rank
    if len(stages) > 1:
        warm_up = 2 * warm_up + (len(stages) - 1) * ranks
    warm_up = min(warm_up, len(forwards))
    order = forwards[:warm_up]
    for place, (stage, number) in enumerate(backwards):
        if place + warm_up < len(forwards):
            order.append(forwards[place + warm_up])
        order += [Action("B", stage, number), Action("W", stage, number)]
    return order


class _Simulation:
    """All ranks, from one moment at which something is done to the next.

    A stage takes its micro-batches in turn, so how many it has done of each kind says what is done. What a
    rank chooses from is what was done before.
    """

    def __init__(self, layout: Layout, micro_batches: int, lengths: Lengths) -> None:
        self.layout, self.micro_batches = layout, micro_batches
        self.lasts: dict[Kind, int] = {"F": lengths.forward, "B": lengths.backward, "W": lengths.weight}
        # Where passes are not equally long, ranks full of first halves wait for each other.
        self.kept_free = int(lengths != EQUAL)
        self.stages = [layout.stages_of(rank) for rank in range(layout.pipeline)]
        self.last = layout.num_stages - 1
        self.orders: Order = [[] for _ in range(layout.pipeline)]
        self.forwards = [0] * layout.num_stages  # done, by stage
        self.backwards = [0] * layout.num_stages
        self.weights = [0] * layout.num_stages
        self.held = [0] * layout.pipeline  # forwards whose weights wait, over all stages of a rank

    def run(self) -> Order:
        left, now = 3 * self.layout.num_stages * self.micro_batches, 0
        doing: dict[int, tuple[int, Action]] = {}  # by rank: until when, what
        while left:
            for rank in range(self.layout.pipeline):
                if rank not in doing and (action := self._choose(rank)) is not None:
                    doing[rank] = now + self.lasts[action.kind], action
            assert doing, f"{self.layout} with {self.micro_batches} micro-batches waits for itself"
            now = min(until for until, _ in doing.values())
            for rank in [rank for rank, (until, _) in doing.items() if until == now]:
                self._do(rank, doing.pop(rank)[1])
                left -= 1
        return self.orders

    def _choose(self, rank: int) -> Action | None:
        """Backward first, as others wait for it; then forward while there is room; then waiting weights.

        Of two stages the one that is behind goes back first, and the deeper one forward, as it is nearer to
        its backward pass. For that one a place may be kept free.
        """
        first, second = self.stages[rank]  # in the order of a forward pass
        forwards, backwards, weights = self.forwards, self.backwards, self.weights
        early, late = self._can_go_back(first), self._can_go_back(second)
        if early or late:
            stage = first if not late or (early and backwards[first] < backwards[second]) else second
            return Action("B", stage, backwards[stage])
        room = 2 * self.layout.pipeline - self.held[rank]  # as many as 1F1B's first rank, in halves of stages
        for stage, beside in ((second, 0), (first, self.kept_free)):
            if room > beside and self._can_go_forward(stage):
                return Action("F", stage, forwards[stage])
        early, late = weights[first] < backwards[first], weights[second] < backwards[second]
        if not early and not late:
            return None
        stage = second if not early or (late and weights[second] < weights[first]) else first
        return Action("W", stage, weights[stage])

    def _can_go_forward(self, stage: int) -> bool:
        before = self.forwards[stage - 1] if stage else self.micro_batches
        return self.forwards[stage] < before

    def _can_go_back(self, stage: int) -> bool:
        number = self.backwards[stage]
        after = self.forwards[stage] if stage == self.last else self.backwards[stage + 1]
        return number < after and number < self.forwards[stage]

    def _do(self, rank: int, action: Action) -> None:
        done = {"F": self.forwards, "B": self.backwards, "W": self.weights}[action.kind]
        done[action.stage] += 1
        self.orders[rank].append(action)
        self.held[rank] += (action.kind == "F") - (action.kind == "W")
