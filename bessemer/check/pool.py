"""Run the cases of a check on pools of processes: one pool, and another for the rest after each failure."""

import json
from collections.abc import Sequence
from dataclasses import replace

from bessemer.check.compare import Trace
from bessemer.check.worker import Task
from bessemer.errors import RefusedError, UserError
from bessemer.launch.local import run_workers
from bessemer.log import Console
from bessemer.processes import worker_command
from bessemer.rundir import read_rows
from bessemer.train.stage import read_stage

WORKER = tuple(worker_command("bessemer.check.worker"))
_GRACE_S = 2.0  # ranks whose peer has failed have nothing to save


def run_pools(task: Task, console: Console, worker: Sequence[str] = WORKER) -> dict[int, Trace | UserError]:
    """By number of the case: what it did, or why it failed. The first one is the reference, whose failure
    is raised, as is what keeps processes from being started."""
    found: dict[int, Trace | UserError] = {}
    left = list(task.cases)
    while left:
        error = _run(replace(task, cases=left), worker)
        for row in read_rows(task.results):
            number = row.pop("number")
            found[number] = Trace(**row)
        left = [case for case in left if case.number not in found]
        if not left:
            break
        assert error is not None, f"the workers ended well and left out {left}"
        failed = left.pop(0)
        if failed.number == 0 or isinstance(error, RefusedError):
            raise error
        found[failed.number] = error
        console.line(f"[{failed.number + 1}/{task.of}] {read_stage(failed.folder).plan.layout}: {error}")
    return found


def _run(task: Task, worker: Sequence[str]) -> UserError | None:
    """Why the pool failed, where it did. What it has done is in the task's results."""
    world = max(read_stage(case.folder).plan.layout.world for case in task.cases)
    try:
        run_workers([*worker, json.dumps(task.to_json())], world, logs=None, grace_s=_GRACE_S)
    except UserError as error:
        return error
    return None
