"""What a worker can be asked to do. A task is JSON; what it gives is files under the store."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bessemer.data.factory.columns import read_texts
from bessemer.data.factory.encode import encode
from bessemer.data.factory.stages import Announce, documents
from bessemer.data.tokens.words import count_words, write_counts


def run_task(task: dict[str, Any], announce: Announce) -> dict[str, Any]:
    """Raises UserError for what the user can mend."""
    kinds: dict[str, Callable[[dict[str, Any], Announce], dict[str, Any]]] = {
        "documents": documents,
        "words": words,
        "encode": encode,
    }
    return kinds[task["kind"]](task, announce)


def words(task: dict[str, Any], _: Announce) -> dict[str, Any]:
    """How often each word occurs in the part's documents that are trained on."""
    path = Path(task["files"]["words"])
    if not path.exists():
        chosen = np.fromfile(task["files"]["mask"], dtype=np.uint8) == task["split"]
        write_counts(path, count_words(_chosen(task, chosen)))
    return {}


def _chosen(task: dict[str, Any], chosen: np.ndarray) -> Iterator[pa.Array]:
    begin = 0
    for batch in read_texts(Path(task["files"]["read"]), Path(task["files"]["clean"])):
        yield batch["text"].filter(pa.array(chosen[begin : begin + batch.num_rows])).drop_null()
        begin += batch.num_rows
