"""The replicate axis where nothing is sharded: ranks hold the same weights, and sum their gradients.

A unit's gradients (final norm and head, each block, the embedding) are laid side by side as soon as all are
there, and travel while the backward pass goes on, in the step's last one only. Units leave in the order in
which a backward pass ends them, whatever is ready first, so that the exchanges of all ranks match. From then
on a gradient is a view of what travelled: it is copied once, and a unit's worth of memory is taken, less than
the activations that are gone by then. Summed, never averaged, in fp32: the loss was divided by the count of
all target tokens already.
Cost: as fast as torch's DistributedDataParallel, where FSDP2 over one shard had 0.9 of its speed on two
cores. Buckets larger than a block, and sums that a gradient is added into from the start, gained nothing
that could be measured (docs/log.md).
Source: arXiv:2006.15704 (DistributedDataParallel).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bessemer.model.decoder import Decoder
from bessemer.parallel.mesh import Group


@dataclass
class _Unit:
    """Weights whose gradients travel together."""

    weights: list[nn.Parameter]
    missing: int = 0  # gradients that the backward pass has still to end
    travelling: dist.Work | None = None


class ReplicaSums:
    """Sums the gradients of a model over `group`."""

    def __init__(self, model: Decoder, group: Group) -> None:
        self._group = group
        self._units = [_Unit(weights) for weights in _units(model) if weights]
        self._left = 0  # how many units have left
        self._hooks: list[RemovableHandle] = []

    def begin(self) -> None:
        """The coming backward pass is the step's last: what it has done with leaves."""
        self._left = 0
        for unit in self._units:
            unit.missing = len(unit.weights)
            # Gone at the end of the step: through a hook that stays, weights would hold themselves for ever.
            note = partial(self._note, unit)
            self._hooks += [weight.register_post_accumulate_grad_hook(note) for weight in unit.weights]

    def finish(self) -> None:
        """After that pass: every gradient is the sum over all ranks, also where this one had none."""
        while self._left < len(self._units):
            self._send_next()
        while self._hooks:
            self._hooks.pop().remove()
        for unit in self._units:
            assert unit.travelling is not None
            unit.travelling.wait()
            unit.travelling = None

    def _note(self, unit: _Unit, weight: Tensor) -> None:
        """The backward pass has ended this weight's gradient."""
        unit.missing -= 1
        assert unit.missing >= 0, f"a gradient of {tuple(weight.shape)} came twice in a backward pass"
        while self._left < len(self._units) and not self._units[self._left].missing:
            self._send_next()

    def _send_next(self) -> None:
        unit = self._units[self._left]
        self._left += 1
        flat = torch.cat([_gradient(weight).flatten() for weight in unit.weights])
        parts = flat.split([weight.numel() for weight in unit.weights])
        for weight, part in zip(unit.weights, parts, strict=True):
            weight.grad = part.view_as(weight)
        unit.travelling = dist.all_reduce(flat, group=self._group, async_op=True)


def _units(model: Decoder) -> Iterator[list[nn.Parameter]]:
    """As formulas/traffic/weights.py counts them, in the order in which a backward pass ends them."""
    blocks = [_trained(block) for block in model.model.layers.values()]
    embedding = _trained(model.model.embed_tokens)
    inside = {id(weight) for weights in [*blocks, embedding] for weight in weights}
    ends = [weight for weight in _trained(model) if id(weight) not in inside]
    # Tied, the embedding is the head as well, and has its gradient when all is done.
    tied = model.shape.tie_embeddings
    yield from [] if tied else [ends]
    yield from reversed(blocks)
    yield ends + embedding if tied else embedding


def _trained(module: nn.Module | None) -> list[nn.Parameter]:
    weights = [] if module is None else module.parameters()
    return [weight for weight in weights if weight.requires_grad]


def _gradient(weight: nn.Parameter) -> Tensor:
    return torch.zeros_like(weight) if weight.grad is None else weight.grad
