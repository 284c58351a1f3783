"""Which documents prepared data holds, in the order of its tokens: read from what lies beside the shards."""

from typing import Any

from bessemer.data.prepared import Prepared, PreparedTask, Split
from bessemer.data.task import WHAT
from bessemer.data.tokens.sidecar import read_sidecar

LABELS = ("source", "id", "group", "licence", "origin")


def labels(prepared: Prepared | PreparedTask, split: Split) -> list[dict[str, Any]]:
    """A row a document: source, id, group; of pre-training data licence and origin; of a pair which of both,
    of a class its label."""
    if isinstance(prepared, PreparedTask):
        names, is_pair = prepared.labels, prepared.task_format == "preference"
        return [
            {
                "source": WHAT,
                "id": line["id"],
                "group": line["group"],
                **({"role": ("chosen", "rejected")[number]} if is_pair else {}),
                **({"label": names[line["label"]]} if "label" in line else {}),
            }
            for line in prepared.lines(split)
            for number in range(line["documents"])
        ]
    rows: list[dict[str, Any]] = []
    for stems in prepared.stems(split):
        for stem in stems:
            rows += read_sidecar(stem, LABELS).to_pylist()
    return rows
