"""The peers' own virtual environments, under .peers/, made on first use.

A peer must not share ours: its pins would decide which versions we are compared with. Each is installed
from `peers/requirements-<name>.txt`; a file that changed makes a new environment.
pip's plan is read before anything is installed: on a CPU the CUDA builds of torch would only cost
gigabytes, and their timings would not be those of the build that Bessemer runs on.
Cost: a minute and 1 GB of disk each.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE.parent / ".peers"
_CUDA_PACKAGES = ("nvidia-", "cuda-", "triton")


class EnvironmentFailure(Exception):
    """A peer's environment could not be made; the text says why and what helps."""


def python_of(peer: str) -> Path:
    """The peer's Python. Makes its environment if it is not there, or is of other requirements."""
    requirements = HERE / "peers" / f"requirements-{peer}.txt"
    folder = ENVIRONMENTS / peer
    python, made_from = folder / "bin" / "python", folder / "made-from.txt"
    wanted = requirements.read_text(encoding="utf-8")
    if made_from.is_file() and made_from.read_text(encoding="utf-8") == wanted:
        return python
    print(f"making the environment of {peer} in {folder}", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    _call([sys.executable, "-m", "venv", str(folder)])
    _refuse_cuda(peer, python, requirements)
    _call([str(python), "-m", "pip", "install", "--quiet", "--requirement", str(requirements)])
    # Last: an installation that was interrupted is begun again.
    made_from.write_text(wanted, encoding="utf-8")
    return python


def _refuse_cuda(peer: str, python: Path, requirements: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "plan.json"
        install = [str(python), "-m", "pip", "install", "--quiet", "--dry-run", "--report", str(report)]
        _call([*install, "--requirement", str(requirements)])
        plan = json.loads(report.read_text(encoding="utf-8"))
    names = [row["metadata"]["name"].lower() for row in plan["install"]]
    unwanted = [name for name in names if name.startswith(_CUDA_PACKAGES)]
    if unwanted:
        raise EnvironmentFailure(
            f"{peer}: pip would install a CUDA build of torch ({', '.join(sorted(unwanted)[:4])} …)\n"
            "  wanted: the CPU build\n"
            "  fix:    name an index that has it, e.g. "
            "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu, and run the same command again"
        )


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise EnvironmentFailure(f"`{' '.join(command)}` failed:\n{tail}")
