"""When a rank of a pipeline may be fullest: how many micro-batches it holds, and which gradients it has then.

Walked through in the order of its work (formulas/schedule.py). A micro-batch is held from its forward pass
until its weights have their gradient: a backward pass that leaves them for later keeps what they need, the
inputs and output gradients of its matmuls, about as much. Of a stage that nothing was taken back of yet in
this step there is no gradient: a zero-bubble schedule is fullest before all of them are there.
Blocks that are recomputed keep much more from then on, which is counted: formulas/memory/waiting.py.
"""

from dataclasses import dataclass
from functools import cache
from operator import le
from typing import Literal

from bessemer.formulas.layout import Layout
from bessemer.formulas.schedule import EQUAL, Lengths, rank_order, splits_backward


@dataclass(frozen=True)
class Moment:
    """At an action on `stage`: its forward pass, or the beginning of its backward pass."""

    kind: Literal["F", "B"]
    stage: int
    held: tuple[tuple[int, int], ...]  # (stage, micro-batches) of each of the rank's stages
    begun: frozenset[int]  # stages whose weights have gradients
    # Of `held`, by stage, those whose weights wait, the one that is taken back among them.
    waiting: tuple[int, ...]


# Micro-batches held, and those of them whose weights wait, by stage; stages with gradients.
_Counts = tuple[tuple[int, ...], tuple[int, ...], frozenset[int]]


def rank_moments(
    layout: Layout, pipeline_rank: int, micro_batches: int, lengths: Lengths = EQUAL
) -> tuple[Moment, ...]:
    """None of which holds less than another one of the same kind and stage in every way.

    lengths: of passes, that the order is made for.
    """
    if layout.pipeline == 1:
        begun = frozenset({0})  # the first pass makes them, as soon as its last block is done
        return Moment("F", 0, ((0, 1),), begun, (0,)), Moment("B", 0, ((0, 1),), begun, (0,))
    # Only these words decide the order; without the others, layouts that differ in them share it.
    plain = Layout(pipeline=layout.pipeline, schedule=layout.schedule, interleave=layout.interleave)
    # More micro-batches than these repeat the same, and an order of thousands takes a second to make.
    lengths = lengths if splits_backward(layout) else EQUAL
    return _moments(plain, min(micro_batches, 4 * layout.pipeline), pipeline_rank, lengths)


@cache
def _moments(layout: Layout, micro_batches: int, pipeline_rank: int, lengths: Lengths) -> tuple[Moment, ...]:
    stages = layout.stages_of(pipeline_rank)
    held, waiting = dict.fromkeys(stages, 0), dict.fromkeys(stages, 0)
    splits = splits_backward(layout)
    begun: frozenset[int] = frozenset()
    seen: dict[tuple[Literal["F", "B"], int], dict[_Counts, None]] = {}
    for kind, stage, _ in rank_order(layout, micro_batches, pipeline_rank, lengths):
        if kind == "W":
            held[stage] -= 1
            waiting[stage] -= splits
            if stage not in begun:
                begun |= {stage}
            continue
        held[stage] += kind == "F"
        waiting[stage] += splits and kind == "B"
        seen.setdefault((kind, stage), {})[tuple(held.values()), tuple(waiting.values()), begun] = None
    return tuple(
        Moment(kind, stage, tuple(zip(stages, counts, strict=True)), made, wait)
        for (kind, stage), alike in seen.items()
        for counts, wait, made in _fullest(list(alike))
    )


def _fullest(alike: list[_Counts]) -> list[_Counts]:
    """Those that hold more of something than any other."""
    # What holds more in all is never less than what follows: each is held against those that stay alone.
    stay: list[_Counts] = []
    for one in sorted(alike, key=lambda one: (-sum(one[0]), -sum(one[1]), -len(one[2]))):
        if not any(_is_less(one, other) for other in stay):
            stay.append(one)
    return [one for one in alike if one in stay]


def _is_less(one: _Counts, other: _Counts) -> bool:
    """Whether it holds no more of anything."""
    return one[2] <= other[2] and all(map(le, one[0], other[0])) and all(map(le, one[1], other[1]))
