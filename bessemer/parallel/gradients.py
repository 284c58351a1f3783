"""What is left to do with gradients after the backward passes: partial sums, ties, norm, clipping.

Sharded and repeated weights were summed already, by FSDP or parallel/replicate.py. Here: weights that the
tensor axis does not split, whose gradients are each rank's share; the head that is tied to an embedding on
another stage; and the global norm, in which every element counts once.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bessemer.formulas.shape import ModelShape
from bessemer.model.pieces import Pieces, local
from bessemer.parallel.mesh import Group, Mesh
from bessemer.parallel.pieces import copied_over_tensor


class Gradients:
    """Of one rank's parameters, in a fixed order."""

    def __init__(self, models: nn.Module, shape: ModelShape, pieces: Pieces, mesh: Mesh) -> None:
        named = [(name, weight) for name, weight in models.named_parameters() if weight.requires_grad]
        self._weights = [weight for _, weight in named]
        self._counted = [weight for name, weight in named if any(piece.saved for piece in pieces[name])]
        self._tensor = mesh.group("tensor")
        self._partial: list[nn.Parameter] = []
        if self._tensor is not None:
            copied = copied_over_tensor(shape)
            self._partial = [
                weight for name, weight in named if any(piece.name in copied for piece in pieces[name])
            ]
        self._tied: list[nn.Parameter] = []
        if shape.tie_embeddings and mesh.layout.pipeline > 1:
            self._tied = [weight for name, weight in named if name.endswith("embed_tokens.weight")]
        self._ends = _ends_group(mesh) if shape.tie_embeddings else None

    def finish(self) -> Tensor:
        """Sum what is partial; returns this rank's share of the squared global norm, fp64."""
        if self._tensor is not None and self._partial:
            _sum(_gradients(self._partial), self._tensor)
        if len(self._tied) == 2:  # both ends on one rank
            one, other = _gradients(self._tied)
            one += other
            other.copy_(one)
        elif self._tied and self._ends is not None:
            _sum(_gradients(self._tied), self._ends)
        counted = _gradients(self._counted)
        if not counted:
            return torch.zeros((), dtype=torch.float64, device=local(self._weights[0]).device)
        return torch.stack(torch._foreach_norm(counted)).double().square().sum()

    def clip(self, norm: float, most: float | None) -> None:
        """Scale all gradients so that their global norm is at most `most`."""
        if most is not None and norm > most:
            torch._foreach_mul_(_gradients(self._weights), most / (norm + 1e-6))


def clip_gradients(parameters: Sequence[Tensor], most: float | None) -> Tensor:
    """In one process: scale all gradients so that their global L2 norm is at most `most`.

    Returns the norm before.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if most is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return norm


def _gradients(weights: Sequence[nn.Parameter]) -> list[Tensor]:
    return [local(weight.grad) for weight in weights if weight.grad is not None]


def _sum(gradients: list[Tensor], group: Group) -> None:
    """One exchange for all: there are many, and they are small."""
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat, group=group)
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def _ends_group(mesh: Mesh) -> Group | None:
    """First and last stage of each pipeline, where they are on different ranks. Made by every rank."""
    layout = mesh.layout
    last = layout.rank_of_stage(layout.num_stages - 1)
    if layout.pipeline == 1 or last == 0:
        return None
    below, mine = layout.world // layout.pipeline, None
    for first in range(below):
        ranks = [first, first + last * below]
        group = dist.new_group(ranks)
        if mesh.rank in ranks:
            mine = group
    return mine
