"""A cache of measurements of its own, so that nothing is measured here; and one recipe for all."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from making_runs import own_cache, write_recipe

SIZES = {"layers": 4, "hidden": 32, "ffn": 48, "context": 32, "batch_tokens": 256}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with own_cache(tmp_path_factory.mktemp("cache")):
        yield


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 rows a step, in micro-batches of 2. Its data is prepared once, beside it."""
    return write_recipe(tmp_path_factory.mktemp("recipe"), sizes=SIZES)
