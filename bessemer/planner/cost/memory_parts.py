"""What the memory models of all stacks share: parts, layers of a pipeline rank, micro-batches on their way.

A rank's layers are those of its stages (several where the pipeline is interleaved or V-shaped). Where layers
do not divide into the stages, embedding and head count as a layer each, as Megatron-Core has it for models
that are trained so (Llama 3.1 405B: 126 layers in 128 places).
Source of the counts of micro-batches: formulas/schedule.py, of whose orders these are the peaks, in closed
form. A test compares them.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from bessemer.formulas.layout import SCHEDULES, V_SHAPED
from bessemer.formulas.parameters import num_dense_layers
from bessemer.formulas.shape import ModelShape
from bessemer.planner.cost.candidates import Candidates, Floats, Ints

_V_SHAPED = [SCHEDULES.index(name) for name in V_SHAPED]

Bools = np.ndarray[Any, np.dtype[np.bool_]]
Split = Callable[[Ints, Ints], tuple[Ints, Ints]]  # (dense, routed) layers of a stage, of so many stages


@dataclass(frozen=True)
class Parts:
    """Bytes of tensors of each candidate at the peak of a step."""

    weights: Floats
    gradients: Floats
    optimizer: Floats
    activations: Floats
    logits: Floats
    buffers: Floats
    base: Floats | None = None  # what is no tensor, where the stack's own formula knows it

    @property
    def tensors(self) -> Floats:
        held = self.weights + self.gradients + self.optimizer
        return held + self.activations + self.logits + self.buffers

    @property
    def total(self) -> Floats:
        return self.tensors if self.base is None else self.tensors + self.base


@dataclass(frozen=True)
class RankLayers:
    """What one pipeline rank of each candidate has, and holds on its way."""

    rank: Ints
    dense: Ints
    routed: Ints
    dense_held: Floats  # layers times micro-batches whose activations wait there
    routed_held: Floats
    held: Floats  # micro-batches that wait, over all of its stages
    first_held: Floats  # of them behind the embedding; 0 without it
    last_held: Floats  # before the head
    has_first: Bools
    has_last: Bools
    late: Ints  # layers without gradients yet, at this moment of a V-shaped pipeline


def fullest(first: Parts, second: Parts) -> Parts:
    """Of each candidate the fuller one, with all its parts."""
    fuller = second.total > first.total
    picked: dict[str, Any] = {}
    for field in fields(Parts):
        one, other = getattr(first, field.name), getattr(second, field.name)
        picked[field.name] = None if one is None else np.where(fuller, other, one)
    return Parts(**picked)


def over_ranks(
    shape: ModelShape,
    candidates: Candidates,
    stage: int | None,
    of_rank: Callable[[RankLayers], Parts],
    split: Split | None = None,
) -> Parts:
    """Parts of pipeline rank `stage`, or of the fullest one.

    That is the first, which has the embedding and most micro-batches on their way; the second, the first one
    without dense layers, or the last, with the head: no other has more of anything than one of these.
    """
    split = split or (lambda stages, stage: _even_layers(shape, stages, stage))
    last = candidates.pipeline - 1
    if stage is not None:
        ranks = [np.minimum(stage, last)]
    else:
        per_stage = shape.layers / (candidates.pipeline * _turns(candidates))
        dense = num_dense_layers(shape) if shape.experts else 0
        ranks = [np.zeros_like(last), np.minimum(1, last), last]
        if dense:
            ranks.insert(2, np.minimum(np.ceil(dense / per_stage).astype(np.int64), last))
    shifts = 3 if is_v_shaped(candidates).any() else 1 + int((_turns(candidates) > 1).any())
    found: Parts | None = None
    for rank in ranks:
        for shift in range(shifts):
            parts = of_rank(rank_layers(candidates, rank, split, shift))
            found = parts if found is None else fullest(found, parts)
    assert found is not None
    return found


def is_v_shaped(candidates: Candidates) -> Bools:
    return np.isin(candidates.schedule, _V_SHAPED) & (candidates.pipeline > 1)


def rank_layers(candidates: Candidates, rank: Ints, split: Split, shift: int = 0) -> RankLayers:
    """shift 1: at another moment of a rank with several stages, when it holds as much in all.

    In a V-shaped pipeline that is one micro-batch later, when its first stage has gradients too; 2: when
    most wait on its second stage.
    """
    turns = _turns(candidates)
    dense, routed = np.zeros_like(rank), np.zeros_like(rank)
    dense_held, routed_held = np.zeros(len(rank)), np.zeros(len(rank))
    held, first_held, last_held = np.zeros(len(rank)), np.zeros(len(rank)), np.zeros(len(rank))
    late = np.zeros_like(rank)
    for turn in range(int(turns.max(initial=1))):
        here = turn < turns
        stage = _stage_of(candidates, rank, turn)
        count = np.where(here, in_flight(candidates, rank, turn, shift), 0)
        of_dense, of_routed = split(candidates.pipeline * turns, stage)
        dense, routed = dense + of_dense * here, routed + of_routed * here
        dense_held, routed_held = dense_held + of_dense * count, routed_held + of_routed * count
        held = held + count
        first_held = first_held + count * (stage == 0)
        last_held = last_held + count * (stage == candidates.pipeline * turns - 1)
        if turn == 0 and shift == 0:
            late = (of_dense + of_routed) * is_v_shaped(candidates)
    has_first, has_last = first_held > 0, last_held > 0
    return RankLayers(
        rank, dense, routed, dense_held, routed_held, held, first_held, last_held, has_first, has_last, late
    )


def in_flight(candidates: Candidates, rank: Ints, turn: int, shift: int = 0) -> Ints:
    """Micro-batches that the rank holds of its stage number `turn`, when it holds most of all."""
    ranks, turns, batches = candidates.pipeline, _turns(candidates), candidates.micro_batches
    warm_up = np.where(turns > 1, 2 * (ranks - 1 - rank) + (turns - 1) * ranks, ranks - 1 - rank)
    passed = np.minimum(warm_up + 1, batches * turns)
    # Micro-batches go in groups of as many as there are ranks, each group through all stages of a rank.
    whole = passed // (ranks * turns)
    group = np.clip(batches - whole * ranks, 1, ranks)

    def held_of(number: Ints | int) -> Ints:
        return whole * ranks + np.clip(passed - whole * ranks * turns - number * group, 0, group)

    held = held_of(turn)
    if shift:  # as many in all, but most of them on the first stage
        moved = np.clip(np.minimum(2 * ranks, batches) - held_of(0), 0, held_of(turns - 1))
        moved = np.where((turns > 1) & (batches > ranks), moved, 0)
        held = held + moved * ((turn == 0) * 1 - (turn == turns - 1))
    later = np.maximum(ranks // 2, 1) if shift == 2 else shift
    descending = np.maximum(np.minimum(batches, 2 * ranks - 1 - rank) - later, 1)
    ascending = np.minimum(batches, 2 * ranks - descending)
    shaped = descending if turn == 0 else ascending
    return np.where(ranks == 1, 1, np.where(is_v_shaped(candidates), shaped, held))


def _turns(candidates: Candidates) -> Ints:
    """Stages of a rank."""
    shaped = np.isin(candidates.schedule, _V_SHAPED)
    return np.where(candidates.pipeline == 1, 1, np.where(shaped, 2, np.maximum(candidates.interleave, 1)))


def _stage_of(candidates: Candidates, rank: Ints, turn: int) -> Ints:
    ranks = candidates.pipeline
    if turn == 1:
        shaped = np.isin(candidates.schedule, _V_SHAPED)
        return np.where(shaped, 2 * ranks - 1 - rank, rank + ranks)
    return rank + ranks * turn


def _even_layers(shape: ModelShape, stages: Ints, stage: Ints) -> tuple[Ints, Ints]:
    """(dense, routed) layers of a stage."""
    even = shape.layers % stages == 0
    places = np.where(even, shape.layers, shape.layers + 2)
    short, longer = places // stages, places % stages
    begin = stage * short + np.minimum(stage, longer)
    end = begin + short + (stage < longer)
    ends = np.where(even, 0, 1)  # the embedding's place
    begin, end = np.clip(begin - ends, 0, shape.layers), np.clip(end - ends, 0, shape.layers)
    limit = num_dense_layers(shape)
    dense = np.clip(np.minimum(end, limit) - begin, 0, None)
    return dense, end - begin - dense
