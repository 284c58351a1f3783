"""How processes of ours are started."""

import sys
from pathlib import Path

import bessemer


def worker_command(module: str) -> list[str]:
    """Run a module of ours in this interpreter. -P: a folder of the user's named `torch` or `data` must not
    stand in for a package, unless we ourselves were found in the current folder."""
    path = [] if Path(bessemer.__file__).parents[1] == Path.cwd() else ["-P"]
    return [sys.executable, *path, "-m", module]
