"""Processes that stay, and run functions of the tests as the ranks of a layout, over gloo.

Importing torch takes a second and 224 MB in each process, so all tests share one pool, which starts as many
as some test needs. What travels is JSON in lines and tensors in files. A rank that dies says by which signal,
and where Python stood on stderr.
"""

import faulthandler
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

ROOT = Path(__file__).parents[1]
Result = dict[str, Any]  # by name: JSON values, and tensors


class Pool:
    """Rank r of every call is process r; each call is a process group of its own."""

    def __init__(self) -> None:
        self._ranks: list[subprocess.Popen[str]] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._calls = 0
        self._is_late = False  # the alarm has ended the ranks

    def run(
        self, function: Callable[..., Result], world: int, timeout_s: float = 120.0, **arguments: Any
    ) -> list[Result]:
        """What `function(rank, **arguments)` returns on each of `world` ranks.

        It is a function of a module of tests, and its arguments are JSON. Raises AssertionError with the
        traceback of every rank that failed; then all processes are ended, and the next call starts anew.
        """
        folder = self._start(world)
        self._calls += 1
        call = {
            "number": self._calls,
            "folder": folder,
            "module": function.__module__,
            "name": function.__name__,
            "world": world,
            "arguments": arguments,
        }
        for rank in range(world):
            self._stream(rank).write(json.dumps({**call, "rank": rank}) + "\n")
            self._stream(rank).flush()
        alarm = threading.Timer(timeout_s, self._end_late)
        alarm.start()
        try:
            answers = [self._answer(rank) for rank in range(world)]
        finally:
            alarm.cancel()
        failed = [f"rank {rank}: {each['error']}" for rank, each in enumerate(answers) if "error" in each]
        if failed:
            self.close()
            raise AssertionError("\n".join(failed))
        return [self._read(each) for each in answers]

    def close(self) -> None:
        self._kill()
        for process in self._ranks:
            process.wait()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                stream.close()
        self._ranks = []
        self._is_late = False
        if self._folder is not None:
            self._folder.cleanup()
        self._folder = None

    def _start(self, world: int) -> str:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="ranks-")
        path = os.pathsep.join([str(ROOT), *sys.path])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        while len(self._ranks) < world:
            command = [sys.executable, __file__]
            pipe = subprocess.PIPE
            self._ranks.append(subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True))
        return self._folder.name

    def _stream(self, rank: int) -> TextIO:
        stream = self._ranks[rank].stdin
        assert stream is not None
        return stream

    def _answer(self, rank: int) -> dict[str, Any]:
        process = self._ranks[rank]
        assert process.stdout is not None
        line = process.stdout.readline()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        code = process.wait()  # nobody writes to its pipe any more: it has ended, or is about to
        end = "took too long" if self._is_late else "ended without an answer"
        return {"error": f"{end}: {signal.Signals(-code).name if code < 0 else f'exit status {code}'}"}

    def _read(self, answer: dict[str, Any]) -> Result:
        path = Path(answer["tensors"])
        tensors = load_file(path)
        path.unlink()
        return {**answer["values"], **tensors}

    def _end_late(self) -> None:
        self._is_late = True
        self._kill()

    def _kill(self) -> None:
        for process in self._ranks:
            process.kill()


def _work(call: dict[str, Any]) -> dict[str, Any]:
    """One call on one rank."""
    function = getattr(importlib.import_module(call["module"]), call["name"])
    rank, world, name = call["rank"], call["world"], f"{call['folder']}/{call['number']}"
    gc.freeze()  # what is here stays: the collection below looks at this call's objects only
    store = dist.FileStore(name, world)
    limit = timedelta(seconds=60)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=limit)
    found = function(rank, **call["arguments"])
    # Nobody leaves before all are done: a rank that ends early would look like a failure to the others.
    dist.barrier()
    dist.destroy_process_group()
    # Cycles of garbage (a model with hooks) hold the call's groups. Left to the collector, their threads and
    # sockets end in the middle of a later call's step, each rank at its own time; 231 threads after 68 calls.
    gc.collect()
    tensors = {key: value.contiguous() for key, value in found.items() if isinstance(value, Tensor)}
    save_file({key: value.clone() for key, value in tensors.items()}, f"{name}.{rank}")
    values = {key: value for key, value in found.items() if key not in tensors}
    return {"values": values, "tensors": f"{name}.{rank}"}


def _main() -> None:
    faulthandler.enable()
    torch.set_num_threads(1)
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    for line in sys.stdin:
        try:
            answer = _work(json.loads(line))
        except Exception:  # told to the test
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if "error" in answer:
            return


if __name__ == "__main__":
    _main()
