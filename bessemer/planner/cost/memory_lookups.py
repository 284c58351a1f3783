"""Columns from the scalar formulas of our trainer's memory, once for each value that candidates have."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from bessemer.formulas.layout import Layout, layers_of_stages
from bessemer.formulas.memory.parts import Workload, loss_bytes
from bessemer.formulas.memory.rank_weights import block_elements
from bessemer.formulas.parameters import num_dense_layers
from bessemer.formulas.shape import ModelShape
from bessemer.planner.cost.candidates import PRECISIONS, RECOMPUTE, Candidates, Floats, Ints

FP32 = PRECISIONS.index("fp32")


def loss_column(shape: ModelShape, tokens: Floats, candidates: Candidates) -> Floats:
    names = ("tensor", "context", "micro_batch", "precision")
    keys = np.stack([getattr(candidates, name) for name in names])
    unique, first, place = np.unique(keys, axis=1, return_index=True, return_inverse=True)
    found = []
    for tensor, context, _, precision, index in zip(*unique, first, strict=True):
        part = replace(shape, vocab=-(-shape.vocab // int(tensor)))
        dtype = "fp32" if precision == FP32 else "bf16"
        found.append(loss_bytes(part, Workload(int(-(-tokens[index] // context)), dtype, "none", True)))
    return np.array(found, float)[place.reshape(-1)]


def by_kind(candidates: Candidates, work: Workload, size_of: Callable[[Workload], float]) -> Floats:
    """A scalar formula of (compute type, what is recomputed), for each candidate."""
    unique, place = np.unique(_kinds(candidates), return_inverse=True)
    return np.array([size_of(_of_kind(work, key)) for key in unique], float)[place]


def by_kind_and_degree(
    candidates: Candidates, work: Workload, size_of: Callable[[Workload, int], float]
) -> Floats:
    """A scalar formula of that and of ranks of the tensor axis, for each candidate."""
    keys = candidates.tensor * (2 * len(RECOMPUTE)) + _kinds(candidates)
    unique, place = np.unique(keys, return_inverse=True)
    split = [divmod(int(key), 2 * len(RECOMPUTE)) for key in unique]
    return np.array([size_of(_of_kind(work, kind), tensor) for tensor, kind in split], float)[place]


def _kinds(candidates: Candidates) -> Ints:
    return np.asarray(candidates.recompute * 2 + (candidates.precision == FP32))


def _of_kind(work: Workload, key: int) -> Workload:
    return replace(work, recompute=RECOMPUTE[key // 2], dtype="fp32" if key % 2 else "bf16")


def by_tensor(candidates: Candidates, shape: ModelShape, routed: bool) -> tuple[Floats, Floats]:
    unique, place = np.unique(candidates.tensor, return_inverse=True)
    found = [block_elements(shape, int(tensor), routed=routed) for tensor in unique]
    plain, experts = np.array(found, float).T
    return plain[place], experts[place]


def by_degree(candidates: Candidates, value_of: Callable[[int], float]) -> Floats:
    """A number that depends on the tensor axis alone."""
    unique, place = np.unique(candidates.tensor, return_inverse=True)
    return np.array([value_of(int(tensor)) for tensor in unique], float)[place]


def balanced_layers(shape: ModelShape, stages: Ints, stage: Ints) -> tuple[Ints, Ints]:
    """As formulas/layout.py balances them."""
    unique, place = np.unique(stages, return_inverse=True)
    ends = np.full((len(unique), int(unique.max()) + 1), shape.layers, np.int64)
    for row, count in enumerate(unique):
        table = layers_of_stages(shape, Layout(pipeline=int(min(count, shape.layers))))
        ends[row, : len(table)] = [layers.start for layers in table]
    last = np.minimum(stage, ends.shape[1] - 2)
    begin, end = ends[place, last], ends[place, last + 1]
    dense = np.maximum(np.minimum(end, num_dense_layers(shape)) - begin, 0)
    return dense, end - begin - dense
