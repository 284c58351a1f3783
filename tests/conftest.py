"""For all tests: one thread, a cache of their own, workers of data builds that are forked, long rooms first.

A cache of their own, as layouts follow from what this machine was measured to do and from runs on it.
One thread, as on tiny tensors several only wait for each other. Left to itself, pytest-xdist begins with the
files of many tests, so that those of one or two, which start processes and take half a minute, come last, and
one core waits for the other's last file.
"""

import os
from collections.abc import Iterator

import pytest
import torch
from making_forks import forked_workers

_LONG_FIRST = ("distributed", "factory", "check", "launch", "train", "parallel", "finetune", "measure")

torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # of pytest-xdist
    os.environ["XDG_CACHE_HOME"] = str(config.cache.mkdir("bessemer")) if config.cache else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {room: place for place, room in enumerate(_LONG_FIRST)}
    items.sort(key=lambda item: places.get(item.path.parent.name, len(places)))


@pytest.fixture(scope="session", autouse=True)
def workers() -> Iterator[None]:
    with forked_workers():
        yield
