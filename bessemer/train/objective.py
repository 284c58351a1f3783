"""The loss of a stage: what `build` gives the engine for the plan's objective (formulas/objective.py)."""

from functools import partial

from bessemer.formulas.objective import Objective
from bessemer.formulas.shape import ModelShape
from bessemer.model.loss import ChunkFunction
from bessemer.parallel.engine import Loss, summed_loss
from bessemer.parallel.mesh import Mesh
from bessemer.parallel.vocabulary import split_head


def loss_of(objective: Objective, shape: ModelShape, mesh: Mesh, chunk: ChunkFunction | None) -> Loss:
    """Summed over what the objective's mean is over, of this rank's share of a micro-batch.

    chunk: a compiled `loss_chunk`.
    """
    assert objective.kind == "next_token", objective.kind
    return partial(summed_loss, chunk=chunk, head=split_head(mesh, shape.vocab))
