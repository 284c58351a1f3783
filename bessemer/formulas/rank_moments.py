"""When a rank of a pipeline may be fullest: how many micro-batches it holds, and which gradients it has then.

Walked through in the order of its work (formulas/schedule.py). A micro-batch is held from its forward pass
until its weights have their gradient: a backward pass that leaves them for later keeps what they need, the
inputs and output gradients of its matmuls, about as much. Of a stage that nothing was taken back of yet in
this step there is no gradient: a zero-bubble schedule is fullest before all of them are there.
Not counted: blocks that are recomputed, whose matmuls' inputs such a schedule keeps until their turn.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

from bessemer.formulas.layout import Layout
from bessemer.formulas.schedule import pipeline_order


@dataclass(frozen=True)
class Moment:
    """At an action on `stage`: its forward pass, or the beginning of its backward pass."""

    kind: Literal["F", "B"]
    stage: int
    held: tuple[tuple[int, int], ...]  # (stage, micro-batches) of each of the rank's stages
    begun: frozenset[int]  # stages whose weights have gradients


def rank_moments(layout: Layout, pipeline_rank: int, micro_batches: int) -> tuple[Moment, ...]:
    """None of which holds less than another one of the same kind and stage in every way."""
    if layout.pipeline == 1:
        begun = frozenset({0})  # the first pass makes them, as soon as its last block is done
        return Moment("F", 0, ((0, 1),), begun), Moment("B", 0, ((0, 1),), begun)
    # Only these words decide the order; without the others, layouts that differ in them share it.
    plain = Layout(pipeline=layout.pipeline, schedule=layout.schedule, interleave=layout.interleave)
    # More micro-batches than these repeat the same, and an order of thousands takes a second to make.
    return _moments(plain, min(micro_batches, 4 * layout.pipeline), pipeline_rank)


@cache
def _moments(layout: Layout, micro_batches: int, pipeline_rank: int) -> tuple[Moment, ...]:
    held = dict.fromkeys(layout.stages_of(pipeline_rank), 0)
    begun: frozenset[int] = frozenset()
    seen: dict[tuple[str, int], dict[Moment, None]] = {}
    for action in pipeline_order(layout, micro_batches)[pipeline_rank]:
        held[action.stage] += action.kind == "F"
        if action.kind == "W":
            held[action.stage] -= 1
            begun |= {action.stage}
        else:
            alike = seen.setdefault((action.kind, action.stage), {})
            alike[Moment(action.kind, action.stage, tuple(held.items()), begun)] = None
    return tuple(
        one for alike in seen.values() for one in alike if not any(_is_less(one, other) for other in alike)
    )


def _is_less(one: Moment, other: Moment) -> bool:
    """Whether it holds no more of anything, and is not the same."""
    if one == other or (one.kind, one.stage) != (other.kind, other.stage) or not one.begun <= other.begun:
        return False
    return all(mine[1] <= its[1] for mine, its in zip(one.held, other.held, strict=True))
