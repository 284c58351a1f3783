"""Files for the data tests, and one rendering of a part of Python's library for all of them."""

from pathlib import Path

import pytest
from making import MODULES, QUIET, TEXTS

from bessemer.data.gathered.stdlib import gather


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of Python's library, rendered."""
    return gather(tmp_path_factory.mktemp("gathered"), QUIET, MODULES)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder with texts/00.txt … of different contents. Returns the folder above."""
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(TEXTS):
        (tmp_path / "texts" / f"{number:02d}.txt").write_text(text, encoding="utf-8")
    return tmp_path
