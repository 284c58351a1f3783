"""Ask a peer in its own environment: our script, run by its Python. For slow tests: it is installed first."""

import importlib.util
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def ask(peer: str, script: Path, *arguments: str | Path) -> Any:
    """The JSON that `script` prints last. peer: as in benchmarks/peers/requirements-<peer>.txt."""
    done = subprocess.run(
        [str(_python_of(peer)), str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _python_of(peer: str) -> Path:
    spec = importlib.util.spec_from_file_location("environments", ROOT / "benchmarks" / "environments.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        return Path(module.python_of(peer))
    except module.EnvironmentFailure as failure:
        pytest.skip(f"the environment of {peer} cannot be made here: {failure}")
