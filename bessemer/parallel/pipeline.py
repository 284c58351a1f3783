"""The pipeline axis: each rank has some stages of the model, and micro-batches travel through them.

The order of work is a table made beforehand (formulas/schedule.py) and followed to the letter. Hidden
states go forwards, their gradients backwards, as plain tensors whose shape every rank knows; tokens,
masks and targets do not travel, since every rank of a pipeline reads the same rows itself.

Not torch.distributed.pipelining: it sends shapes as pickles, and its split backward pass cuts through
autograd's graph, which trains wrongly on sharded weights. Here weight gradients wait in the layers
(model/deferred.py), and sharded gradients are reduced once, after a stage's last one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from bessemer.formulas.layout import split_evenly
from bessemer.formulas.passes import pass_lengths
from bessemer.formulas.schedule import Action, forward_order, pipeline_order, splits_backward
from bessemer.model.decoder import Decoder
from bessemer.model.deferred import Deferral, set_deferring
from bessemer.parallel.mesh import Mesh
from bessemer.parallel.shard import hold_gradients, release_gradients

# Of micro-batch `number` on a stage, from the hidden states of the stage before: hidden states, or on the
# last stage the summed loss.
Forward = Callable[[Decoder, int, Tensor | None], Tensor]


@dataclass
class _Kept:
    """A micro-batch between its forward and its backward pass on a stage."""

    received: Tensor | None
    output: Tensor


class Pipeline:
    """This rank's stages, and the mail between them and the stages of other ranks."""

    def __init__(self, stages: Sequence[Decoder], mesh: Mesh, rows: int, context: int) -> None:
        """rows of a micro-batch, and tokens in a whole row: what travels is [rows, own tokens, D]."""
        self.mesh, self.layout = mesh, mesh.layout
        self.place = mesh.place("pipeline")
        self.stages = dict(zip(self.layout.stages_of(self.place), stages, strict=True))
        tokens = len(
            split_evenly(context // mesh.degree["context"], mesh.degree["tensor"])[mesh.place("tensor")]
        )
        trunk = stages[0].model
        self._lengths = pass_lengths(trunk.shape, context, trunk.recompute)
        self._size, self._dtype = (rows, tokens, stages[0].shape.hidden), stages[0].compute
        self._mail = _Mail(mesh)

    def forward_backward(self, forward: Forward, micro_batches: int, scale: Tensor) -> Tensor:
        """All micro-batches of a step; gradients of loss × scale are in the weights after it.

        Returns the summed loss, 0 on ranks without the last stage.
        """
        orders = pipeline_order(self.layout, micro_batches, self._lengths)
        loss = torch.zeros((), dtype=torch.float32, device=self.mesh.device)
        kept: dict[tuple[int, int], _Kept] = {}
        waiting: dict[tuple[int, int], Deferral] = {}
        splits = splits_backward(self.layout)
        set_deferring(splits)
        for model in self.stages.values():
            hold_gradients(model)
        try:
            self._mail.open(orders, self)
            for action in orders[self.place]:
                key = action.stage, action.micro_batch
                if action.kind == "F":
                    kept[key] = self._forward(action, forward)
                    if self._is_last(action.stage):
                        loss += kept[key].output.detach()
                elif action.kind == "B" and splits:
                    with Deferral() as waiting[key]:
                        self._backward(action, kept.pop(key), scale)
                elif action.kind == "B":
                    self._backward(action, kept.pop(key), scale)
                elif splits:
                    waiting.pop(key).run()
            self._mail.close()
        finally:
            set_deferring(False)
        for model in self.stages.values():
            release_gradients(model)
        return loss

    def forward_only(self, forward: Forward, micro_batches: int) -> Tensor:
        """The summed loss of some micro-batches, fp64; 0 on ranks without the last stage."""
        orders = forward_order(self.layout, micro_batches)
        loss = torch.zeros((), dtype=torch.float64, device=self.mesh.device)
        self._mail.open(orders, self)
        for action in orders[self.place]:
            output = self._forward(action, forward).output
            if self._is_last(action.stage):
                loss += output.double()
        self._mail.close()
        return loss

    def _forward(self, action: Action, forward: Forward) -> _Kept:
        received = None
        if action.stage > 0:
            received = self._mail.receive(Action("F", action.stage - 1, action.micro_batch))
            received.requires_grad_(torch.is_grad_enabled())
        output = forward(self.stages[action.stage], action.micro_batch, received)
        if not self._is_last(action.stage):
            self._mail.send(action, output.detach())
        return _Kept(received, output)

    def _backward(self, action: Action, kept: _Kept, scale: Tensor) -> None:
        if self._is_last(action.stage):
            gradient = scale
        else:
            gradient = self._mail.receive(Action("B", action.stage + 1, action.micro_batch))
        if not kept.output.requires_grad:  # a first stage in which nothing learns
            return
        torch.autograd.backward(kept.output, gradient)
        if kept.received is not None:
            assert kept.received.grad is not None, f"{action}: no gradient of what was received"
            self._mail.send(action, kept.received.grad)

    def _is_last(self, stage: int) -> bool:
        return stage == self.layout.num_stages - 1

    def empty(self) -> Tensor:
        return torch.empty(self._size, dtype=self._dtype, device=self.mesh.device)


class _Mail:
    """Messages between stages, in the order in which their senders make them.

    A message is named by the action that makes it. Between two ranks and in one direction, messages are
    received in the order of sending, which is all that NCCL promises; one that is not wanted yet waits in
    its buffer.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._place = mesh.place("pipeline")
        self._here: dict[Action, Tensor] = {}
        self._expected: dict[int, list[Action]] = {}
        self._arriving: dict[Action, tuple[Tensor, dist.Work]] = {}
        self._sent: list[tuple[Tensor, dist.Work]] = []

    def open(self, orders: list[list[Action]], pipeline: Pipeline) -> None:
        """Note who will send what. All mail of the step before has arrived."""
        assert not (self._here or self._arriving), "mail was left over"
        self._empty = pipeline.empty
        self._expected = {
            place: [action for action in order if self._receiver(action) == self._place]
            for place, order in enumerate(orders)
            if place != self._place
        }

    def send(self, action: Action, tensor: Tensor) -> None:
        place = self._receiver(action)
        assert place is not None
        if place == self._place:
            self._here[action] = tensor
            return
        self._sent = [(kept, work) for kept, work in self._sent if not work.is_completed()]
        tensor = tensor.contiguous()
        work = dist.isend(tensor, self._mesh.pipeline_peer(place), group=self._group(self._place, place))
        assert work is not None
        self._sent.append((tensor, work))  # the buffer must live until it is gone

    def receive(self, action: Action) -> Tensor:
        if action in self._here:
            return self._here.pop(action)
        place = self._mesh.layout.rank_of_stage(action.stage)
        while action not in self._arriving:
            next_ = self._expected[place].pop(0)
            buffer = self._empty()
            peer, group = self._mesh.pipeline_peer(place), self._group(place, self._place)
            work = dist.irecv(buffer, peer, group=group)
            assert work is not None
            self._arriving[next_] = buffer, work
        buffer, work = self._arriving.pop(action)
        work.wait()
        return buffer

    def close(self) -> None:
        for _, work in self._sent:
            work.wait()
        self._sent = []
        left = [action for actions in self._expected.values() for action in actions]
        assert not (left or self._here or self._arriving), f"mail never fetched: {left[:3]}"

    def _receiver(self, action: Action) -> int | None:
        """The pipeline rank that wants what `action` makes; None: nobody."""
        layout = self._mesh.layout
        stage = action.stage + 1 if action.kind == "F" else action.stage - 1
        if action.kind == "W" or not 0 <= stage < layout.num_stages:
            return None
        return layout.rank_of_stage(stage)

    def _group(self, sender: int, receiver: int) -> dist.ProcessGroup:
        assert self._mesh.directions is not None
        return self._mesh.directions[receiver > sender]
