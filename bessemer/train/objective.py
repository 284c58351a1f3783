"""The loss of a stage: what `build` gives the engine for the plan's objective (formulas/objective.py)."""

from functools import partial

from bessemer.formulas.objective import PREFERENCES, Objective
from bessemer.formulas.shape import ModelShape
from bessemer.model.loss import ChunkFunction
from bessemer.parallel.documents import neighbours_of
from bessemer.parallel.engine import Loss, summed_loss
from bessemer.parallel.mesh import Mesh
from bessemer.parallel.objectives import ClassLoss, PairLoss
from bessemer.parallel.token_losses import PolicyLoss, TeacherLoss
from bessemer.parallel.vocabulary import split_head


def loss_of(objective: Objective, shape: ModelShape, mesh: Mesh, chunk: ChunkFunction | None) -> Loss:
    """Summed over what the objective's mean is over, of this rank's share of a micro-batch.

    chunk: a compiled `loss_chunk`.
    """
    if objective.kind == "next_token":
        return partial(summed_loss, chunk=chunk, head=split_head(mesh, shape.vocab))
    neighbours = neighbours_of(mesh, shape.vocab, whole_head=shape.labels > 0)
    if objective.kind in PREFERENCES:
        return PairLoss(objective, neighbours)
    if objective.kind == "distill":
        return TeacherLoss(neighbours, shape.vocab)
    if objective.kind == "grpo":
        return PolicyLoss(objective, neighbours)
    assert objective.kind == "classify", objective.kind
    return ClassLoss(objective, neighbours)
