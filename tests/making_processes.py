"""What the tests of training do with the system: real processes, killed or not, and small disks."""

import io
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from bessemer.cli.main import main

ROOT = Path(__file__).parents[1]


def start(folder: Path, *words: str) -> "subprocess.Popen[str]":
    """`bessemer words` as a user starts it, in `folder`, with one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "bessemer", *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ran_here(folder: Path, *words: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `bessemer words`, run in this process from `folder`.

    Where no process is what is tested: starting one takes 1 to 2 CPU-s.
    """
    out, err = io.StringIO(), io.StringIO()
    with chdir(folder), redirect_stdout(out), redirect_stderr(err):
        code = main(list(words))
    return code, out.getvalue(), err.getvalue()


def finish(process: "subprocess.Popen[str]", timeout_s: float = 120.0) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)."""
    out, err = process.communicate(timeout=timeout_s)
    return process.returncode, out, err


@contextmanager
def small_disk(folder: Path, size: str = "2m") -> Iterator[Path]:
    """A file system of its own; the test is skipped where none can be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounter = shutil.which("mount") if os.geteuid() == 0 else None
    if mounter is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small file system, and not everywhere")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """A file that takes all but `leave` bytes of the disk."""
    filler = disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(disk).free - leave))
    return filler


def wait_for(process: "subprocess.Popen[str]", condition: Callable[[], Any], timeout_s: float = 60.0) -> None:
    """Until the condition holds, looking every millisecond; fails where the process ends before."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        if process.poll() is not None:
            raise AssertionError(f"ended with {process.returncode}: {finish(process)[2]}")
        if time.monotonic() > end_s:
            process.kill()
            raise AssertionError(f"waited in vain: {finish(process)[2]}")
        time.sleep(0.001)
