"""Which compiler torch.compile calls on this machine, if there is one."""

import os
import shutil
import sys


def compiler(kind: str = "cpu") -> str | None:
    """C++ for code on a CPU, C for what starts Triton's kernels. `kind`: of the device, as in Facts.

    Only what they look for themselves: torch's inductor takes CXX or g++ (on macOS clang++), Triton CC or
    gcc or clang.
    """
    return next((found for name in candidates(kind) if (found := shutil.which(name))), None)


def candidates(kind: str) -> list[str]:
    given = os.environ.get(variable(kind))
    if given:  # then they take nothing else
        return [given]
    if kind == "cpu":
        return ["clang++" if sys.platform == "darwin" else "g++"]
    return ["gcc", "clang"]


def variable(kind: str) -> str:
    """Of the environment, that names another one."""
    return "CXX" if kind == "cpu" else "CC"
