"""The time of a pipelined step: in closed form for many layouts, by running the schedule for one.

Closed form: micro-batches x the busiest rank, and the time in which it waits for the pipeline to fill and
empty: one pass through the other ranks, over the stages of a rank for interleaved schedules. Zero-bubble
schedules fill that time with weight gradients; what our orders leave of it was fitted to the simulation (2 to
16 ranks and as many micro-batches or more: a step within 3 % on average). The simulation runs each rank's own
order (`formulas/schedule.py`), the one that the trainer runs; a rank waits for what it needs, and for a send.
Source: arXiv:2104.04473 (interleaved), arXiv:2401.10241 and 2405.15362 (zero bubble), 2412.19437 (DualPipe).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

import numpy as np

from bessemer.formulas.layout import SCHEDULES, Layout
from bessemer.formulas.schedule import EQUAL, Lengths, pipeline_order, splits_backward

Column = Any
ZBV, DUALPIPEV = SCHEDULES.index("zbv"), SCHEDULES.index("dualpipev")


def stage_layers(
    layers: Column, head_layers: Column, pipeline: Column, balanced: Column
) -> tuple[Column, Column]:
    """(layers of the fullest ranks, layers of the last rank); `head_layers`: the head's work in layers.

    Even where it divides, else the last rank has what remains; `balanced`: as light as can be, head counted.
    """
    even = np.ceil(layers / pipeline)
    light = np.maximum(np.ceil((layers + head_layers) / pipeline - 1e-9), even)
    # A layer less on the others, and so many more before the head, where that is lighter; the last has one.
    others = np.maximum(pipeline - 1.0, 1.0)
    less = np.maximum(light - 1.0, even)
    light = np.where(layers - others * less + head_layers < light, less, light)
    light = np.maximum(np.minimum(light, np.ceil((layers - 1.0) / others)), even)
    most = np.where((balanced > 0) & (pipeline > 1), light, even)
    least = np.where((balanced > 0) & (layers >= pipeline), 1.0, 0.0)
    return most, np.maximum(layers - (pipeline - 1.0) * most, least)


def v_shaped_layers(layers: Column, head_layers: Column, pipeline: Column) -> tuple[Column, Column]:
    """(layers of the first rank, which has the head, layers of the fullest other one) of a V of two balanced
    stages on each rank."""
    most, _ = stage_layers(layers, head_layers, 2.0 * pipeline, 1.0)
    last = np.maximum(np.floor(most - head_layers + 1e-9), 1.0)
    short, longer = np.divmod(layers - last, 2.0 * pipeline - 1.0)  # the first so many have a layer more
    return short + (longer > 0) + last, 2.0 * short + (longer > 1) + (longer > pipeline)


@dataclass(frozen=True)
class Stage:
    """The busiest rank of a pipeline, and a micro-batch's way through all of them."""

    layers: Column
    heads: Column
    busiest_s: Column
    usual_s: Column  # the fullest of those without the head
    whole_s: Column


@dataclass(frozen=True)
class Passes:
    """Shares of a layer's time, and whether the order of ZBV is made for equal ones (formulas/passes.py)."""

    forward: Column
    backward: Column  # of the input
    weight: Column
    equal_order: Column

    @classmethod
    def of(cls, matmul: Column, again: Column, products: Column, waits: Column, equal: Column) -> "Passes":
        """matmul, again: shares of matmuls, and of what is run again. products: of a matmul, three with its
        weights' gradient; waits: share of the matmuls of which that one may wait."""
        forward = matmul / products + (1.0 - matmul - again) / 3.0
        weight = waits * matmul / 3.0
        return cls(forward, 1.0 - forward - weight, weight, equal)

    @property
    def lockstep(self) -> Column:
        """How much longer than its work a micro-batch of ZBV is once the pipeline is full: an order for equal
        passes waits for the longest, others where a backward pass is longer than all else."""
        beyond = np.maximum(self.backward - self.forward - self.weight, 0.0)
        return np.where(self.equal_order, 3.0 * self.backward - 1.0, 0.8 * beyond)


ALIKE = Passes(1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0, True)


def bubble_s(
    others_s: Column,
    pipeline: Column,
    interleave: Column,
    schedule: Column,
    micro_batches: Column,
    passes: Passes = ALIKE,
) -> Column:
    """Seconds that the busiest rank waits in a step. `others_s`: one micro-batch through the other ranks.

    Exact for 1F1B and interleaved with alike stages (with fewer micro-batches than ranks each turn through
    the stages waits for the pipeline's length); for the V-shaped schedules what our own orders leave:
    their filling, half a forward pass through each other rank (the papers do not count it, as the next
    step may fill it; ours waits for the gradient norm), or more where they are made for other passes than
    equal ones. One micro-batch alone goes forward and back. Of ZBV `Passes.lockstep` is not in it.
    """
    turns, others = np.maximum(interleave, 1.0), np.maximum(pipeline - 1.0, 1.0)
    missing = np.maximum(pipeline - micro_batches, 0.0) / others
    usual = others_s / turns * (1.0 + (turns - 1.0) * missing)
    # The last group of micro-batches waits as if it were as many as there are ranks.
    short = np.where(micro_batches > pipeline, -micro_batches % pipeline / pipeline, 0.0)
    longer = np.maximum(0.6 * passes.forward + 0.5 * passes.weight, passes.backward - passes.weight)
    filling = np.where(passes.equal_order | (schedule == DUALPIPEV), 1.0 / 6.0, longer * (1.0 + 1.2 * short))
    alone = np.where(schedule == DUALPIPEV, 2.0 / 3.0, passes.forward + passes.backward)
    filling = filling + missing * (alone - filling)
    waits = np.where((schedule == ZBV) | (schedule == DUALPIPEV), others_s * filling, usual)
    return np.where(pipeline > 1.0, waits, 0.0)


def simulate(
    layout: Layout,
    micro_batches: int,
    forward_s: Sequence[float],
    backward_s: Sequence[float],
    weight_s: Sequence[float],
    send_s: float = 0.0,
    lengths: Lengths = EQUAL,
) -> float:
    """Seconds from the first forward to the last backward, over all ranks.

    `forward_s`, `backward_s` (of inputs), `weight_s`: by stage, of one micro-batch. `send_s`: from one rank
    to another; between stages of one rank it costs nothing. `lengths`: that the order is made for.
    """
    # A W that is one with its B comes at once after it: no step of its own, and the neighbour waits for both.
    whole_s = [sum(both) for both in zip(backward_s, weight_s, strict=True)]
    splits = splits_backward(layout)
    durations = [*forward_s, *(backward_s if splits else whole_s), *weight_s]
    steps = _in_turn(layout, micro_batches, lengths if splits else EQUAL)
    done = [0.0] * (len(steps) + 1)  # the last: what needs nothing
    clocks = [0.0] * layout.pipeline
    for number, (rank, what, needed, travels) in enumerate(steps):
        clock, ready = clocks[rank], done[needed] + (send_s if travels else 0.0)
        done[number] = clocks[rank] = (ready if ready > clock else clock) + durations[what]
    return max(clocks)


# (rank, kind and stage, number of the step that it needs or -1, whether that is sent by another rank)
_Step = tuple[int, int, int, bool]


@cache
def _in_turn(layout: Layout, micro_batches: int, lengths: Lengths) -> list[_Step]:
    """A schedule in an order in which everything comes after what it needs.

    Made once: a search plays one schedule with the times of many layouts. Kind and stage are one number: all
    stages' forwards, then their backwards, then their weights.
    """
    stages, needs = layout.num_stages, _needs(layout)
    begins = {"F": 0, "B": stages, "W": 2 * stages}
    if not splits_backward(layout):
        del begins["W"]
    waiting = [
        [(begins[kind] + stage, number) for kind, stage, number in actions if kind in begins]
        for actions in pipeline_order(layout, micro_batches, lengths)
    ]
    done = [[-1] * micro_batches for _ in range(3 * stages)]  # number of the step that did it
    steps: list[_Step] = []
    places, total = [0] * layout.pipeline, sum(map(len, waiting))
    while len(steps) < total:
        before = len(steps)
        for rank, actions in enumerate(waiting):
            for what, number in islice(actions, places[rank], None):
                needed, travels = needs[what]
                step = -1 if needed is None else done[needed][number]
                if step < 0 and needed is not None:
                    break
                done[what][number] = len(steps)
                steps.append((rank, what, step, travels))
                places[rank] += 1
        assert len(steps) > before, f"{layout} with {micro_batches} micro-batches waits for itself"
    return steps


def _needs(layout: Layout) -> list[tuple[int | None, bool]]:
    """By kind and stage: what must be done before, and whether another rank sends it."""
    stages = layout.num_stages
    forwards = [(stage - 1 if stage else None, stage) for stage in range(stages)]
    backwards = [(stages + stage + 1 if stage + 1 < stages else stage, stage) for stage in range(stages)]
    weights = [(stages + stage, stage) for stage in range(stages)]
    ranks = [layout.rank_of_stage(stage) for stage in range(stages)]
    return [
        (before, before is not None and ranks[before % stages] != ranks[stage])
        for before, stage in (*forwards, *backwards, *weights)
    ]
