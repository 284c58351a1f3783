"""The time of a pipelined step: in closed form for many layouts, by running the schedule for one.

Closed form: micro-batches x the busiest rank, and the time in which it waits for the pipeline to fill and
empty: one pass through the other ranks, over the stages of a rank for interleaved schedules. Zero-bubble
schedules fill that time with weight gradients. The simulation runs each rank's own order
(`formulas/schedule.py`), the one that the trainer runs; a rank waits for what it needs, and for a send.
Source: arXiv:2104.04473 (interleaved), arXiv:2401.10241 and 2405.15362 (zero bubble), 2412.19437 (DualPipe).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from bessemer.formulas.layout import SCHEDULES, Layout
from bessemer.formulas.schedule import pipeline_order, splits_backward

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
    most = np.where((balanced > 0) & (pipeline > 1), light, even)
    return most, np.maximum(layers - (pipeline - 1.0) * most, 0.0)


def bubble_s(others_s: Column, pipeline: Column, interleave: Column, schedule: Column) -> Column:
    """Seconds that the busiest rank waits in a step. `others_s`: one micro-batch through the other ranks.

    Exact for 1F1B and interleaved with alike stages; for the V-shaped schedules what our own orders leave:
    their filling, half a forward pass through each other rank (the papers do not count it, as the next
    step may fill it; ours waits for the gradient norm).
    """
    usual = others_s / np.maximum(interleave, 1.0)
    waits = np.where((schedule == ZBV) | (schedule == DUALPIPEV), others_s / 6.0, usual)
    return np.where(pipeline > 1.0, waits, 0.0)


def simulate(
    layout: Layout,
    micro_batches: int,
    forward_s: Sequence[float],
    backward_s: Sequence[float],
    weight_s: Sequence[float],
    send_s: float = 0.0,
) -> float:
    """Seconds from the first forward to the last backward, over all ranks.

    `forward_s`, `backward_s` (of inputs), `weight_s`: by stage, of one micro-batch. `send_s`: from one rank
    to another; between stages of one rank it costs nothing.
    """
    work = _in_turn(layout, micro_batches)
    seconds = {"F": forward_s, "B": backward_s, "W": weight_s}
    durations = [seconds[kind][stage] for kind, stage in work.kinds]
    done = [0.0] * (len(work.steps) + 1)  # the last: what needs nothing
    clocks = [0.0] * layout.pipeline
    for number, (rank, what, needed, travels) in enumerate(work.steps):
        clock, ready = clocks[rank], done[needed] + (send_s if travels else 0.0)
        done[number] = clocks[rank] = (ready if ready > clock else clock) + durations[what]
    return max(clocks)


@dataclass(frozen=True)
class _Work:
    """A schedule in an order in which everything comes after what it needs."""

    kinds: list[tuple[str, int]]  # (kind, stage)
    # (rank, place in `kinds`, number of the step that it needs or -1, whether that is sent by another rank)
    steps: list[tuple[int, int, int, bool]]


@cache
def _in_turn(layout: Layout, micro_batches: int) -> _Work:
    """Made once: a search plays one schedule with the times of many layouts."""
    order, last = pipeline_order(layout, micro_batches), layout.num_stages - 1
    joined = not splits_backward(layout)
    rank_of = {stage: rank for rank in range(layout.pipeline) for stage in layout.stages_of(rank)}
    kinds = [(kind, stage) for kind in "FBW" for stage in range(layout.num_stages)]
    place_of = {kind: place for place, kind in enumerate(kinds)}
    numbers: dict[tuple[str, int, int], int] = {}
    steps: list[tuple[int, int, int, bool]] = []
    places, total = [0] * layout.pipeline, sum(map(len, order))
    while len(steps) < total:
        before = len(steps)
        for rank, actions in enumerate(order):
            place = places[rank]
            while place < len(actions):
                kind, stage, number = actions[place]
                needed = _needed(kind, stage, number, last)
                if needed is not None and needed not in numbers:
                    break
                numbers[kind, stage, number] = len(steps)
                if joined and kind == "W":  # one with B: the neighbour waits for both
                    numbers["B", stage, number] = len(steps)
                travels = needed is not None and rank_of[needed[1]] != rank
                needs = -1 if needed is None else numbers[needed]
                steps.append((rank, place_of[kind, stage], needs, travels))
                place += 1
            places[rank] = place
        assert len(steps) > before, f"{layout} with {micro_batches} micro-batches waits for itself"
    return _Work(kinds, steps)


def _needed(kind: str, stage: int, micro_batch: int, last: int) -> tuple[str, int, int] | None:
    """What must be done before."""
    if kind == "W":
        return "B", stage, micro_batch
    if kind == "F":
        return ("F", stage - 1, micro_batch) if stage else None
    return ("F", stage, micro_batch) if stage == last else ("B", stage + 1, micro_batch)
