"""Run a stage that has begun: here, by starting the processes of its layout, or as one of those.

run_stage    in the command's own process; starts local workers where the layout has several ranks
run_among    under torchrun or Slurm: the first rank begins the stage, then all train
main         of a local worker: `python -m bessemer.train.run READY`
"""

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bessemer.errors import DataError, StoppedError
from bessemer.launch.local import run_workers
from bessemer.launch.world import World, report_failure, world_of_environment
from bessemer.log import Console
from bessemer.recipe.load import LoadedRecipe
from bessemer.rundir import lock
from bessemer.train.build import Machine, build
from bessemer.train.loop import train
from bessemer.train.ranks import ALONE, Company, digest, joined
from bessemer.train.settle import code_hash
from bessemer.train.stage import Stage, outcome, read_stage
from bessemer.train.stop import Stop


@dataclass(frozen=True)
class Ready:
    """A stage that has begun, and what its ranks need to know besides its own files."""

    folder: Path
    machine: Machine
    done: bool = False

    def outcome(self) -> dict[str, Any]:
        return {**outcome(read_stage(self.folder), self.folder.parent), "already_done": self.done}

    def to_json(self) -> dict[str, Any]:
        return {"folder": str(self.folder), "machine": asdict(self.machine), "done": self.done}

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Ready":
        return Ready(Path(values["folder"]), Machine(**values["machine"]), values["done"])


def run_stage(ready: Ready, console: Console) -> None:
    """Train it to its end, here or in as many local processes as its layout has ranks."""
    if ready.done:
        return
    stage = read_stage(ready.folder)
    if stage.plan.layout.world == 1:
        _train(stage, ready, console, ALONE)
        return
    command = [sys.executable, "-m", "bessemer.train.run", json.dumps(ready.to_json())]
    run_workers(command, stage.plan.layout.world, logs=ready.folder / "logs")


def run_among(
    world: World, loaded: LoadedRecipe, run: Path, console: Console, begin: Callable[[], Ready]
) -> dict[str, Any]:
    """As one of processes that others have started. `begin` is called on the first rank alone."""
    with joined(world) as company, ExitStack() as stack:

        def begin_first() -> dict[str, Any]:
            stack.enter_context(lock(run))
            return begin().to_json()

        company.all_same("recipe", digest(loaded.text), "start every rank with the same recipe and settings")
        company.all_same("code", code_hash(), "install the same version of bessemer on every machine")
        ready = Ready.from_json(company.first_does("begin", begin_first))
        company.all_do("see", lambda: _check_seen(ready))
        company.all_same(
            "data", read_stage(ready.folder).data.hash, "copy the prepared data to every machine"
        )
        if not ready.done:
            _train(read_stage(ready.folder), ready, console, company)
        return ready.outcome()


def main(words: list[str]) -> int:
    """A local worker: the exit code."""
    world = world_of_environment()
    assert world is not None and len(words) == 1, words
    ready = Ready.from_json(json.loads(words[0]))
    try:
        with joined(world) as company:
            _train(read_stage(ready.folder), ready, Console(quiet=world.rank > 0), company)
    except BaseException as error:
        return report_failure(error)
    return 0


def _train(stage: Stage, ready: Ready, console: Console, company: Company) -> None:
    """A signal in the last step does not go unheard: what follows stops."""
    if company.rank == 0:
        console.also_to(stage.folder / "logs" / "rank-00000.log")
    try:
        with Stop() as stop:
            job, state = build(stage, ready.machine, console, stop, company)
            if state.step:
                console.line(f"{stage.folder.name}: going on at step {state.step} of {stage.plan.steps}")
            with ExitStack() as stack:
                stack.callback(job.record.close)
                train(job, state)
                job.close()
            if stop.asked:
                raise StoppedError(
                    f"{stage.folder.name} is done; stopped before what comes next",
                    found=stop.reason,
                    wanted="the rest of the command, if there is any",
                    fix="run the same command again to go on",
                )
    finally:
        console.also_to(None)


def _check_seen(ready: Ready) -> None:
    if not (ready.folder / "stage.json").is_file():
        raise DataError(
            "a rank does not see the run directory",
            found=f"no {ready.folder / 'stage.json'} on its machine",
            wanted="one run directory for all ranks, on a disk that every machine mounts",
            fix="give a shared folder with --run DIR (and --store DIR for the data)",
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
