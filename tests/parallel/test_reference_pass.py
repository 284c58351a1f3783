"""The reference's log-probability of every document, computed by the ranks of a layout together."""

from typing import Any

import pytest
import torch
from making_layouts import CONTEXT, SHAPES, layout_of
from making_preferences import PairRows, log_prob
from making_ranks import Pool, Result
from making_runs import tiny_model
from making_steps import Step, make_engine

from bessemer.parallel.documents import neighbours_of
from bessemer.parallel.mesh import Mesh
from bessemer.train.reference import document_sums_of

ROWS = 7  # no multiple of what the ranks take at once


def run_pass(rank: int, shape: str, layout: str) -> Result:
    chosen = layout_of(layout)
    mesh = Mesh(chosen, torch.device("cpu"))
    engine, sizes = make_engine(Step(shape, layout), chosen, mesh)
    rows, usual = PairRows(ROWS, sizes), engine.loss
    found = document_sums_of(engine, mesh, neighbours_of(mesh, sizes.vocab), rows, _documents(rows), 2)
    return {"sums": torch.from_numpy(found), "restored": engine.loss is usual}


def _documents(rows: PairRows) -> int:
    return 2 * sum(len(pairs) for pairs in rows.pairs)


@pytest.mark.parametrize(
    "layout",
    [
        "replicate=1",
        "shard=2",
        "context=2,tensor=2",
        pytest.param("tensor=2,pipeline=2", marks=pytest.mark.slow),
        pytest.param("pipeline=2,schedule=zbv", marks=pytest.mark.slow),
        pytest.param("shard=2,context=2,pipeline=2", marks=pytest.mark.slow),
    ],
)
def test_every_rank_gets_the_sums_of_all_documents(layout: str, ranks: Pool) -> None:
    shape = SHAPES["dense"]
    rows, model = PairRows(ROWS, shape), tiny_model(shape, seed=1)
    assert shape.context == CONTEXT
    documents: list[Any] = [d for pairs in rows.pairs for pair in pairs for d in (pair.chosen, pair.rejected)]
    with torch.no_grad():
        wanted = torch.stack([log_prob(model, document)[0] for document in documents])
    for result in ranks.run(run_pass, layout_of(layout).world, shape="dense", layout=layout):
        torch.testing.assert_close(result["sums"], wanted, rtol=1e-5, atol=1e-5)
        assert result["restored"]
