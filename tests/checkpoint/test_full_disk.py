"""A disk that is full while a checkpoint is written: a clear error, and the older ones stay good."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from making_checkpoints import saved
from making_processes import ROOT, fill, small_disk

from bessemer.checkpoint.folder import newest_good
from bessemer.errors import WriteError


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk") as disk:
        yield disk


def test_full_disk_is_a_write_error_and_older_checkpoints_stay_good(disk: Path) -> None:
    stage = disk / "pretrain"
    (older,) = saved(stage, 5)
    filler = fill(disk, leave=100_000)
    with pytest.raises(WriteError) as caught:
        saved(stage, 10)
    assert caught.value.exit_code == 73 and "space" in caught.value.found
    assert newest_good(stage, pytest.fail)[0] == older
    filler.unlink()
    saved(stage, 10)
    assert newest_good(stage, pytest.fail)[1].step == 10


def test_file_size_limit_is_a_write_error_and_older_checkpoints_stay_good(tmp_path: Path) -> None:
    """A limit of the process stands in for a full disk where none can be mounted."""
    code = """
import resource, signal, sys, torch
from pathlib import Path
from bessemer.checkpoint.write import save
from bessemer.errors import WriteError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
model = torch.nn.Linear(100, 100)
parts = model, torch.optim.AdamW(model.parameters())
save(Path(sys.argv[1]), 5, *parts, {}, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    save(Path(sys.argv[1]), 10, *parts, {}, {})
except WriteError as error:
    sys.exit(error.exit_code)
"""
    child = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    assert child.returncode == 73
    found = newest_good(tmp_path, pytest.fail)
    assert found is not None and found[1].step == 5
    assert not list(tmp_path.rglob("*.tmp"))
