"""Which row each sample of a run is: asked of the mixture, which computes it from seed and place alone.

    python docs/examples/order.py RECIPE DATA [FIRST [LAST]]

Prints place, step, source and row of the samples FIRST to LAST (0 to 7). No sample before them is computed,
and nothing is trained.
"""

import sys
from pathlib import Path

import numpy as np

from bessemer.data.prepared import Prepared, open_prepared
from bessemer.recipe.load import load


def order(recipe_file: str, folder: str, first: int, last: int) -> list[tuple[int, str, int]]:
    """(place, source, row among the source's) of each sample from `first` to `last`."""
    recipe, prepared = load(recipe_file, []).recipe, open_prepared(Path(folder))
    assert isinstance(prepared, Prepared), f"{folder}: examples of a task have no mixture"
    context = recipe.model.context
    mixture = prepared.mixture(recipe.data, context)
    rows, places = prepared.rows("train", context), np.arange(first, last + 1)
    sources, _ = mixture.places(places)
    begins = np.cumsum([0, *(-(-len(stream.tokens) // context) for stream in prepared.streams("train"))])
    read = rows.samples(mixture, recipe.seed, places)
    names = [source["name"] for source in prepared.manifest["sources"]]
    return [
        (place, names[source], int(row - begins[source]))
        for place, source, row in zip(places.tolist(), sources.tolist(), read, strict=True)
    ]


if __name__ == "__main__":
    first, last = [*map(int, sys.argv[3:]), 0, 7][:2] if len(sys.argv) != 4 else (int(sys.argv[3]),) * 2
    for place, source, row in order(sys.argv[1], sys.argv[2], first, last):
        print(f"sample {place}: {source}, row {row}")
