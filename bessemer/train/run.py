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

from bessemer.energy.accounting.receipt import write_account
from bessemer.energy.levers.restore import restore_left
from bessemer.errors import DataError, StoppedError, UserError
from bessemer.launch.local import run_workers
from bessemer.launch.world import World, report_failure, world_of_environment
from bessemer.log import Console
from bessemer.measure.threads import using_threads
from bessemer.processes import worker_command
from bessemer.recipe.load import LoadedRecipe
from bessemer.rundir import lock
from bessemer.train.build import FeedOf, build
from bessemer.train.loop import train
from bessemer.train.machine import Machine
from bessemer.train.metering import LOG
from bessemer.train.ranks import ALONE, Company, grouped, joined, lost, lost_error, met
from bessemer.train.rows import prepared_feed
from bessemer.train.settle import code_hash
from bessemer.train.stage import Stage, outcome, read_stage
from bessemer.train.stop import Stop

WORKER = "bessemer.train.run"


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


def run_stage(ready: Ready, console: Console, worker: str = WORKER, feed_of: FeedOf = prepared_feed) -> None:
    """Train it to its end, here or in as many local processes as its layout has ranks.

    worker: the module whose `main` gives those processes the same `feed_of`.
    """
    if ready.done:
        return
    stage = read_stage(ready.folder)
    if stage.plan.layout.world == 1:
        _train(stage, ready, console, ALONE, feed_of)
        return
    command = [*worker_command(worker), json.dumps(ready.to_json())]
    threads = (ready.machine.tune or {}).get("threads")
    run_workers(command, stage.plan.layout.world, logs=ready.folder / "logs", threads=threads)


def run_among(
    world: World,
    asked: Callable[[], tuple[LoadedRecipe, Path]],
    others: dict[str, str],
    console: Console,
    begin: Callable[[LoadedRecipe, Path], Ready],
    feed_of: FeedOf = prepared_feed,
) -> dict[str, Any] | None:
    """As one of processes that others have started. `begin` is called on the first rank alone.

    asked: loads the recipe, and says in which run directory. others: further options, by name.
    None: not the first rank, which answers for all. An error that all ranks share is raised on the first;
    the others end with its exit code and say nothing.
    """
    company = ALONE
    try:
        company = met(world)
        with grouped(company):
            return _among(company, asked, others, console, begin, feed_of)
    except Exception as error:
        if isinstance(error, UserError) and world.rank > 0 and company.is_alike(error):
            raise SystemExit(error.exit_code) from error
        if lost(error):
            raise lost_error(world.rank, error) from error
        raise


def _among(
    company: Company,
    asked: Callable[[], tuple[LoadedRecipe, Path]],
    others: dict[str, str],
    console: Console,
    begin: Callable[[LoadedRecipe, Path], Ready],
    feed_of: FeedOf,
) -> dict[str, Any] | None:
    found: list[tuple[LoadedRecipe, Path]] = []
    company.all_do("load", lambda: found.append(asked()))
    ((loaded, run),) = found
    company.all_same("recipe", loaded.text, "start every rank with the same recipe and settings")
    for option, value in {"--run": str(run.resolve()), **others}.items():
        company.all_same(option, _resolved(value), f"start every rank with the same {option}")
    company.all_same("code", code_hash(), "install the same version of bessemer on every machine")
    if company.leads:
        restore_left(console.line)
    with ExitStack() as stack:

        def begin_first() -> dict[str, Any]:
            stack.enter_context(lock(run))
            return begin(loaded, run).to_json()

        ready = Ready.from_json(company.first_does("begin", begin_first))
        if not ready.done:
            company.all_do("see", lambda: _check_seen(ready))
            begun = (ready.folder / "stage.json").read_text()
            company.all_same("stage.json", begun, "give a shared folder with --run DIR")
            said = console if company.rank == 0 else Console(quiet=True)
            _train(read_stage(ready.folder), ready, said, company, feed_of)
        return ready.outcome() if company.rank == 0 else None


def main(words: list[str], feed_of: FeedOf = prepared_feed) -> int:
    """A local worker: the exit code."""
    world = world_of_environment()
    assert world is not None and len(words) == 1, words
    ready = Ready.from_json(json.loads(words[0]))
    try:
        with joined(world) as company:
            _train(read_stage(ready.folder), ready, Console(quiet=world.rank > 0), company, feed_of)
    except BaseException as error:
        return report_failure(error)
    return 0


def _train(stage: Stage, ready: Ready, console: Console, company: Company, feed_of: FeedOf) -> None:
    """A signal in the last step does not go unheard: what follows stops."""
    if company.rank == 0:
        console.also_to(stage.folder / LOG)
    try:
        with Stop() as stop, using_threads((ready.machine.tune or {}).get("threads")):
            job, state = build(stage, ready.machine, console, stop, company, feed_of)
            if state.step:
                console.line(f"{stage.folder.name}: going on at step {state.step} of {stage.plan.steps}")
            try:
                train(job, state)
                asked = job.engine.any(stop.asked)
            except BaseException as error:
                # The run's lock must not be free while a save is being written. It is waited for unless
                # this rank fails alone: then another may be missing from it.
                if job.engine.world == 1 or company.is_alike(error):
                    job.close()
                else:
                    job.abandon()
                raise
            job.close()
            if asked or stop.asked:
                raise StoppedError(
                    f"{stage.folder.name} is done; stopped before what comes next",
                    found=stop.reason or "another rank was asked to stop",
                    wanted="the rest of the command, if there is any",
                    fix="run the same command again to go on",
                )
    finally:
        if company.rank == 0:
            write_account(stage.folder.parent, console)
        console.also_to(None)


def _resolved(value: str) -> str:
    """A place (FOLDER or FOLDER@STEP) that is there, under the one name that all ranks have for it."""
    folder, at, step = value.rpartition("@") if "@" in value else (value, "", "")
    return f"{Path(folder).resolve()}{at}{step}" if folder and Path(folder).exists() else value


def _check_seen(ready: Ready) -> None:
    if not (ready.folder / "stage.json").is_file():
        raise DataError(
            "a rank does not see the run directory",
            found=f"no {ready.folder / 'stage.json'} on its machine",
            wanted="one run directory for all ranks, on a disk that every machine mounts",
            fix="give a shared folder with --run DIR (and --store DIR for the data)",
        )
    read_stage(ready.folder)  # DataError where the data is not there, or is another


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
