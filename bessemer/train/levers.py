"""From what a recipe says of levers to those that a rank holds: checked before the start, then moved.

`[energy] power_limit, slower_at_most, governor, threads` reach the ranks as one JSON object (Machine in
train/machine.py). Each rank sets the limit of its own board, the first of each machine the governor of its
CPUs.
"""

from pathlib import Path
from typing import Any

import torch

from bessemer.energy.levers.board import Board
from bessemer.energy.levers.governor import Governor
from bessemer.energy.levers.guard import Held, check, hold
from bessemer.energy.readers.nvml import open_nvml
from bessemer.energy.reading import Reader
from bessemer.errors import RefusedError
from bessemer.formulas.layout import ONE_PROCESS, Layout
from bessemer.hardware import machine
from bessemer.log import Console
from bessemer.measure.ceiling import device_name
from bessemer.measure.facts import meter_name
from bessemer.model.device import this_device
from bessemer.planner.machine.facts import Facts
from bessemer.planner.resolve import check_recipe
from bessemer.planner.rules.lever import check_levers
from bessemer.recipe.schema import Energy, Recipe
from bessemer.rundir import read_rows
from bessemer.train.job import Job
from bessemer.train.ranks import Company
from bessemer.train.tune import Rules, Search, Tell, Tune, earlier_choice, guard_environment

Asked = dict[str, Any]


def asked_of(energy: Energy) -> Asked | None:
    """None: every lever is left alone."""
    asked = energy.model_dump(include={"power_limit", "slower_at_most", "governor", "threads"})
    alone = asked["power_limit"] == "off" and asked["governor"] is None and asked["threads"] is None
    return None if alone else asked


def check_here(recipe: Recipe, stage: Path, world: int | None) -> None:
    """Levers that this machine cannot have are refused before any data is prepared or file written.

    Before there is a plan: one that leaves the layout open is taken to have one rank. A stage that has begun
    has its data, and may be done: it is asked later. world: as in planner/limits.check_start.
    """
    if (stage / "stage.json").is_file():
        return
    device, layout = this_device(), check_recipe(recipe, world=world)
    kind = "cpu" if device.type == "cpu" else "gpu"
    check_levers(recipe, layout, Facts(device_name(device), kind, cores=machine().cores), world)
    check_boards(recipe.energy, ONE_PROCESS, world)


def check_boards(energy: Energy, layout: Layout, world: int | None) -> None:
    """RefusedError where a limit in watts cannot be set on the boards of this machine that will be used.

    With "auto" the run goes on at full power then. world: as in planner/limits.check_start.
    """
    if isinstance(energy.power_limit, str):
        return
    device = this_device()
    local = [torch.device(device.type, index) for index in range(layout.world)] if world is None else [device]
    for each in local:
        board = Board(meter_name(each))
        board.check(energy.power_limit)
        check(board)


def begin_tune(asked: Asked, job: Job, step: int, company: Company, console: Console) -> Tune:
    """Move what is asked for outright; what is to be found is found after the first steps.

    RefusedError on every rank where one of them cannot.
    """
    tell = Tell(console.line, job.record.event, job.record.limited, step)
    held: list[Held] = []

    def move() -> None:
        if asked["governor"] is not None and company.leads:
            _govern(asked["governor"], held)
            job.record.governed(asked["governor"])
        if not isinstance(asked["power_limit"], str):
            _limit(asked["power_limit"], Board(meter_name(job.device)), held, tell)

    try:
        company.all_do("levers", move)
        search = _search(asked, job, company, held, tell) if asked["power_limit"] == "auto" else None
    except BaseException:
        Tune(held, None, tell).close()
        raise
    return Tune(held, search, tell)


def _govern(wanted: str, held: list[Held]) -> None:
    governor = Governor()
    governor.check(wanted)
    held.append(hold(governor, guard_environment()))
    governor.choose(wanted)


def _limit(watts: float, board: Board, held: list[Held], tell: Tell) -> None:
    held.append(hold(board, guard_environment()))
    full_w = board.limit_w
    board.limit(watts)
    tell.event("power_limit", tell.step, watts=watts, full_w=full_w, found="asked", device=board.device)
    tell.limited(watts, "asked")


def _search(asked: Asked, job: Job, company: Company, held: list[Held], tell: Tell) -> Search | None:
    """None: a rank cannot, so that all go on at full power; or an earlier attempt has found what is set."""
    rules = Rules(asked["slower_at_most"], job.plan.batch_tokens, str(job.plan.layout))
    found: list[tuple[Board, Reader]] = []
    try:
        company.all_do("power limit", lambda: found.append(_able(meter_name(job.device), held)))
    except RefusedError as error:
        tell.line(f'power limit: left as it is, not "auto": {error.problem}: {error.found}')
        return None
    ((board, meter),) = found

    def told_before() -> dict[str, Any]:
        same = {"layout": rules.layout, "slower_at_most": rules.slower_at_most}
        events = read_rows(job.folder / "events.jsonl")
        return {"watts": earlier_choice(events, board.device, same)}

    watts = company.first_does("earlier limit", told_before)["watts"]
    if watts is None:
        return Search(board, meter, rules, lambda step: _is_due(job, step), tell)
    full_w = board.limit_w
    watts = min(max(watts, board.lowest_w), full_w)  # never above what it is at: somebody may have lowered it
    company.all_do("same limit", lambda: board.limit(watts))
    tell.event("power_limit", tell.step, watts=watts, full_w=full_w, found="earlier", device=board.device)
    tell.line(f"power limit: {watts:.0f} of {full_w:.0f} W, as an earlier attempt has found")
    tell.limited(None if watts == full_w else watts, "found")
    return None


def _able(name: str, held: list[Held]) -> tuple[Board, Reader]:
    """What this rank sets, and measures by. RefusedError where it cannot."""
    board = Board(name)
    measured = [reader for reader in open_nvml([name]).get(name, []) if reader.basis == "measured"]
    if not measured:
        raise RefusedError(
            f"nothing measures the energy of {name}",
            found="no counter and no watts from NVML",
            wanted="a board that tells its energy",
            fix='set energy.power_limit to watts, or "off"',
        )
    held.append(hold(board, guard_environment()))
    return board, measured[0]


def _is_due(job: Job, step: int) -> bool:
    return any(job.is_due(every, step) for every in (job.plan.validate_every, job.plan.save_every))
