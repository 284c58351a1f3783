"""One pool of processes for all tests of the parallel room."""

from collections.abc import Iterator

import pytest
from making_ranks import Pool


@pytest.fixture(scope="session")
def ranks() -> Iterator[Pool]:
    pool = Pool()
    yield pool
    pool.close()
