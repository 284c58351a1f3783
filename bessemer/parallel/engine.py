"""What the training loop asks of the ranks: run micro-batches, add up, agree. One process is the simple case.

`summed_loss` is what a `Decoder` is trained on; a module of your own brings its own loss.
The loop is the same under every layout. A rank sees its own rows; losses, norms and requests to stop are
added over all ranks once a step, in one exchange of three numbers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bessemer.data.loader import MicroBatch
from bessemer.formulas.shape import ModelShape
from bessemer.model.decoder import Decoder
from bessemer.model.loss import ChunkFunction, Head, next_token_loss
from bessemer.model.moe import MoE, update_bias
from bessemer.model.pieces import Pieces
from bessemer.parallel.apply import joined
from bessemer.parallel.collectives import all_gather
from bessemer.parallel.gradients import Gradients, clip_gradients
from bessemer.parallel.mesh import Mesh
from bessemer.parallel.pieces import held_pieces
from bessemer.parallel.pipeline import Pipeline
from bessemer.parallel.replicate import ReplicaSums
from bessemer.parallel.shard import before_backward

# Summed loss [nat] of a micro-batch; with hidden states, that of the last stage of a pipeline.
Loss = Callable[..., Tensor]


class Engine:
    """One process, any module and loss. `Ranks` is the same for a rank of a layout."""

    rank, world = 0, 1
    data_rank, data_ranks = 0, 1
    in_turn = 1  # micro-batches that a forward pass without gradients takes at once
    pieces: Pieces | None = None  # None: whole tensors

    def __init__(self, model: nn.Module, loss: Loss, balance: float = 0.0) -> None:
        """balance: weight of the balance of experts, where the model has any."""
        self.model, self.loss, self._balance = model, loss, balance
        self._experts = [module for module in model.modules() if isinstance(module, MoE)]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def total(self, count: int) -> Tensor:
        """A number that this rank's rows have, over all rows: a scalar, fp64, that nobody waits for yet."""
        return torch.full((), float(count), dtype=torch.float64, device=self.device)

    def forward_backward(self, parts: Sequence[MicroBatch], num_targets: Tensor) -> Tensor:
        """Gradients of the mean loss over `num_targets`, of the whole step; returns this rank's share of the
        summed loss."""
        loss, scale = self._zero(torch.float32), self._scale(num_targets)
        for part in parts:
            summed = self.loss(self.model, self._ready(part, scale))
            summed.backward(scale)
            loss += summed.detach()
        return loss

    def forward(self, parts: Sequence[MicroBatch]) -> Tensor:
        """This rank's share of the summed loss of some micro-batches, fp64. No gradients."""
        loss = self._zero(torch.float64)
        for part in parts:
            loss += self.loss(self.model, part.to(self.device)).double()
        return loss

    def summed(self, share: Tensor) -> Tensor:
        """Of every rank's share."""
        return share

    def finish(
        self, loss: Tensor, num_targets: Tensor, most: float | None, stop: bool
    ) -> tuple[float, float, bool]:
        """Clip, and agree on (mean loss, gradient norm before clipping, whether any rank is to stop)."""
        clipped = clip_gradients(self.parameters, most)
        # Of a step without any target the mean is NaN, not 0: the loop refuses it.
        mean, norm = torch.stack([loss.double() / num_targets, clipped.double()]).tolist()
        return mean, norm, stop

    def any(self, flag: bool) -> bool:
        """Whether it holds on any rank."""
        return flag

    def each_rank(self, values: list[float]) -> list[list[float]]:
        """Every rank's values, in order of ranks."""
        return [values]

    def after_update(self) -> None:
        """Move the routers' biases by what the whole step chose."""
        balanced = [module for module in self._experts if module.gate.has_bias]
        if not balanced:
            return
        chosen_LE = self._chosen(torch.stack([module.chosen_E for module in balanced]))
        for module, chosen_E in zip(balanced, chosen_LE, strict=True):
            update_bias(module, chosen_E, self._balance)

    def _chosen(self, chosen_LE: Tensor) -> Tensor:
        """Over all rows, from those of this rank. L: layers."""
        return chosen_LE

    def _zero(self, dtype: torch.dtype) -> Tensor:
        return torch.zeros((), dtype=dtype, device=self.device)

    def _scale(self, num_targets: Tensor) -> Tensor:
        """What turns a summed loss into its share of the mean, fp32."""
        return num_targets.clamp(min=1.0).reciprocal().float()

    def _ready(self, part: MicroBatch, scale: Tensor) -> MicroBatch:
        """On the device, and with the rows' weights in the balance of experts: what their loss counts for."""
        part = part.to(self.device)
        if not self._experts:
            return part
        return replace(part, balance_B=part.units_B.float() * scale * self._balance)


class Ranks(Engine):
    """A rank of a layout with more than one: its parts of the model, among the others."""

    def __init__(
        self,
        parts: Sequence[Decoder],
        loss: Loss,
        mesh: Mesh,
        shape: ModelShape,
        *,
        micro_batch: int,
        context: int,
        balance: float = 0.0,
    ) -> None:
        super().__init__(joined(list(parts)), loss, balance)
        self.mesh, self.rank, self.world = mesh, mesh.rank, mesh.layout.world
        self.data_ranks = mesh.layout.data
        self.data_rank = mesh.place("replicate") * mesh.layout.shard + mesh.place("shard")
        self.pieces = held_pieces(self.model, shape, mesh)
        self._gradients = Gradients(self.model, shape, self.pieces, mesh)
        replicas = mesh.group("replicate")
        self._sums = ReplicaSums(parts[0], replicas) if replicas and mesh.layout.repeats_weights else None
        self._pipeline = Pipeline(parts, mesh, micro_batch, context) if mesh.layout.pipeline > 1 else None
        self.in_turn = (
            4 * mesh.layout.pipeline if self._pipeline else 1
        )  # so that stages work at the same time
        # Ranks of the tensor axis compute the same loss, each of all its tokens.
        self._counts = mesh.place("tensor") == 0

    @property
    def device(self) -> torch.device:
        return self.mesh.device

    def total(self, count: int) -> Tensor:
        total = super().total(count)
        dist.all_reduce(total)
        # Ranks of one row, along pipeline, tensor and context, have all read and counted it.
        return total / (self.mesh.layout.world // self.data_ranks)

    def forward_backward(self, parts: Sequence[MicroBatch], num_targets: Tensor) -> Tensor:
        scale = self._scale(num_targets)
        ready = [self._ready(part, scale) for part in parts]
        if self._pipeline is not None:
            loss = self._pipeline.forward_backward(self._forward(ready), len(parts), scale)
            return loss if self._counts else torch.zeros_like(loss)
        loss = self._zero(torch.float32)
        for number, part in enumerate(ready):
            last = number == len(ready) - 1
            before_backward(self.model, self.mesh, last=last)
            summed = self.loss(self.model, part)
            if last and self._sums is not None:
                self._sums.begin()
            summed.backward(scale)
            loss += summed.detach()
        if self._sums is not None:
            self._sums.finish()
        return loss if self._counts else torch.zeros_like(loss)

    def forward(self, parts: Sequence[MicroBatch]) -> Tensor:
        ready = [part.to(self.device) for part in parts]
        if self._pipeline is not None:
            loss = self._pipeline.forward_only(self._forward(ready), len(ready))
        else:
            loss = self._zero(torch.float64)
            for part in ready:
                loss += self.loss(self.model, part).double()
        return loss if self._counts else torch.zeros_like(loss)

    def summed(self, share: Tensor) -> Tensor:
        dist.all_reduce(share)
        return share

    def finish(
        self, loss: Tensor, num_targets: Tensor, most: float | None, stop: bool
    ) -> tuple[float, float, bool]:
        squares = self._gradients.finish()
        sums = torch.stack([loss.double(), squares, torch.full_like(squares, float(stop))])
        dist.all_reduce(sums)
        summed, square, stops, count = self._read(torch.cat([sums, num_targets.reshape(1)]))
        norm = square**0.5
        self._gradients.clip(norm, most)
        return summed / count if count else math.nan, norm, stops > 0

    def any(self, flag: bool) -> bool:
        flags = torch.full((), float(flag), device=self.device)
        dist.all_reduce(flags)
        return float(flags) > 0

    def each_rank(self, values: list[float]) -> list[list[float]]:
        own = torch.tensor(values, dtype=torch.float64, device=self.device)
        every = all_gather(own, _everyone())
        return every.view(self.world, -1).tolist()

    def _read(self, values: Tensor) -> list[float]:
        """The one wait for the device in a step."""
        return values.tolist()

    def _forward(self, parts: Sequence[MicroBatch]) -> Any:
        def forward(model: Decoder, number: int, hidden_BTD: Tensor | None) -> Tensor:
            part = parts[number]
            if model.part.last:
                return self.loss(model, part, hidden_BTD=hidden_BTD)
            return model(part.tokens_BT, part.starts_BT, hidden_BTD=hidden_BTD, balance_B=part.balance_B)

        return forward

    def _chosen(self, chosen_LE: Tensor) -> Tensor:
        for axis in ("replicate", "fsdp"):
            group = self.mesh.group(axis)
            if group is not None:
                dist.all_reduce(chosen_LE, group=group)
        return chosen_LE


def summed_loss(
    model: nn.Module,
    part: MicroBatch,
    chunk: ChunkFunction | None = None,
    head: Head | None = None,
    hidden_BTD: Tensor | None = None,
) -> Tensor:
    """The loss of next tokens that a `Decoder` is trained on. `chunk`: a compiled `loss_chunk`.

    head: of a rank that has a part of it. hidden_BTD: what the pipeline's stage before gave.
    """
    assert isinstance(model, Decoder), "a model of your own needs a loss of your own"
    out_BTD = model(part.tokens_BT, part.starts_BT, hidden_BTD=hidden_BTD, balance_B=part.balance_B)
    targets_BT = model.model.rows.local(part.targets_BT)
    return next_token_loss(out_BTD.flatten(0, 1), model.head_weight, targets_BT.flatten(), chunk, head)


def _everyone() -> dist.ProcessGroup:
    group = dist.group.WORLD
    assert group is not None, "no process group"
    return group
