"""What each candidate takes: step time, memory, and from them hours, money and energy of the run.

Columns for all candidates at once, by the formulas of planner/cost; `exact.py` goes over the best again.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bessemer.formulas.memory.parts import Memory, Workload, kept_per_token
from bessemer.formulas.memory.rollout import asked_bytes
from bessemer.formulas.parameters import num_dense_layers
from bessemer.hardware import GIB
from bessemer.planner.cost.candidates import RECOMPUTE, Candidates, Floats, Ints
from bessemer.planner.cost.memory import (
    OUTSIDE_BYTES,
    USUALLY_RESERVED,
    MemoryColumns,
    needed_bytes,
    stage_bytes,
)
from bessemer.planner.cost.memory_parts import is_v_shaped
from bessemer.planner.cost.time import StepTimes, step_times
from bessemer.planner.search.power import board_share, kilowatts
from bessemer.planner.search.question import Question
from bessemer.planner.search.space import ulysses, ulysses_share

# What runs eagerly moves about twice the bytes in norms, rotation and SwiGLU that compiled code does.
_EAGER_VECTOR = 2.0
# Of the kept activations: a first stage may have a layer less than the mean.
_SURELY = 0.8
_CHUNK = 4096  # candidates that are asked of at once, at the most


class Field:
    """All candidates with their times, and the memory of those that somebody asked for.

    Memory costs several times what time does, and of most candidates nobody asks: the fastest that fit are
    found by going down the list. Changes: `needed_bytes` and `gone_over` fill up.
    """

    def __init__(self, question: Question, candidates: Candidates) -> None:
        self.question, self.candidates = question, candidates
        self.gone_over: dict[int, Any] = {}  # by exact.py: by number of the candidate
        self.times = own_times(question, candidates)
        self.step_s = self.times.total_s
        self.kwh = run_kwh(question, self.times)
        self.outside_bytes = np.zeros(len(candidates))
        usable = question.cluster.device.memory_gib_usable
        self.usable_bytes = usable * GIB if usable else np.inf
        least = activations_at_least(question, candidates)
        self.needed_bytes = np.where(least > self.usable_bytes, least, np.nan)

    def __len__(self) -> int:
        return len(self.candidates)

    @property
    def asked(self) -> np.ndarray:
        return ~np.isnan(self.needed_bytes)

    def fit(self, places: Ints) -> np.ndarray:
        """Whether these fit on a device."""
        unknown = places[np.isnan(self.needed_bytes[places])]
        if len(unknown):
            memory = memory_of(self.question, self.candidates.take(unknown))
            self.needed_bytes[unknown], self.outside_bytes[unknown] = memory.needed, memory.outside
        return np.asarray(self.needed_bytes[places] <= self.usable_bytes)

    def room(self, place: int) -> "Room":
        """Of one candidate."""
        self.fit(np.array([place]))
        return room_of(self.question, float(self.outside_bytes[place]))

    def best(
        self, key: Floats, count: int, among: Ints | None = None, group: Ints | None = None, each: int = 1
    ) -> Ints:
        """The first `count` that fit, by rising `key`: numbers of candidates.

        group: a number for each candidate; then no more than `each` with the same one.
        """
        found: list[int] = []
        have: dict[int, int] = {}
        for places in _rising(key, np.arange(len(self)) if among is None else among, 4 * count):
            if group is not None:
                full = [number for number, so_many in have.items() if so_many >= each]
                places = places[~np.isin(group[places], full)]
            for place in places[self.fit(places)].tolist():
                number = place if group is None else int(group[place])
                if have.get(number, 0) < each:
                    have[number] = have.get(number, 0) + 1
                    found.append(place)
                if len(found) == count:
                    return np.array(found, np.int64)
        return np.array(found, np.int64)


def _rising(key: Floats, places: Ints, first: int) -> Iterator[Ints]:
    """The places by rising key, in growing chunks; the far end is sorted only if it is reached."""
    begin, size = 0, max(64, first)
    while begin < len(places):
        if size < len(places) - begin:
            order = np.argpartition(key[places[begin:]], size)
            places = np.concatenate([places[:begin], places[begin:][order]])
        chunk = places[begin : begin + size]
        yield chunk[np.argsort(key[chunk], kind="stable")]
        begin, size = begin + size, min(2 * size, _CHUNK)


@dataclass(frozen=True)
class Room:
    """What a device needs beside tensors: shares for fragments (cost/memory.py), and what is outside."""

    usual: float  # reserved over tensors, on average
    outside_bytes: float  # of the driver and the exchanges
    on_cpu: bool = False  # whose resident set has it all already

    def needed(self, memory: Memory) -> float:
        """Bytes that the device must have."""
        return memory.total if self.on_cpu else rank_needs(memory)

    def named(self, memory: Memory) -> dict[str, float]:
        """Bytes in the words of the plan. buffers: casts, gathered weights, and what a block works on;
        asked and sampling: models beside the one that is trained (formulas/memory/rollout.py); process: of a
        CPU, Python and torch. On a CPU they add up to the total; of an accelerator's `allocator` that has the
        base alone."""
        beside = {"asked": memory.asked, "sampling": memory.sampling}
        if self.on_cpu:
            beside["process"] = memory.base
        return {
            "weights": memory.weights,
            "gradients": memory.gradients,
            "optimizer": memory.optimizer,
            "activations": memory.activations,
            "logits": memory.loss,
            "buffers": memory.casts + memory.working + memory.gathered + memory.saving,
            **{name: value for name, value in beside.items() if value},
            "allocator": round((self.usual - 1.0) * (memory.total - memory.base) + self.outside_bytes),
        }


def room_of(question: Question, outside_bytes: float) -> Room:
    on_cpu = question.stack == "bessemer-cpu"
    return Room(1.0 if on_cpu else USUALLY_RESERVED, outside_bytes, on_cpu)


def rank_needs(memory: Memory) -> float:
    """Bytes that an accelerator must have for a rank."""
    return float(needed_bytes(memory.total - memory.base, memory.base))


def activations_at_least(question: Question, candidates: Candidates) -> Floats:
    """Bytes that the first pipeline rank keeps of its layers alone: a bound that costs next to nothing, so
    that what is far too large need not be asked of."""
    shape, rows = question.shape, candidates
    dense = num_dense_layers(shape) if shape.experts else 0
    first, later = (_kept_of_a_layer(question, layer, question.compiles) for layer in (0, dense))
    turns = np.maximum(rows.interleave, 1)
    layers = shape.layers // (rows.pipeline * turns) * turns
    of_dense = np.minimum(layers, dense)
    kept = of_dense * first[rows.recompute] + (layers - of_dense) * later[rows.recompute]
    tokens = rows.micro_batch * question.context / (rows.tensor * rows.context)
    return _SURELY * tokens * kept * np.minimum(rows.micro_batches, rows.pipeline)


def _kept_of_a_layer(question: Question, layer: int, compiled: bool) -> Floats:
    """Bytes per token, by RECOMPUTE."""
    layers = range(layer, layer + 1)
    works = [Workload(question.context, question.dtype, kind, compiled) for kind in RECOMPUTE]
    return np.array([kept_per_token(question.shape, work, layers) for work in works], np.float64)


def memory_of(question: Question, candidates: Candidates) -> MemoryColumns:
    """Of the fullest pipeline rank of each. What runs eagerly keeps more of each layer."""
    memory = stage_bytes(question.shape, question.context, candidates, question.stack)
    if question.stack == "bessemer-cpu":  # eager in any case
        return memory
    compiled, bare = (float(_kept_of_a_layer(question, 0, way)[0]) for way in (True, False))
    kept = eager(question, candidates) & (candidates.recompute == RECOMPUTE.index("none"))
    more = np.where(kept, bare / compiled - 1.0, 0.0) * memory.activations
    asked = asked_bytes(question.objective, question.dtype)
    memory = replace(memory, activations=memory.activations + more, weights=memory.weights + asked)
    tensors = memory.allocated
    return replace(
        memory,
        allocator=(USUALLY_RESERVED - 1.0) * tensors,
        outside=np.maximum(memory.outside, OUTSIDE_BYTES),
        needed=needed_bytes(tensors, memory.outside),
    )


def own_times(question: Question, candidates: Candidates, sends_heads: np.ndarray | None = None) -> StepTimes:
    """Of our trainer: whole heads may travel instead of keys and values, and some ways run eagerly.

    sends_heads: where they do, for layouts that say so; None: as the search chooses (space.ulysses).
    """
    chosen = ulysses(question, candidates) if sends_heads is None else sends_heads
    times = step_times(question.shape, question.context, candidates, question.cluster, question.stack)
    sent = np.where(chosen, ulysses_share(question, candidates), 1.0)
    more = np.where(eager(question, candidates), _EAGER_VECTOR - 1.0, 0.0) * times.vector_s
    return replace(
        times,
        context_s=times.context_s * sent,
        vector_s=times.vector_s + more,
        # The bubble is passes through other ranks, which are as much slower.
        busiest_s=times.busiest_s + more / candidates.micro_batches,
        bubble_s=times.bubble_s * (1.0 + more / np.maximum(times.compute_s, 1e-12)),
    )


def eager(question: Question, candidates: Candidates) -> np.ndarray:
    """What is not compiled: planner/rules/stage.py."""
    if not question.compiles:
        return np.ones(len(candidates), bool)
    shaped = is_v_shaped(candidates)
    return shaped | (candidates.recompute == RECOMPUTE.index("selective"))


def run_hours(question: Question, step_s: Floats) -> Floats:
    """Of the whole run, with what failures and checkpoints take."""
    return step_s * question.steps / 3600.0 / max(question.reliability().goodput.value, 1e-3)


def run_kwh(question: Question, times: StepTimes) -> Floats | None:
    """At the meter of the building. None: the device's power is not known."""
    cluster = question.cluster
    drawn = kilowatts(cluster.device, cluster.filled_node, question.pue, board_share(times))
    return None if drawn is None else drawn[0] * cluster.devices * run_hours(question, times.total_s)
