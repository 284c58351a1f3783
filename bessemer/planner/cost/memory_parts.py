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

_FIRST_V_SHAPED = min(SCHEDULES.index(name) for name in V_SHAPED)  # the last words of the list

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
    waiting: Floats  # of `held`, the most whose weights wait where layers are recomputed
    late_dense: Ints  # layers without gradients yet, at this moment of a V-shaped pipeline
    late_routed: Ints

    def take(self, which: Ints) -> "RankLayers":
        return RankLayers(*(getattr(self, field.name)[which] for field in fields(self)))


def of_largest(by_kind: dict[bool, Floats], layers: RankLayers) -> Floats:
    """The largest of a number of dense and of routed layers, among the kinds that a rank has."""
    found = np.zeros(len(layers.dense))
    for routed, value in by_kind.items():
        count = layers.routed if routed else layers.dense
        found = np.maximum(found, np.where(count > 0, value, 0.0))
    return found


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
    without dense layers, or the last, with the head: no other has more of anything than one of these. But of
    a V whose layers are recomputed and do not divide, one between may be up to 14 % fuller; finalists are
    asked about it (search/exact.py).
    """
    split = split or (lambda stages, stage: even_layers(shape, stages, stage))
    kinds, place = _pipelines(candidates)
    last = kinds.pipeline - 1
    if stage is not None:
        ranks = [np.minimum(stage, last)]
    else:
        per_stage = shape.layers / (kinds.pipeline * _turns(kinds))
        dense = num_dense_layers(shape) if shape.experts else 0
        ranks = [np.zeros_like(last), np.minimum(1, last), last]
        if dense:
            ranks.insert(2, np.minimum(np.ceil(dense / per_stage).astype(np.int64), last))
    shifts = 3 if is_v_shaped(kinds).any() else 1 + int((_turns(kinds) > 1).any())
    found: Parts | None = None
    for rank in ranks:
        for shift in range(shifts):
            parts = of_rank(rank_layers(kinds, rank, split, shift).take(place))
            found = parts if found is None else fullest(found, parts)
    assert found is not None
    return found


def _pipelines(candidates: Candidates) -> tuple[Candidates, Ints]:
    """One candidate of each pipeline that there is, and which of them each has: thousands have hundreds."""
    key = candidates.pipeline
    for word in (candidates.interleave, candidates.schedule, candidates.micro_batches):
        key = key * (int(word.max(initial=0)) + 1) + word
    _, first, place = np.unique(key, return_index=True, return_inverse=True)
    return candidates.take(first), place


def is_v_shaped(candidates: Candidates) -> Bools:
    return (candidates.schedule >= _FIRST_V_SHAPED) & (candidates.pipeline > 1)


def rank_layers(candidates: Candidates, rank: Ints, split: Split, shift: int = 0) -> RankLayers:
    """shift 1: at another moment of a rank with several stages, when it holds as much in all.

    In a V-shaped pipeline that is one micro-batch later, when its first stage has gradients too; 2: when
    most wait on its second stage.
    """
    turns = _turns(candidates)
    turn = np.arange(turns.max(initial=1))[:, None]  # from here on a row for each turn
    here, stages = turn < turns, candidates.pipeline * turns
    stage = _stage_of(candidates, rank, turn)
    count = np.where(here, in_flight(candidates, rank, turn, shift), 0)
    dense, routed = (np.where(here, of_kind, 0) for of_kind in split(stages, stage))
    is_late = is_v_shaped(candidates) & (shift == 0)
    first_held, last_held = (count * (stage == 0)).sum(0), (count * (stage == stages - 1)).sum(0)
    return RankLayers(
        rank=rank,
        dense=dense.sum(0),
        routed=routed.sum(0),
        dense_held=(1.0 * dense * count).sum(0),
        routed_held=(1.0 * routed * count).sum(0),
        held=1.0 * count.sum(0),
        first_held=1.0 * first_held,
        last_held=1.0 * last_held,
        has_first=first_held > 0,
        has_last=last_held > 0,
        waiting=1.0 * np.minimum(_most_waiting(candidates, rank), count.sum(0)),
        late_dense=dense[0] * is_late,
        late_routed=routed[0] * is_late,
    )


def in_flight(candidates: Candidates, rank: Ints, turn: Ints, shift: int = 0) -> Ints:
    """Micro-batches that the rank holds of its stage number `turn`, when it holds most of all.

    turn: a column, for a row of each.
    """
    ranks, turns, batches = candidates.pipeline, _turns(candidates), candidates.micro_batches
    warm_up = np.where(turns > 1, 2 * (ranks - 1 - rank) + (turns - 1) * ranks, ranks - 1 - rank)
    passed = np.minimum(warm_up + 1, batches * turns)
    # Micro-batches go in groups of as many as there are ranks, each group through all stages of a rank.
    whole = passed // (ranks * turns)
    group = np.minimum(np.maximum(batches - whole * ranks, 1), ranks)
    rest = passed - whole * ranks * turns

    def held_of(number: Ints | int) -> Ints:
        return whole * ranks + np.minimum(np.maximum(rest - number * group, 0), group)

    held = held_of(turn)
    if shift:  # as many in all, but most of them on the first stage
        moved = np.minimum(np.maximum(np.minimum(2 * ranks, batches) - held_of(0), 0), held_of(turns - 1))
        moved = np.where((turns > 1) & (batches > ranks), moved, 0)
        held = held + moved * ((turn == 0) * 1 - (turn == turns - 1))
    later = np.maximum(ranks // 2, 1) if shift == 2 else shift
    descending = np.maximum(np.minimum(batches, 2 * ranks - 1 - rank) - later, 1)
    ascending = np.minimum(batches, 2 * ranks - descending)
    shaped = np.where(turn == 0, descending, ascending)
    return np.where(ranks == 1, 1, np.where(is_v_shaped(candidates), shaped, held))


def _most_waiting(candidates: Candidates, rank: Ints) -> Ints:
    """At the beginning of a backward pass, when the rank holds most of all."""
    most = 2 * np.minimum(rank + 1, candidates.micro_batches)
    return np.where(is_v_shaped(candidates), most, 0)


def _turns(candidates: Candidates) -> Ints:
    """Stages of a rank."""
    shaped = candidates.schedule >= _FIRST_V_SHAPED
    return np.where(candidates.pipeline == 1, 1, np.where(shaped, 2, np.maximum(candidates.interleave, 1)))


def _stage_of(candidates: Candidates, rank: Ints, turn: Ints) -> Ints:
    ranks, shaped = candidates.pipeline, candidates.schedule >= _FIRST_V_SHAPED
    return np.where(shaped & (turn == 1), 2 * ranks - 1 - rank, rank + ranks * turn)


def even_layers(shape: ModelShape, stages: Ints, stage: Ints) -> tuple[Ints, Ints]:
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
