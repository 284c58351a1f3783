"""A cache of measurements of its own for all runs of these tests."""

from collections.abc import Iterator

import pytest
from making_runs import own_cache


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with own_cache(tmp_path_factory.mktemp("cache")):
        yield
