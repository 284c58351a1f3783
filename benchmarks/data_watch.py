"""Run one command: CPU seconds of it and all it started, and the most memory that all had at once.

Memory is the sum of PSS over the process and its descendants, sampled every SAMPLE_S: what two workers share
(libraries, a mapped file) counts once. A peak of less than that between two samples is missed.
"""

import os
import resource
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_S = 0.1


@dataclass(frozen=True)
class Watched:
    wall_s: float
    cpu_s: float
    peak_bytes: int
    output: str


def watch(command: Sequence[str], folder: Path, log: Path) -> Watched:
    """`folder`: where it runs. Its standard output comes back, the rest is in `log`. Raises RuntimeError."""
    before, begin_s, peak = _children_s(), time.monotonic(), 0
    told = log.with_suffix(".out")
    with open(log, "wb") as errors, open(told, "wb") as output:
        process = subprocess.Popen(list(command), cwd=folder, stdout=output, stderr=errors)
        try:
            while process.poll() is None:
                peak = max(peak, _pss_bytes(process.pid))
                time.sleep(SAMPLE_S)
        except BaseException:
            process.kill()
            process.wait()
            raise
    wall_s = time.monotonic() - begin_s
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{log.read_text()[-4000:]}")
    return Watched(wall_s, _children_s() - before, peak, told.read_text(encoding="utf-8"))


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _pss_bytes(pid: int) -> int:
    """Of the process and its descendants; one that has just ended counts nothing."""
    total = 0
    for one in _tree(pid):
        try:
            text = Path(f"/proc/{one}/smaps_rollup").read_text()
        except (OSError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total * 1024


def _tree(pid: int) -> list[int]:
    try:
        threads = os.listdir(f"/proc/{pid}/task")
        lists = [Path(f"/proc/{pid}/task/{thread}/children").read_text() for thread in threads]
    except OSError:
        return [pid]
    return [pid, *(one for text in lists for child in text.split() for one in _tree(int(child)))]
