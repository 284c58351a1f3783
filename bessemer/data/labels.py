"""Which documents prepared data holds, in the order of its tokens: read from what lies beside the shards."""

from typing import Any

from bessemer.data.prepared import Prepared, PreparedTask, Split
from bessemer.data.task import WHAT
from bessemer.data.tokens.sidecar import read_sidecar

LABELS = ("source", "id", "group", "licence", "origin")


def labels(prepared: Prepared | PreparedTask, split: Split) -> list[dict[str, Any]]:
    """A row a document: source, id, group, and of pre-training data licence and origin."""
    if isinstance(prepared, PreparedTask):
        return [{"source": WHAT, "id": row[0], "group": row[1]} for row in prepared.lines(split)]
    rows: list[dict[str, Any]] = []
    for stems in prepared.stems(split):
        for stem in stems:
            rows += read_sidecar(stem, LABELS).to_pylist()
    return rows
