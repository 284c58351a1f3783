"""The reference of a preference stage: what its own first weights make of every answer, before they change.

One forward pass over all rows by all ranks, under the stage's layout; the sums are kept in the stage's
folder (data/reference.py) and read by every later attempt, so that a run that goes on learns from the same
numbers, bit for bit. Chosen over a second copy of the model, which would cost its memory and a forward pass
in every step: this one is paid once, a third of an epoch's FLOPs. It is not part of the energy that a step
is charged with.
In a pipeline the last stage alone sees hidden states: the engine runs a loss that notes its sums and is 0.
Dims: B rows, T tokens.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from bessemer.checkpoint.folder import listed
from bessemer.data.loader import MicroBatch, micro_batch
from bessemer.data.prepared import PreparedTask, Split
from bessemer.data.reference import SPLITS, Sums, has_reference, read_reference, write_reference
from bessemer.data.rows import Rows
from bessemer.errors import DataError
from bessemer.formulas.objective import Objective
from bessemer.log import Console
from bessemer.model.decoder import Decoder
from bessemer.parallel.documents import Neighbours, neighbours_of
from bessemer.parallel.engine import Engine
from bessemer.parallel.mesh import Mesh
from bessemer.parallel.objectives import document_scores
from bessemer.parallel.shard import free_gathered
from bessemer.train.ranks import Company
from bessemer.train.stage import Stage

_TURN = "turn"  # column that tells which micro-batch of a round the engine is at


def keep_reference(stage: Stage, engine: Engine, mesh: Mesh, company: Company, console: Console) -> None:
    """See to it that the files are there: computed where the stage has not begun to train, else checked."""
    assert isinstance(stage.data, PreparedTask)
    data, folder = stage.data, stage.folder

    def look() -> dict[str, bool]:
        if has_reference(folder):
            for split in SPLITS:
                read_reference(folder, data, split)
        elif listed(folder):
            raise _lost(stage)
        return {"there": has_reference(folder)}

    if company.first_does("reference", look)["there"]:
        return
    neighbours = neighbours_of(mesh, stage.shape.vocab)
    found: dict[Split, Sums] = {}
    for split in SPLITS:
        rows = data.rows(split, stage.plan.context, stage.examples if split == "train" else None)
        console.line(f"{folder.name}: what the first weights make of {len(rows):,} rows ({split})")
        size, documents = stage.plan.micro_batch, data.num_documents(split)
        found[split] = document_sums_of(engine, mesh, neighbours, rows, documents, size)

    def write() -> dict[str, bool]:
        write_reference(folder, found)
        return {}

    company.first_does("reference written", write)


@torch.no_grad()
def document_sums_of(
    engine: Engine, mesh: Mesh, neighbours: Neighbours, rows: Rows, num_documents: int, size: int
) -> Sums:
    """Summed log-probability of the targets of each document of these rows, by its number in the split.

    size: rows of a micro-batch. 0 for documents that no row shows.
    """
    sums = np.zeros(num_documents, dtype=np.float32)
    note, usual = _Note(neighbours), engine.loss
    engine.loss = note
    try:
        in_round = engine.in_turn * engine.data_ranks * size
        for begin in range(0, len(rows), in_round):
            for number, sums_T in _round(engine, mesh, note, rows, begin, size):
                for document, first, _ in rows.documents(number):
                    sums[document] = sums_T[first]
    finally:
        engine.loss = usual
        free_gathered(engine.model)
    return sums


@dataclass
class _Note:
    """A loss of 0 that keeps the sums of the documents, on ranks of the last stage."""

    neighbours: Neighbours
    seen: dict[int, Tensor] = field(default_factory=dict)  # [B, T], by turn

    def __call__(self, model: nn.Module, part: MicroBatch, hidden_BTD: Tensor | None = None) -> Tensor:
        assert isinstance(model, Decoder), model
        sums_BT = document_scores(Objective("dpo"), self.neighbours, model, part, hidden_BTD)
        self.seen[int(part.columns[_TURN][0])] = sums_BT
        return sums_BT.new_zeros(())


def _round(
    engine: Engine, mesh: Mesh, note: _Note, rows: Rows, begin: int, size: int
) -> list[tuple[int, np.ndarray]]:
    """(number of a row, sums [T]) of as many rows from `begin` on as all ranks take at once."""
    turns, context = range(engine.in_turn), rows.row(0).tokens_T.shape[0]
    firsts = [begin + (turn * engine.data_ranks + engine.data_rank) * size for turn in turns]
    parts = []
    for turn, first in zip(turns, firsts, strict=True):
        part = micro_batch(rows, range(min(first, len(rows)), min(first + size, len(rows))), size)
        parts.append(replace(part, columns={**part.columns, _TURN: torch.full((size,), turn)}))
    note.seen = {}
    engine.forward(parts)
    whole = torch.zeros((engine.in_turn, engine.data_ranks, size, context), device=engine.device)
    if mesh.place("tensor") == mesh.place("context") == 0:  # the others have seen the same
        for turn, sums_BT in note.seen.items():
            whole[turn, engine.data_rank] = sums_BT
    every = engine.summed(whole).flatten(0, 2).cpu().numpy()
    return [(begin + place, every[place]) for place in range(min(len(every), len(rows) - begin))]


def _lost(stage: Stage) -> DataError:
    return DataError(
        f"{stage.folder} has lost the log-probabilities of its reference",
        found="checkpoints, and no reference.json",
        wanted="the reference that its first steps were measured from",
        fix=f"put reference.json and reference-*.npy back, or remove {stage.folder} and begin again",
    )
