"""Memory of a device, for many layouts at once: bytes at the peak of a step, part by part.

Of every stack the same parts, from other formulas: how Megatron-Core holds its weights and gradients is not
how FSDP does (cost/memory_megatron.py, cost/memory_fsdp.py), and ours is formulas/memory/rank.py as columns
(cost/memory_bessemer.py). Allocated are the bytes of tensors; reserved is what the allocator takes from the
device for them; `device` adds what the driver and the exchanges take, as nvidia-smi shows it.

Source: allocated and reserved of 55 pipeline stages (MooreThreads/SimuMax, docs/b200, Apache-2.0): reserved
is 1.047 of allocated on average, 1.017 at least and 1.093 at most.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np

from bessemer.formulas.shape import ModelShape
from bessemer.hardware import GIB, Device
from bessemer.planner.cost.candidates import Candidates, Floats
from bessemer.planner.cost.memory_bessemer import bessemer_cpu_parts, bessemer_parts
from bessemer.planner.cost.memory_fsdp import eager_fsdp_parts, fsdp_parts
from bessemer.planner.cost.memory_megatron import deepspeed_parts, megatron_parts
from bessemer.planner.cost.memory_parts import Parts

# Reserved over allocated, of the stages above: on average, and at the worst a little more than was seen. Ours
# too are counted with these.
USUALLY_RESERVED, MOST_RESERVED = 1.047, 1.10
# The same by stack: (on average, what a layout must leave room for). Under FSDP it is less, or runs that
# llm-foundry published would not have been. DeepSpeed's pipeline of 2022: by BLOOM's readings, which scatter
# by 8 %.
_SHARES = {
    "megatron": (USUALLY_RESERVED, MOST_RESERVED),
    "megatron-deepspeed": (1.15, 1.15),
    "fsdp": (USUALLY_RESERVED, 1.07),
    "fsdp-eager": (USUALLY_RESERVED, 1.07),
    "maxtext": (USUALLY_RESERVED, 1.07),
}
_CONTEXT_BYTES = 0.75 * GIB  # CUDA's context and kernels
# Of torch of 2022, which loads all kernels at once: 1573 MiB by nvidia-smi on an A100 (BLOOM's prequel).
_CONTEXTS = {"megatron-deepspeed": 1573.0 * 2**20}
_EXCHANGE_BYTES = 0.5 * GIB  # NCCL's buffers, for each axis
OUTSIDE_BYTES = 2.0 * GIB  # that the driver and the exchanges take of our trainer's device, at the least

Column = Any  # bytes of one layout, or of many

_PARTS = {
    "megatron": megatron_parts,
    "megatron-deepspeed": deepspeed_parts,
    "fsdp": fsdp_parts,
    "fsdp-eager": eager_fsdp_parts,  # torchtitan until 2025, whose loss is not compiled
    "maxtext": fsdp_parts,
    "bessemer": bessemer_parts,
    "bessemer-cpu": bessemer_cpu_parts,
}


@dataclass(frozen=True)
class MemoryColumns:
    """Bytes of each candidate, on its fullest pipeline rank or on the one that was asked for."""

    weights: Floats  # parameters as they are held, casts and transposed copies with them
    gradients: Floats
    optimizer: Floats  # master weights and moments
    activations: Floats  # kept from forward to backward, and what the block taken back works on
    logits: Floats
    buffers: Floats  # gathered weights and gradients, dummy gradients, exchanges, workspaces: all tensors
    allocator: Floats  # reserved and not allocated
    outside: Floats  # of the context and NCCL, which no allocator knows
    needed: Floats  # what a device must have: tensors with the worst fragments seen, and all that is outside

    @property
    def allocated(self) -> Floats:
        parts = (self.weights, self.gradients, self.optimizer, self.activations, self.logits, self.buffers)
        return sum(parts[1:], start=parts[0])

    @property
    def reserved(self) -> Floats:
        return self.allocated + self.allocator

    @property
    def device(self) -> Floats:
        """As nvidia-smi shows it; of a process on a CPU its resident set."""
        return self.reserved + self.outside

    def __len__(self) -> int:
        return len(self.weights)

    def take(self, which: Any) -> Self:
        return replace(self, **{field.name: getattr(self, field.name)[which] for field in fields(self)})

    def parts(self, place: int) -> dict[str, float]:
        """Of one candidate, by name, in bytes."""
        names = [field.name for field in fields(self) if field.name != "needed"]
        return {name: float(getattr(self, name)[place]) for name in names}


def stage_bytes(
    shape: ModelShape, context: int, candidates: Candidates, stack: str, stage: int | None = None
) -> MemoryColumns:
    """Memory of each candidate's fullest pipeline rank; of pipeline rank `stage` where one is given.

    context: tokens of a row. A rank that a pipeline does not have is its last one.
    """
    return _columns(_PARTS[stack](shape, context, candidates, stage), candidates, stack)


def needed_bytes(tensors: Column, base: Column) -> Column:
    """What an accelerator must have for our trainer: with the worst fragments seen, and what is no tensor.

    The one rule of what fits, from the search (search/costed.py) to the start of a run (planner/limits.py).
    base: of formulas/memory, which may be less than the driver takes.
    """
    return MOST_RESERVED * tensors + np.maximum(base, OUTSIDE_BYTES)


def fits(columns: MemoryColumns, device: Device) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether each fits on the device. All do where the catalogue does not know its memory."""
    if device.memory_gib_usable is None:
        return np.ones(len(columns), bool)
    return columns.needed <= device.memory_gib_usable * GIB


def _columns(parts: Parts, candidates: Candidates, stack: str) -> MemoryColumns:
    named = {field.name: getattr(parts, field.name) for field in fields(parts) if field.name != "base"}
    if parts.base is not None:  # which has what allocators keep, by resident sets
        none = np.zeros(len(candidates))
        return MemoryColumns(**named, allocator=none, outside=parts.base, needed=parts.total)
    reserved, worst = _SHARES[stack]
    axes = (candidates.data, candidates.tensor, candidates.pipeline, candidates.context, candidates.expert)
    context = _CONTEXTS.get(stack, _CONTEXT_BYTES)
    outside = context + _EXCHANGE_BYTES * np.sum([axis > 1 for axis in axes], axis=0)
    total = parts.total
    return MemoryColumns(
        **named, allocator=(reserved - 1.0) * total, outside=outside, needed=worst * total + outside
    )
