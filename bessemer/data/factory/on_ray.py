"""The engine for a Ray cluster that the user has: a worker a core, the same tasks, files alike.

Each actor drives a worker process of its own (driven.py), so that a document that kills a process costs
the same there as here. An actor whose node is lost is started elsewhere and its task is run again: a task
that was done already leaves nothing to do. The store and the sources must be seen by all nodes under the
same path (NFS, Lustre …, or objects in s3:// and gs:// for the sources); a node that does not see the
store says so.
"""

import json
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import ray

from bessemer import errors
from bessemer.data.factory.driven import Driven
from bessemer.data.factory.engines import Engine, Outcome, Progress, Task
from bessemer.errors import DataError, RefusedError, UserError

_RETRIES = 3


class Actor:
    def __init__(self, store: str, seen: str, memory_bytes: int, timeout_s: float) -> None:
        self._driven = Driven(memory_bytes, timeout_s)
        self._sees_store = Path(store, seen).is_file()

    def run(self, line: str) -> str:
        """JSON to JSON: {"done": …} or {"failed": …}, as an exception would lose its parts on the way."""
        if not self._sees_store:
            return json.dumps({"unseen": os.uname().nodename})
        try:
            return json.dumps({"done": self._driven.run(json.loads(line))})
        except UserError as error:
            texts = [str(error.args[0]), error.found, error.wanted, error.fix]
            return json.dumps({"failed": [type(error).__name__, *texts]})


@final
class OnRay(Engine):
    def __init__(self, store: Path, workers: int | None, memory_bytes: int, timeout_s: float) -> None:
        try:
            _probe(os.environ.get("RAY_ADDRESS", ""))
            ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, OSError) as error:
            raise RefusedError(
                "--engine ray finds no Ray cluster",
                found=f"{os.environ.get('RAY_ADDRESS', 'no RAY_ADDRESS')}: {str(error).splitlines()[0]}",
                wanted="a cluster that runs, at RAY_ADDRESS or on this machine",
                fix="start one with `ray start --head`, or leave --engine out",
            ) from error
        seen = f".seen-{os.getpid()}"
        store.mkdir(parents=True, exist_ok=True)
        self._mark = store / seen
        self._mark.touch()
        remote: Any = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=_RETRIES)(Actor)
        cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._actors: list[Any] = [
            remote.remote(str(store.resolve()), seen, memory_bytes, timeout_s)
            for _ in range(min(workers or cores, cores))
        ]

    def run(self, tasks: Sequence[Task], progress: Progress) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        waiting = sorted(range(len(tasks)), key=lambda number: tasks[number]["size_bytes"])
        idle = list(self._actors)
        busy: dict[Any, tuple[int, Any]] = {}
        while waiting or busy:
            while waiting and idle:
                number, actor = waiting.pop(), idle.pop()
                busy[actor.run.remote(json.dumps(tasks[number]))] = (number, actor)
            ready, _ = ray.wait(list(busy), num_returns=1)
            for reference in ready:
                number, actor = busy.pop(reference)
                outcomes[number] = _outcome(json.loads(ray.get(reference)))
                idle.append(actor)
                progress.add(tasks[number])
        return [outcomes[number] for number in range(len(tasks))]

    def close(self) -> None:
        self._mark.unlink(missing_ok=True)
        ray.shutdown()


def _probe(address: str) -> None:
    """Raises OSError where nobody listens: Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _outcome(answer: dict[str, Any]) -> Outcome:
    if "unseen" in answer:
        raise DataError(
            f"node {answer['unseen']} of the Ray cluster does not see the store",
            found="no such folder there",
            wanted="--store on a file system that all nodes share, under the same path",
            fix="name such a folder: --store /shared/data",
        )
    if "failed" in answer:
        name, problem, found, wanted, fix = answer["failed"]
        kind: type[UserError] = getattr(errors, name)
        raise kind(problem, found=found, wanted=wanted, fix=fix)
    done: Outcome = answer["done"]
    return done
