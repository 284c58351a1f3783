"""A Ray cluster gives the bytes that this machine alone gives."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from making_factory import build_apart, content, recipe

RAY = str(Path(sys.executable).with_name("ray"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two nodes on this machine, each with a core of its own. Gives the address."""
    folder = tmp_path_factory.mktemp("r")
    port, environment = (
        26379,
        {**os.environ, "RAY_DISABLE_IMPORT_WARNING": "1", "RAY_USAGE_STATS_ENABLED": "0"},
    )
    common = ["--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats"]
    head = [
        "--head",
        f"--port={port}",
        "--include-dashboard=false",
        f"--temp-dir={folder}",
        "--node-ip-address=127.0.0.1",
    ]
    _run([RAY, "start", *head, *common], environment)
    try:
        _run(
            [RAY, "start", f"--address=127.0.0.1:{port}", "--node-ip-address=127.0.0.1", *common], environment
        )
        yield f"127.0.0.1:{port}"
    finally:
        _run([RAY, "stop", "--force"], environment)


def _run(words: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_nodes_of_ray_write_the_same_bytes_as_this_machine_alone(cluster: str, tmp_path: Path) -> None:
    path = recipe(tmp_path, "first", "second")
    there = {"RAY_ADDRESS": cluster}
    alone = build_apart(path, tmp_path / "alone")
    together = build_apart(path, tmp_path / "together", "--engine", "ray", environment=there)
    assert content(together) == content(alone)
    again = build_apart(path, tmp_path / "together", "--engine", "ray", environment=there)
    assert again.folder == together.folder


def test_missing_cluster_is_told(tmp_path: Path) -> None:
    path = recipe(tmp_path, "first")
    words = [sys.executable, "-m", "bessemer", "data", "build", str(path), "--store", str(tmp_path / "store")]
    done = subprocess.run(
        [*words, "--engine", "ray", "--json"],
        env={**os.environ, "RAY_ADDRESS": "127.0.0.1:1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3 and "finds no Ray cluster" in done.stderr, done.stderr
    assert "ray start --head" in done.stderr
