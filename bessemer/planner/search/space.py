"""Every layout that is worth a look: degrees that divide the cluster, and what else a layout can choose.

A *structure* is the degrees and the schedule; each has several ways to run (micro-batch, recomputation,
when weights are freed). Degrees come from divisors, so that 100,000 devices are hardly more than 1,000.
What cannot be is left out here and counted by its reason: search/rejected.py tells it.
Not tried: tensor beyond the fast links (four exchanges a layer over the network), stages without a layer,
more ranks than rows, rows cut under 1,024 tokens, interleaving that leaves stages a tenth uneven.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from bessemer.formulas.layout import AXES, SCHEDULES, Layout, num_micro_batches
from bessemer.planner.cost.candidates import PRECISIONS, RECOMPUTE, Candidates, Ints
from bessemer.planner.rules.layout import first_complaint
from bessemer.planner.rules.stage import eager_only
from bessemer.planner.search.question import Question

_INTERLEAVES = (2, 3, 4, 6, 8)
_MOST_UNEVEN = 1.10  # layers of the fullest stage over the mean
_LEAST_TOKENS = 1024  # of a row, on a rank of the context axis
_MOST_TOKENS = 131_072  # of a micro-batch on a rank; larger ones gain nothing
_FIELDS = ("replicate", "shard", "tensor", "pipeline", "context", "expert", "schedule", "interleave")
ONE_F_ONE_B, INTERLEAVED, ZBV = (SCHEDULES.index(name) for name in ("1f1b", "interleaved", "zbv"))


@dataclass
class Impossible:
    """Structures that cannot be, by the problem: how many, and the first one of them."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, tuple[Layout, str]] = field(default_factory=dict)

    def add(self, problem: str, layout: Layout, why: str) -> None:
        self.counts[problem] = self.counts.get(problem, 0) + 1
        self.examples.setdefault(problem, (layout, why))


def structures(question: Question) -> tuple[dict[str, Ints], Impossible]:
    """Columns of all that can be, and what cannot."""
    impossible = Impossible()
    rows = [row for axes in _axes(question, impossible) for row in _with_experts_and_shards(question, *axes)]
    table = np.array(rows, np.int64).reshape(-1, len(_FIELDS))
    return {name: table[:, number] for number, name in enumerate(_FIELDS)}, impossible


def ways(question: Question, columns: dict[str, Ints]) -> Candidates:
    """Each structure in every way to run it."""
    per_rank = -(-question.batch_rows // (columns["replicate"] * columns["shard"]))
    places, sizes = [], []
    for rows in np.unique(per_rank):
        here = np.flatnonzero(per_rank == rows)
        for size in micro_batch_sizes(question, int(rows)):
            fitting = here[size * question.context <= _MOST_TOKENS * columns["context"][here]]
            fitting = here if size == 1 or question.micro_batch else fitting
            places.append(fitting)
            sizes.append(np.full(len(fitting), size))
    none = [np.zeros(0, np.int64)]
    pairs = np.concatenate(places or none), np.concatenate(sizes or none)
    return joined(
        [
            _way(question, columns, *pairs, RECOMPUTE.index(kind), keeps)
            for kind in _recomputes(question)
            for keeps in (False, True)
        ]
    )


def _recomputes(question: Question) -> list[str]:
    if question.recompute:
        return [question.recompute]
    return [kind for kind in RECOMPUTE if not (question.must_compile and eager_only(Layout(), kind))]


def least(question: Question, columns: dict[str, Ints]) -> Candidates:
    """Each structure in the way that takes least memory: a row at a time, everything recomputed."""
    size = question.micro_batch or 1
    recompute = RECOMPUTE.index(question.recompute or "full")
    place = np.arange(len(columns["tensor"]))
    return _way(question, columns, place, np.full(len(place), size), recompute, False, check=False)


@cache
def _sizes(rows: int) -> tuple[int, ...]:
    powers = {2**power for power in range(rows.bit_length()) if 2**power <= rows}
    return tuple(sorted(powers | {size for size in range(1, min(rows, 16) + 1) if rows % size == 0}))


def micro_batch_sizes(question: Question, rows: int) -> tuple[int, ...]:
    """Powers of two and small divisors of the rows that a rank reads in a step; or the recipe's own."""
    if question.micro_batch is None:
        return _sizes(rows)
    return (question.micro_batch,) if question.micro_batch <= rows else ()


def micro_batches_of(batch_rows: int, data: Ints, size: Ints) -> Ints:
    """As `num_micro_batches`, in columns: rows that do not divide are filled up with empty ones."""
    per_rank = np.ceil(batch_rows / data)
    return np.ceil(per_rank / size).astype(np.int64)


def divisors(number: int) -> list[int]:
    small = [part for part in range(1, math.isqrt(number) + 1) if number % part == 0]
    return sorted({*small, *(number // part for part in small)})


def joined(parts: list[Candidates]) -> Candidates:
    names = list(Candidates.__dataclass_fields__)
    return Candidates(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def layout_of(question: Question, candidates: Candidates, place: int) -> Layout:
    """The words of a candidate."""
    degrees: dict[str, Any] = {axis: int(getattr(candidates, axis)[place]) for axis in AXES}
    schedule = SCHEDULES[int(candidates.schedule[place])] if degrees["pipeline"] > 1 else "1f1b"
    sends_heads = degrees["context"] > 1 and bool(ulysses(question, candidates)[place])
    kind = "ulysses" if sends_heads else "gather"
    return Layout(
        **degrees,
        schedule=schedule,
        interleave=int(candidates.interleave[place]) if schedule == "interleaved" else 1,
        # A pipeline keeps gathered weights for the whole step in any case (formulas/memory/rank_weights.py).
        reshard=degrees["pipeline"] > 1 or int(candidates.zero[place]) != 2,
        context_kind=kind,
    )


def candidate_of(question: Question, layout: Layout, micro_batch: int, recompute: str) -> Candidates:
    """A layout of the user's own, as a column of one."""
    count = num_micro_batches(layout, question.batch_rows, micro_batch)
    found = Candidates.of_layout(layout, micro_batch, count, recompute, question.dtype)
    zero = np.where((layout.pipeline > 1) & (found.zero == 3), 2, found.zero)
    return Candidates(**{**vars(found), "zero": zero})


def ulysses(question: Question, candidates: Candidates) -> np.ndarray:
    """Where whole heads travel rather than all keys and values: where heads divide, and less is sent."""
    shape = question.shape
    kv_heads = shape.heads if shape.mla_kv_rank else shape.kv_heads
    common = math.gcd(shape.heads, kv_heads)
    divides = common % (candidates.tensor * candidates.context) == 0
    return (
        divides & (question.context % candidates.context == 0) & (ulysses_share(question, candidates) < 1.0)
    )


def ulysses_share(question: Question, candidates: Candidates) -> np.ndarray:
    """Bytes that it sends over those of the gather: queries, keys, values and outputs of a rank's own
    tokens, against keys and values of all (arXiv:2309.14509)."""
    shape = question.shape
    heads_per_kv = 1.0 if shape.mla_kv_rank else shape.heads / shape.kv_heads
    return (1.0 + heads_per_kv) / candidates.context


Axes = tuple[int, int, int, int, list[tuple[int, int]]]  # tensor, context, pipeline, data, schedules


def _axes(question: Question, impossible: Impossible) -> Iterator[Axes]:
    """Tensor, context and pipeline that the model allows, and how many ranks are left to read rows."""
    shape, cluster, tokens = question.shape, question.cluster, question.context
    for tensor in divisors(cluster.devices):
        problem = first_complaint(Layout(tensor=tensor), shape, tokens)
        if problem is not None:
            impossible.add(problem.problem, Layout(tensor=tensor), problem.found)
            continue
        if tensor > cluster.link_domain:
            why = f"tensor={tensor} over fast links that join {cluster.link_domain}: four exchanges a layer"
            impossible.add("tensor leaves the fast links", Layout(tensor=tensor), f"{why} on the network")
            continue
        for context in divisors(cluster.devices // tensor):
            if not _context_allows(question, tensor, context):
                continue
            for pipeline in divisors(cluster.devices // (tensor * context)):
                layout = Layout(tensor=tensor, context=context, pipeline=pipeline)
                problem = first_complaint(Layout(pipeline=pipeline), shape, tokens)
                if problem is not None:
                    impossible.add(problem.problem, layout, problem.found)
                    continue
                data = cluster.devices // layout.world
                if data > question.batch_rows:
                    why = f"{data} ranks that read rows, {question.batch_rows} rows in a step"
                    impossible.add("more ranks than rows", Layout(**{**vars(layout), "shard": data}), why)
                    continue
                yield tensor, context, pipeline, data, _schedules(question, pipeline)


def _context_allows(question: Question, tensor: int, context: int) -> bool:
    if context == 1:
        return True
    if question.context // context < _LEAST_TOKENS or question.context % (2 * context):
        return False
    return first_complaint(Layout(tensor=tensor, context=context), question.shape, question.context) is None


def _schedules(question: Question, pipeline: int) -> list[tuple[int, int]]:
    """(schedule, stages on a rank)."""
    if pipeline == 1:
        return [(ONE_F_ONE_B, 1)]
    layers = question.shape.layers

    def even(stages: int) -> bool:
        return stages <= layers and math.ceil(layers / stages) * stages <= _MOST_UNEVEN * layers

    found = [(ONE_F_ONE_B, 1)]
    found += [(INTERLEAVED, turns) for turns in _INTERLEAVES if even(pipeline * turns)]
    return found + ([(ZBV, 2)] if even(2 * pipeline) and not question.must_compile else [])


def _with_experts_and_shards(
    question: Question, tensor: int, context: int, pipeline: int, data: int, schedules: list[tuple[int, int]]
) -> Iterator[tuple[int, ...]]:
    common = math.gcd(data * context, question.shape.experts) if question.shape.experts else 1
    for expert in divisors(common):
        for shard in divisors(data):
            for schedule, turns in schedules:
                yield data // shard, shard, tensor, pipeline, context, expert, schedule, turns


def _way(
    question: Question,
    columns: dict[str, Ints],
    place: Ints,
    size: Ints,
    recompute: int,
    keeps_weights: bool,
    check: bool = True,
) -> Candidates:
    rows = {name: column[place] for name, column in columns.items()}
    data = rows["replicate"] * rows["shard"]
    count = micro_batches_of(question.batch_rows, data, size)
    held_apart = rows["shard"] * rows["context"] > 1
    # A pipeline's weights stay from its first forward pass to its last backward pass, whatever is asked.
    kept = (rows["pipeline"] > 1) | keeps_weights
    zero = np.where(held_apart, np.where(kept, 2, 3), 0)
    found = Candidates(
        **rows,
        micro_batch=size,
        micro_batches=count,
        recompute=np.full(len(place), recompute),
        precision=np.full(len(place), PRECISIONS.index(question.dtype)),
        zero=zero,
    )
    if not check:
        return found
    grouped = (found.schedule != INTERLEAVED) | (count <= found.pipeline) | (count % found.pipeline == 0)
    return found.take(grouped & np.where(held_apart, kept == keeps_weights, not keeps_weights))
