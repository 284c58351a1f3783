"""The order of work in a pipeline: what each rank does, stage by stage and micro-batch by micro-batch.

One source for the trainer, which runs it, and the planner, which times it.

    F  forward      B  backward of the input      W  backward of the weights
    1F1B and interleaved do W at once with B; a zero-bubble schedule keeps it for idle time.

1F1B: arXiv:2006.09503 (PipeDream-flush); interleaved: arXiv:2104.04473; ZBV: arXiv:2401.10241 and
arXiv:2405.15362. ZBV is made by simulation: at each unit of time a rank takes the most urgent work that
is ready, within its limit of activations, so any number of micro-batches has an order, and what was
simulated cannot wait in a circle.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

from bessemer.formulas.layout import V_SHAPED, Layout

Kind = Literal["F", "B", "W"]


@dataclass(frozen=True)
class Action:
    kind: Kind
    stage: int
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.kind}{self.stage}.{self.micro_batch}"


Order = list[list[Action]]  # by rank of the pipeline


@cache
def pipeline_order(layout: Layout, micro_batches: int) -> Order:
    """Every rank's work of one step; not to be changed, as it is made once."""
    if splits_backward(layout):
        return _Simulation(layout, micro_batches).run()
    return [_one_forward_one_backward(layout, rank, micro_batches) for rank in range(layout.pipeline)]


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
    turns = [(number, turn) for turn in range(len(stages)) for number in range(micro_batches)]
    turns.sort(key=lambda pair: (pair[0] // ranks, pair[1], pair[0]))
    forwards = [Action("F", stages[turn], number) for number, turn in turns]
    turns.sort(key=lambda pair: (pair[0] // ranks, -pair[1], pair[0]))
    backwards = [(stages[turn], number) for number, turn in turns]
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
    """All ranks in units of time in which each does one thing."""

    def __init__(self, layout: Layout, micro_batches: int) -> None:
        self.layout, self.micro_batches = layout, micro_batches
        self.done: set[Action] = set()
        self.orders: Order = [[] for _ in range(layout.pipeline)]
        stages = layout.num_stages
        self.waiting = {
            kind: [
                [Action(kind, stage, number) for number in range(micro_batches)] for stage in range(stages)
            ]
            for kind in ("F", "B", "W")
        }
        self.held = [0] * layout.pipeline  # forwards whose weights wait, over all stages of a rank

    def run(self) -> Order:
        total = 3 * self.layout.num_stages * self.micro_batches
        while sum(map(len, self.orders)) < total:
            chosen = [self._choose(rank) for rank in range(self.layout.pipeline)]
            assert any(chosen), f"{self.layout} with {self.micro_batches} micro-batches waits for itself"
            for rank, action in enumerate(chosen):
                if action is not None:
                    self._do(rank, action)
        return self.orders

    def _choose(self, rank: int) -> Action | None:
        """Backward first, as others wait for it; then forward while there is room; then waiting weights."""
        backward = self._ready("B", rank)
        if backward:
            return min(backward, key=lambda action: (action.micro_batch, -action.stage))
        forward = self._ready("F", rank)
        if forward and self.held[rank] < self._limit():
            return min(forward, key=self._urgency)
        weights = self._ready("W", rank)
        return min(weights, key=lambda action: action.micro_batch) if weights else None

    def _urgency(self, action: Action) -> tuple[int, int]:
        """The deeper stage is nearer to its backward, so it goes first."""
        return (-action.stage, action.micro_batch)

    def _limit(self) -> int:
        """Forwards that a rank may hold: as many as 1F1B's first rank, in stages of half the size."""
        return 2 * self.layout.pipeline

    def _ready(self, kind: str, rank: int) -> list[Action]:
        """The next of each of the rank's stages, where it can be done."""
        waiting = [self.waiting[kind][stage] for stage in self.layout.stages_of(rank)]
        return [actions[0] for actions in waiting if actions and self._is_ready(actions[0])]

    def _is_ready(self, action: Action) -> bool:
        stage, number = action.stage, action.micro_batch
        if action.kind == "F":
            return stage == 0 or Action("F", stage - 1, number) in self.done
        if action.kind == "W":
            return Action("B", stage, number) in self.done
        is_last = stage == self.layout.num_stages - 1
        return Action("F" if is_last else "B", stage if is_last else stage + 1, number) in self.done and (
            Action("F", stage, number) in self.done
        )

    def _do(self, rank: int, action: Action) -> None:
        self.waiting[action.kind][action.stage].remove(action)
        self.orders[rank].append(action)
        self.done.add(action)
        self.held[rank] += (action.kind == "F") - (action.kind == "W")
